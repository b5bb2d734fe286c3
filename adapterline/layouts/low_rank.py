"""A LoRA's tensors as they are planned, once it is decided what is done to them, and what is then said of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from typing import Any

from adapterline.deltas import NAMES, LowRank
from adapterline.layouts.scale import Fold, torch_dtype
from adapterline.values import TensorPlan, Transform


def tensor_plans(delta: LowRank, done: Fold, keys: Mapping[str, str]) -> dict[str, TensorPlan]:
    """The tensors of one layer; `keys` names them by part: a, b, bias, magnitude."""
    return {key: _planned(delta, done, part) for part, key in keys.items() if getattr(delta, part) is not None}


def _planned(delta: LowRank, done: Fold, part: str) -> TensorPlan:
    tensor = getattr(delta, part)
    own = NAMES[str(tensor.dtype).removeprefix("torch.")]
    return TensorPlan(done.dtype or own, tuple(tensor.shape), partial(_stored, delta, done, part))


def _stored(delta: LowRank, done: Fold, part: str) -> Any:
    """One part alone, so that one tensor lies in memory."""
    alone = LowRank(
        a=delta.a if part == "a" else delta.a[:0],
        b=delta.b if part == "b" else delta.b[:0],
        scale=delta.scale,
        magnitude=delta.magnitude if part == "magnitude" else None,
        bias=delta.bias if part == "bias" else None,
        groups=delta.groups,
    )
    return getattr(alone.stored(done.shift, done.scale, torch_dtype(done.dtype)), part)


def transforms_of(
    component: str, deltas: Mapping[str, LowRank], folds: Mapping[str, Fold], requested: str | None
) -> list[Transform]:
    """What the manifest says of the folds of a component."""
    transforms = []
    by_scale = defaultdict(list)
    for module, delta in deltas.items():
        if delta.scale != folds[module].scale:
            by_scale[delta.scale].append(module)
    for scale, modules in sorted(by_scale.items()):
        everywhere = len(modules) == len(deltas)
        transforms.append(
            Transform(
                kind="fold-scale",
                detail=f"scale {scale:.12g} folded into the factors",
                component=component,
                modules=() if everywhere else tuple(sorted(modules)),
            )
        )
    if requested:
        transforms.append(Transform(kind="cast", detail=f"factors rounded to {requested}", component=component))
    if promoted := sorted(module for module, done in folds.items() if done.promoted):
        transforms.append(
            Transform(
                kind="store-fp32",
                detail="stored as F32: their dtype cannot hold the scaled factors closely enough",
                component=component,
                modules=tuple(promoted),
            )
        )
    return transforms
