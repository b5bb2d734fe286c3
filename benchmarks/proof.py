"""The proof without base weights, on the public configurations: seconds after imports, and the memory it takes.

An adapter of every attention projection of every component, rank 16, bf16, alpha 8, for SD 1.5, SDXL and FLUX.1-dev.
The last row has the same adapter as SDXL's on a base of ten times the weights: what the layers that are not adapted
weigh costs neither time nor memory.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from adapterline.families.shipped import shipped
from adapterline.families.skeleton import _TARGETS, build_model, targets
from benchmarks.serialize import anonymous_bytes

ROUNDS = 3
RANK, ALPHA = 16, 8
#: Alias, and how many times as wide its text encoders' MLP is made.
BASES = {"sd15": ("sd15", 1), "flux-dev": ("flux-dev", 1), "sdxl": ("sdxl", 1), "sdxl, 10 x the weights": ("sdxl", 64)}
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj")


def main() -> None:
    """Prints a table."""
    print(f"proof: attention of every component, rank {RANK}, bf16; medians of {ROUNDS} rounds in a process each")
    print(f"{'':26}{'base, 1e9':>10}{'modules':>9}{'MB':>6}{'seconds':>9}{'MB anonymous':>14}")
    for title, (alias, times) in BASES.items():
        with tempfile.TemporaryDirectory(prefix="adapterline-bench-") as name:
            base = _base(alias, Path(name, "base"), times)
            command = [sys.executable, "-W", "ignore", "-m", "benchmarks.proof", str(base), name]
            size, modules, parameters = json.loads(_run([*command, "write"]))
            rounds = [json.loads(_run([*command, "prove"])) for _ in range(ROUNDS)]
        seconds, memory = (sorted(column)[ROUNDS // 2] for column in zip(*rounds, strict=True))
        print(f"{title:26}{parameters / 1e9:10.2f}{modules:9}{size / 1e6:6.0f}{seconds:9.2f}{memory / 1e6:14.0f}")


def _run(command: list[str]) -> str:
    quiet = os.environ | {"TRANSFORMERS_VERBOSITY": "error"}
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=quiet).stdout


def _base(alias: str, folder: Path, times: int) -> Path:
    """The shipped configurations, with so many times the width between the two layers of the text encoders' MLP."""
    found = shipped(alias)
    assert found is not None
    shutil.copytree(found, folder)
    for config in folder.glob("text_encoder*/config.json") if times > 1 else ():
        values = json.loads(config.read_text())
        config.write_text(json.dumps(values | {"intermediate_size": values["intermediate_size"] * times}))
    return folder


def write(base: Path, work: Path) -> tuple[int, int, int]:
    """Bytes of the checkpoint, adapted modules, and parameters of the base's components that have any."""
    import torch
    from safetensors.torch import save_file

    from adapterline.families.base import read_base

    generator, tensors, header, parameters = torch.Generator().manual_seed(0), {}, {}, 0
    model = read_base(base)
    for component in model.family.components:
        if component.name not in model.models:
            continue
        names = [n for n in targets(model, component.name) if n.endswith(_ATTENTION)]
        for name in names:
            rows, columns = targets(model, component.name)[name].shape
            stem = f"{component.name}.{name}"
            tensors[f"{stem}.lora_A.weight"] = (torch.randn(RANK, columns, generator=generator) * 0.02).bfloat16()
            tensors[f"{stem}.lora_B.weight"] = (torch.randn(rows, RANK, generator=generator) * 0.001).bfloat16()
        header |= {f"{component.name}.r": RANK, f"{component.name}.lora_alpha": ALPHA}
        parameters += sum(p.numel() for p in build_model(model.models[component.name]).parameters())
    file = work / "lora.safetensors"
    save_file(tensors, file, {"lora_adapter_metadata": json.dumps(header)})
    return file.stat().st_size, len(tensors) // 2, parameters


def prove(base: Path, work: Path) -> tuple[float, int]:
    """Seconds of the proof alone, and the bytes of anonymous memory that it leaves behind."""
    import diffusers

    from adapterline.checkpoints import load_checkpoint
    from adapterline.checkpoints.extract import extract
    from adapterline.families.base import read_base
    from adapterline.layouts import convert
    from adapterline.scratch import Scratch
    from adapterline.serialize import serialize
    from adapterline.validation import validate_bundle
    from adapterline.values import ExportOptions

    options, scratch, model = ExportOptions(), Scratch(work / "scratch", 10**10, 1e6), read_base(base)
    source = load_checkpoint(str(work / "lora.safetensors"), options, work)
    bundle = serialize(convert(extract(source, model, options), model, options), scratch)
    getattr(diffusers, model.pipeline).load_lora_weights  # noqa: B018  (the attribute imports what it needs)
    _TARGETS.clear()  # a proof starts with the configurations
    before, started = anonymous_bytes(os.getpid()), time.perf_counter()
    report = validate_bundle(bundle, scratch.folder(bundle.digest), source, model, options)
    seconds = time.perf_counter() - started
    assert report.passed, report.failures
    return seconds, anonymous_bytes(os.getpid()) - before


if __name__ == "__main__":
    match sys.argv[1:]:
        case [base, work, "write"]:
            print(json.dumps(write(Path(base), Path(work))))
        case [base, work, "prove"]:
            print(json.dumps(prove(Path(base), Path(work))))
        case _:
            main()
