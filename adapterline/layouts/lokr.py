"""LoKr kept as LoKr, for the families whose loaders take it: FLUX.2 and Z-Image (`--keep-form`).

    {component}.{module}.lokr_w1, or lokr_w1_a and lokr_w1_b;  lokr_w2 likewise

diffusers infers peft's LoKrConfig from the shapes and sets alpha to the rank (utils.peft_utils._create_lokr_config), so
the scale is folded into the left factor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from adapterline.deltas import NAMES, Kronecker, times
from adapterline.errors import ConversionError
from adapterline.layouts.scale import torch_dtype
from adapterline.values import TensorPlan

if TYPE_CHECKING:
    import torch


def lokr_tensors(stem: str, delta: Kronecker, requested: str | None) -> dict[str, TensorPlan]:
    """The tensors of one layer, by key. ConversionError for what LoKr of diffusers has no place for."""
    if delta.magnitude is not None or delta.bias is not None:
        raise ConversionError(
            f"{stem} has a {'DoRA magnitude' if delta.bias is None else 'bias'} beside its LoKr factors.",
            expected="LoKr alone, with --keep-form",
            remedy="Leave --keep-form out: as LoRA it can be carried.",
        )
    if len(delta.shape) > 2:
        raise ConversionError(
            f"{stem} is a convolution, and diffusers infers the form of LoKr for linear layers alone.",
            expected="linear layers, with --keep-form",
            remedy="Leave --keep-form out: as LoRA it can be carried.",
        )
    left, right = factors(delta.a1, delta.b1), factors(delta.a2, delta.b2)
    plans = {}
    for number, parts in ((1, left), (2, right)):
        for place, (suffix, tensor) in enumerate(parts.items()):
            factor = delta.scale if number == 1 and place == 0 else 1.0
            plans[f"{stem}.lokr_w{number}{suffix}"] = _planned(tensor, factor, requested)
    return plans


def factors(a: torch.Tensor, b: torch.Tensor) -> dict[str, torch.Tensor]:
    """{"": the matrix} of a factor that is whole, one of its halves being an identity; else {"_a": b, "_b": a}."""
    if _is_identity(b):
        return {"": a}
    return {"": b} if _is_identity(a) else {"_a": b, "_b": a}


def _is_identity(matrix: torch.Tensor) -> bool:
    import torch

    return matrix.shape[0] == matrix.shape[1] and torch.equal(matrix, torch.eye(len(matrix), dtype=matrix.dtype))


def _planned(tensor: torch.Tensor, factor: float, requested: str | None) -> TensorPlan:
    """A factor that is no power of two is rounded once, into float32 unless another dtype was asked for."""
    own = NAMES[str(tensor.dtype).removeprefix("torch.")]
    exact = math.frexp(abs(factor))[0] == 0.5
    dtype = requested or (own if exact else "F32")
    make: Callable[[], torch.Tensor] = partial(times, tensor.contiguous(), factor, torch_dtype(dtype))
    return TensorPlan(dtype, tuple(map(int, tensor.shape)), make)


def is_lokr(deltas: Mapping[str, object]) -> bool:
    """Are all layers of a component to be written as LoKr?"""
    return bool(deltas) and all(isinstance(delta, Kronecker) for delta in deltas.values())
