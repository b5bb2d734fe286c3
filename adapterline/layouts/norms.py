"""Norm weights go into the file of their component, as whole values under the model's own names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from adapterline.deltas import NAMES
from adapterline.errors import ConversionError
from adapterline.families import Family
from adapterline.values import FilePlan, TensorPlan, Transform

if TYPE_CHECKING:
    import torch

Norms = Mapping[str, Mapping[str, "torch.Tensor"]]


def with_norms(files: tuple[FilePlan, ...], norms: Norms, family: Family) -> tuple[FilePlan, ...]:
    """The files with the norm weights of their components. ConversionError for a layout that has no place for them."""
    other = next((file.layout for file in files if file.layout != "diffusers"), None)
    if other and any(norms.values()):
        raise ConversionError(
            f"The adapter replaces weights of norms, and files of the {other} layout cannot carry them.",
            expected="the diffusers layout alone",
            remedy=f"Leave the {other} layout out.",
        )
    added: dict[str, dict[str, TensorPlan]] = {}
    for component, weights in norms.items():
        described = family.component(component)
        if described is not None:
            plans = {f"{described.key_prefix}.{name}": _plan(weight) for name, weight in weights.items()}
            added.setdefault(described.file, {}).update(plans)
    return tuple(
        replace(file, tensors={**file.tensors, **added[file.path]}) if file.path in added else file for file in files
    )


def norm_transforms(norms: Norms) -> tuple[Transform, ...]:
    """What a reader of the manifest must know: loading changes the base itself."""
    return tuple(
        Transform(
            kind="replace-norms",
            detail=f"{len(weights)} weights of norms take the place of the base's when the file is loaded",
            component=component,
            modules=tuple(sorted(name.removesuffix(".weight") for name in weights)),
        )
        for component, weights in sorted(norms.items())
        if weights
    )


def _plan(weight: torch.Tensor) -> TensorPlan:
    make: Callable[[], torch.Tensor] = weight.contiguous
    return TensorPlan(NAMES[str(weight.dtype).removeprefix("torch.")], tuple(map(int, weight.shape)), make)
