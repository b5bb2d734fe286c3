"""What a request leaves open, decided: the name, the base, the destinations, and the order among exports of a name."""

from __future__ import annotations

import re

from adapterline.errors import FamilyError, UsageError
from adapterline.values import Order, Source, TrainingRun, check_name, make_name

#: File and folder names that say nothing of what was trained: the folder around them does.
_GENERIC = re.compile(
    r"pytorch_lora_weights|adapter_model|model|lora|weights|checkpoint-\d+|out|output|final|unet|transformer"
)
_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")


def name_of(name: str | None, checkpoint: str) -> str:
    """The given name, or the checkpoint's file or folder stem made a name. UsageError if it cannot be used."""
    if name is not None:
        return check_name(name)
    parts = [part for part in checkpoint.partition("://")[2].split("/") or [] if part] or [
        part for part in checkpoint.split("/") if part
    ]
    for part in reversed(parts):
        stem = next((part.removesuffix(suffix) for suffix in _SUFFIXES if part.endswith(suffix)), part)
        if not _GENERIC.fullmatch(stem):
            return make_name(stem)
    return make_name(parts[-1] if parts else "")


def base_of(base: str | None, source: Source, run: TrainingRun | None) -> str:
    """The base to prove on: what was asked for, else what the run or the checkpoint says. FamilyError without any."""
    stated = base or (run.base_model if run else None) or source.stated_base
    if stated is None:
        raise FamilyError(
            f"Nothing in {source.name} says which base it was trained on.",
            expected="a base model",
            remedy="Pass --base with a diffusers pipeline folder or a Hub id.",
        )
    return stated


def check_destinations(to: tuple[str, ...], name: str) -> tuple[str, ...]:
    """Every destination once. UsageError for one that cannot be, before anything is read."""
    from adapterline.destinations import open_destination

    for uri in to:
        if not uri.strip():
            raise UsageError("An empty destination was given.", expected="a folder, s3://bucket/prefix or hf://org")
        open_destination(uri, name)
    return tuple(dict.fromkeys(to))


def order_of(source: Source, run: TrainingRun | None) -> Order:
    """When and where in training it was made; without a run, when the checkpoint was last written."""
    step = run.step if run and run.step is not None else source.step
    return Order(
        finished_at=(run.finished_at if run else None) or source.modified_at,
        step=-1 if step is None else step,
        run_id=(run.run_id if run else None) or "",
    )
