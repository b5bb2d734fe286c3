"""How a scale is folded into the factors so that a consumer that knows no scale computes the same.

The scale is m * 2**e with m in [1, 2). Powers of two are exact in floating point as long as no element leaves the
normal range, so they are split between A and B to that end; m is rounded once, into B. fp16 with alpha 1 and rank 128
would otherwise drive B into subnormals (1-2 % of the effect at sigma(B) = 1e-4); bf16 rounds m with 8 bits (0.16 %).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterline.deltas import DTYPES, LowRank, relative_error
from adapterline.errors import ConversionError
from adapterline.validation import tolerances

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Fold:
    """What is done to one layer: A times 2**shift, B times the rest, so that `scale` is left; stored as `dtype`.

    `dtype` is safetensors' name of what A and B are stored as; None keeps each tensor's own.
    """

    shift: int
    scale: float
    dtype: str | None
    promoted: bool = False  # to fp32, because the dtype could not hold the scaled factors


def fold(delta: LowRank, requested: str | None) -> Fold:
    """The fold of one layer that leaves scale 1, in its own dtype or the requested one, or in fp32 if need be.

    The choice depends on counts and on a comparison with a wide margin, so it is the same on every machine.
    """
    if delta.scale == 1.0 and requested is None:
        return Fold(0, 1.0, None)
    shift = _best_shift(delta, requested)
    limit = tolerances.limit(requested or "F32", requested is not None)
    stored = delta.stored(shift, 1.0, torch_dtype(requested))
    if _fits(delta, stored) and relative_error(stored, delta) <= limit:
        return Fold(shift, 1.0, requested)
    if not _fits(delta, delta.stored(0, 1.0, torch_dtype("F32"))):
        raise ConversionError(
            f"A scale of {delta.scale:g} takes the factors out of the range of float32.",
            expected="an alpha and a rank as a trainer writes them",
            remedy="Check the alpha of the checkpoint.",
        )
    return Fold(0, 1.0, "F32", promoted=True)


def keep(delta: LowRank, requested: str | None) -> Fold:
    """No folding: the scale stays in the header, the factors are at most cast."""
    if requested is None:
        return Fold(0, delta.scale, None)
    stored = delta.stored(0, delta.scale, torch_dtype(requested))
    if _fits(delta, stored) and relative_error(stored, delta) <= tolerances.limit(requested, True):
        return Fold(0, delta.scale, requested)
    return Fold(0, delta.scale, "F32", promoted=True)


def torch_dtype(name: str | None) -> torch.dtype | None:
    """torch's dtype for safetensors' name; None for None."""
    import torch

    return None if name is None else getattr(torch, DTYPES[name])


def _best_shift(delta: LowRank, requested: str | None) -> int:
    """The power of two for A that costs the fewest elements bits; of equals, the one that moves A least."""
    exponent = math.frexp(delta.scale)[1] - 1
    dtype = torch_dtype(requested)
    best, fewest = 0, None
    for step in range(abs(exponent) + 1):
        shift = step if exponent >= 0 else -step
        lost = _lost(delta.a, math.ldexp(1.0, shift), dtype)
        lost += _lost(delta.b, math.ldexp(delta.scale, -shift), dtype)
        if fewest is None or lost < fewest:
            best, fewest = shift, lost
        if lost == 0:
            break
    return best


def _lost(tensor: torch.Tensor, factor: float, dtype: torch.dtype | None) -> int:
    """How many elements leave the normal range of the dtype that they are stored in, either way."""
    import torch

    if factor == 1.0 and dtype is None:
        return 0
    info = torch.finfo(dtype or tensor.dtype)
    size = tensor.abs()
    largest = float(size.max()) * factor
    smallest = float(torch.where(size > 0, size, torch.inf).min()) * factor
    if info.tiny <= smallest and largest <= info.max:
        return 0  # as nearly always but in fp16
    size = size.double() * factor
    small = (size < info.tiny) & (tensor != 0)
    if dtype is None:
        small &= tensor.abs() >= info.tiny  # what is subnormal already is not lost by this
    return int(small.sum()) + int((size > info.max).sum())


def _fits(before: LowRank, after: LowRank) -> bool:
    """False if something overflowed, or if a factor as a whole sank below the normal range."""
    import torch

    for old, new in ((before.a, after.a), (before.b, after.b), (before.bias, after.bias)):
        if old is None or new is None or old.numel() == 0:
            continue
        largest = float(new.double().abs().max())
        if not math.isfinite(largest) and bool(old.isfinite().all()):
            return False
        if largest < torch.finfo(new.dtype).tiny and bool((old != 0).any()):
            return False
    return True
