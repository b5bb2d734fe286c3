"""Small packages to publish: real files, and a manifest with plausible values."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from adapterline.package.card import CARD_NAME
from adapterline.package.card_section import compose_card
from adapterline.values import (
    WEIGHT_NAME,
    BaseSummary,
    Bundle,
    Check,
    ComponentSummary,
    ExportedFile,
    LoadCall,
    Manifest,
    Order,
    Package,
    PackagedFile,
    SourceSummary,
    TrainingRun,
    ValidationReport,
)


def make_package(
    folder: Path,
    seed: int = 0,
    *,
    name: str = "tiny",
    tool: str = "1",
    size: int = 64,
    configs: Mapping[str, bytes] | None = None,
    run: TrainingRun | None = None,
) -> Package:
    """A package in `folder`. Another `seed` gives another bundle, another `tool` another manifest and card of the same.

    `size` is the number of float32 in the larger of two tensors. Beside the weights it has `configs`, path -> bytes:
    small files that no LFS pattern of the Hub matches.
    """
    values = np.random.default_rng(seed)
    tensors = {
        "unet.mid.lora_A.weight": values.standard_normal((4, size // 4), dtype=np.float32),
        "unet.mid.lora_B.weight": values.standard_normal((8, 4), dtype=np.float32),
    }
    contents = {WEIGHT_NAME: save(tensors), **(configs or {})}
    manifest = manifest_of(tuple(_exported(path, data) for path, data in contents.items()), name, tool, run)
    card = compose_card("---\ntags:\n- lora\n---\n", f"# {name}\n\nMade by tool {tool}, seed {seed}.")
    for path, data in {**contents, CARD_NAME: card}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    files = [PackagedFile(path=file.path, size=file.size, sha256=file.sha256) for file in manifest.files]
    files.append(PackagedFile(path=CARD_NAME, size=len(card), sha256=hashlib.sha256(card).hexdigest()))
    return Package(manifest=manifest, manifest_bytes=manifest.to_bytes(), folder=folder, files=tuple(files))


def _exported(path: str, data: bytes) -> ExportedFile:
    weights = path.endswith(".safetensors")
    payload = data[8 + int.from_bytes(data[:8], "little") :] if weights else data
    return ExportedFile(
        role="weights" if weights else "config",
        layout="diffusers",
        path=path,
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        tensors_sha256=hashlib.sha256(payload).hexdigest(),
    )


def manifest_of(
    files: tuple[ExportedFile, ...], name: str = "tiny", tool: str = "1", run: TrainingRun | None = None
) -> Manifest:
    """Of these files."""
    digest = Bundle.digest_of(files)
    check = Check(name="effect", component="unet", observed=0.0, limit=5e-4, passed=True)
    return Manifest(
        name=name,
        digest=digest,
        family="sd15",
        source=SourceSummary(
            name="checkpoint-7", digest=hashlib.sha256(b"source").hexdigest(), container="safetensors", dialect="peft"
        ),
        training_run=run,
        base=BaseSummary(architecture=hashlib.sha256(b"architecture").hexdigest(), pipeline="StableDiffusionPipeline"),
        files=files,
        components={
            "unet": ComponentSummary(rank=4, alpha=4, modules=1, adapter_type="lora", dtype="F32", parameters=96)
        },
        transforms=(),
        left_out=(),
        validation=ValidationReport(bundle_digest=digest, checks=(check,)),
        loads=(LoadCall(pipeline="StableDiffusionPipeline", method="load_lora_weights", weight_name=WEIGHT_NAME),),
        consumers={WEIGHT_NAME: ("diffusers",)},
        tools={"adapterline": tool},
    )


def order_of(day: int) -> Order:
    """The order of a training run that finished on that day of a month."""
    return Order(finished_at=datetime(2026, 5, day, tzinfo=UTC))
