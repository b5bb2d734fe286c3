"""The writer against the library's, and against the copy of a file: `python -m benchmarks.serialize`.

The adapter is one for FLUX of rank 64 in bf16: 838 tensors, 523 MB, memory-mapped from a file that lies in the page
cache. Each way of writing it gets a process of its own and starts on a disk with nothing left to write. What they do
differs, and so the table says what it is: only the canonical writer hashes, syncs and gives the same bytes twice.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from adapterline.serialize import write_safetensors
from adapterline.values import TensorPlan

ROUNDS = 3
RANK = 64


def flux_modules() -> Iterator[tuple[str, int, int]]:
    """Name, inputs and outputs of the modules that a FLUX adapter usually covers."""
    yield "x_embedder", 64, 3072
    for block in range(19):
        for name in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"):
            yield f"transformer_blocks.{block}.attn.{name}", 3072, 3072
        for name in ("ff", "ff_context"):
            yield f"transformer_blocks.{block}.{name}.net.0.proj", 3072, 12288
            yield f"transformer_blocks.{block}.{name}.net.2", 12288, 3072
    for block in range(38):
        for name in ("to_q", "to_k", "to_v"):
            yield f"single_transformer_blocks.{block}.attn.{name}", 3072, 3072
        yield f"single_transformer_blocks.{block}.proj_mlp", 3072, 12288
        yield f"single_transformer_blocks.{block}.proj_out", 15360, 3072


def write_source(path: Path) -> None:
    import torch

    def plan(*shape: int) -> TensorPlan:
        return TensorPlan("BF16", shape, lambda: torch.randn(shape, dtype=torch.float32).to(torch.bfloat16))

    tensors = {}
    for name, inputs, outputs in flux_modules():
        tensors[f"transformer.{name}.lora_A.weight"] = plan(RANK, inputs)
        tensors[f"transformer.{name}.lora_B.weight"] = plan(outputs, RANK)
    write_safetensors(path, tensors, {})


# --- the ways, each with the source open ------------------------------------------------------------------------------


def canonical(source: Path, target: Path) -> None:
    import safetensors

    with safetensors.safe_open(source, "pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        tensors = {
            name: TensorPlan("BF16", shape, lambda name=name: file.get_tensor(name))  # type: ignore[misc]
            for name, shape in shapes.items()
        }
        write_safetensors(target, tensors, {})


def library(source: Path, target: Path) -> None:
    import safetensors.torch

    safetensors.torch.save_file(safetensors.torch.load_file(source), target)


def library_synced_and_hashed(source: Path, target: Path) -> None:
    library(source, target)
    with open(target, "rb") as file:
        os.fsync(file.fileno())
        hashlib.file_digest(file, "sha256")
        file.seek(0)
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        hashlib.file_digest(file, "sha256")


def coreutils(source: Path, target: Path) -> None:
    subprocess.run(["cp", source, target], check=True)
    subprocess.run(["sync", target], check=True)
    subprocess.run(["sha256sum", target], check=True, stdout=subprocess.DEVNULL)


WAYS: dict[str, tuple[str, Callable[[Path, Path], None]]] = {
    "canonical": ("adapterline: canonical, both hashes, fsync", canonical),
    "library": ("save_file: no hash, no fsync", library),
    "library_synced_and_hashed": ("save_file, then fsync and both hashes", library_synced_and_hashed),
    "coreutils": ("cp, sync, sha256sum", coreutils),
}


def anonymous_bytes(process: int) -> int:
    """0 once it has ended."""
    status = Path(f"/proc/{process}/status").read_text()
    return next((int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("RssAnon:")), 0)


def measure(way: str, source: Path, target: Path) -> dict[str, float]:
    """Seconds, and the bytes of anonymous memory that the imports had taken before."""
    import safetensors.torch  # noqa: F401

    before = anonymous_bytes(os.getpid())
    start = time.perf_counter()
    WAYS[way][1](source, target)
    return {"seconds": time.perf_counter() - start, "before": before}


def in_a_process(way: str, source: Path, target: Path) -> dict[str, float]:
    """Seconds, and the peak of anonymous memory over what the imports had taken.

    It is sampled every 2 ms from outside: a thread of the process itself sees nothing while the library keeps the
    interpreter lock.
    """
    os.sync()
    command = [sys.executable, "-m", "benchmarks.serialize", way, str(source), str(target)]
    peak = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        while process.poll() is None:
            peak = max(peak, anonymous_bytes(process.pid))
            time.sleep(0.002)
        assert process.stdout is not None
        found: dict[str, float] = json.loads(process.stdout.read())
    target.unlink()
    return {"seconds": found["seconds"], "peak": peak - found["before"]}


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="adapterline-bench-") as name:
        source, target = Path(name, "source.safetensors"), Path(name, "target.safetensors")
        write_source(source)
        size = source.stat().st_size
        runs = [{way: in_a_process(way, source, target) for way in WAYS} for _ in range(ROUNDS)]
    print(f"serialize: {size / 1e6:.0f} MB, {2 * sum(1 for _ in flux_modules())} tensors; medians of {ROUNDS} rounds")
    print(f"{'':44} {'seconds':>8} {'MB/s':>6} {'ratio':>6} {'peak anonymous MB':>18}")
    for way, (title, _) in WAYS.items():
        seconds = statistics.median(run[way]["seconds"] for run in runs)
        ratio = statistics.median(run[way]["seconds"] / run["canonical"]["seconds"] for run in runs)
        peak = f"{max(run[way]['peak'] for run in runs) / 1e6:.0f}" if way != "coreutils" else "-"
        print(f"{title:44} {seconds:8.2f} {size / seconds / 1e6:6.0f} {ratio:6.2f} {peak:>18}")


if __name__ == "__main__":
    if sys.argv[1:]:
        print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))))
    else:
        main()
