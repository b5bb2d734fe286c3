"""The line on an adapter of FLUX's size, against reading, writing and hashing the same bytes with coreutils.

523 MB of bf16, rank 64, a scale that is no power of two, on the real FLUX configuration: 836 tensors.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file

from adapterline.checkpoints import load_checkpoint
from adapterline.checkpoints.extract import extract
from adapterline.families.base import Base, read_base
from adapterline.families.skeleton import targets
from adapterline.layouts import convert
from adapterline.scratch import Scratch
from adapterline.serialize import serialize
from adapterline.validation import validate_bundle
from adapterline.values import ExportOptions

FLUX = {
    "_class_name": "FluxTransformer2DModel",
    "attention_head_dim": 128,
    "axes_dims_rope": [16, 56, 56],
    "guidance_embeds": True,
    "in_channels": 64,
    "joint_attention_dim": 4096,
    "num_attention_heads": 24,
    "num_layers": 19,
    "num_single_layers": 38,
    "patch_size": 1,
    "pooled_projection_dim": 768,
}
RANK, ALPHA = 64, 24


def main() -> None:
    """Prints seconds and ratios of each step."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        base = _write_base(work / "base")
        checkpoint = work / "lora.safetensors"
        _write_checkpoint(checkpoint, base)
        _copy(checkpoint, work)  # the page cache is warm for both
        laps: dict[str, float] = {}
        with _lap(laps, "cp, sync, sha256sum"):
            _copy(checkpoint, work)
        _line(checkpoint, base, work, laps)
        _print(laps, checkpoint.stat().st_size)


def _line(checkpoint: Path, base: Base, work: Path, laps: dict[str, float]) -> None:
    options, scratch = ExportOptions(), Scratch(work / "scratch", 10**10, 1e6)
    with _lap(laps, "load-checkpoint"):
        source = load_checkpoint(str(checkpoint), options, work)
    with _lap(laps, "extract"):
        adapter = extract(source, base, options)
    with _lap(laps, "convert"):
        plan = convert(adapter, base, options)
    with _lap(laps, "serialize"):
        bundle = serialize(plan, scratch)
    with _lap(laps, "validate"):
        report = validate_bundle(bundle, scratch.folder(bundle.digest), source, base, options)
    assert report.passed, report.failures


def _print(laps: dict[str, float], size: int) -> None:
    coreutils = laps["cp, sync, sha256sum"]
    print(f"the line, {size / 1e6:.0f} MB of bf16, rank {RANK}, alpha {ALPHA}, FLUX")
    for name, seconds in laps.items():
        print(f"  {name:<22}{seconds:8.2f} s {seconds / coreutils:8.2f} x")
    total = sum(laps.values()) - coreutils
    print(f"  {'all of the line':<22}{total:8.2f} s {total / coreutils:8.2f} x")


@contextmanager
def _lap(laps: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    laps[name] = time.perf_counter() - started


def _copy(checkpoint: Path, work: Path) -> None:
    subprocess.run(["cp", checkpoint, work / "copy"], check=True)
    subprocess.run(["sync", work / "copy"], check=True)
    subprocess.run(["sha256sum", work / "copy"], check=True, stdout=subprocess.DEVNULL)


def _write_base(folder: Path) -> Base:
    (folder / "transformer").mkdir(parents=True)
    (folder / "transformer" / "config.json").write_text(json.dumps(FLUX))
    index = {"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return read_base(folder)


def _write_checkpoint(path: Path, base: Base) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for module, target in targets(base, "transformer").items():
        if "transformer_blocks" in module and any(part in module for part in ("attn", "ff", "proj_")):
            a, b = (RANK, target.shape[1]), (target.shape[0], RANK)
            tensors[f"transformer.{module}.lora_A.weight"] = (torch.randn(a, generator=generator) * 0.02).bfloat16()
            tensors[f"transformer.{module}.lora_B.weight"] = (torch.randn(b, generator=generator) * 0.001).bfloat16()
    metadata = {"transformer.r": RANK, "transformer.lora_alpha": ALPHA}
    save_file(tensors, path, {"format": "pt", "lora_adapter_metadata": json.dumps(metadata)})


if __name__ == "__main__":
    main()
