"""`Delta`, one of the forms, and what is done to one whatever its form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from adapterline.deltas.full import Full
from adapterline.deltas.groups import GroupedKernel, Ungrouped
from adapterline.deltas.hadamard import Hadamard
from adapterline.deltas.kronecker import Kronecker
from adapterline.deltas.low_rank import LowRank
from adapterline.deltas.rows import Rows, factor_rows

Delta = LowRank | Hadamard | Kronecker | Full | Rows | Ungrouped | GroupedKernel


def take_rows(delta: Delta, ranges: Sequence[tuple[int, int]]) -> Delta:
    """The change of these output rows alone, in the order of `ranges`. A is shared; columns of B that are zero go."""
    match delta:
        case LowRank():
            return factor_rows(delta, tuple(ranges))
        case Hadamard() | Kronecker() | Full():
            return Rows(delta, tuple(ranges))
    raise TypeError("rows are taken of a fused layer, once, and a grouped convolution is never fused")


def reshaped(delta: Delta, tail: tuple[int, ...]) -> Delta:
    """The same change with inputs that are shaped [in, *kernel] as in `tail`: some trainers store kernels flattened."""
    if delta.shape[1:] == tail or math.prod(delta.shape[1:]) != math.prod(tail):
        return delta
    ones = [1] * (len(tail) - 1)
    match delta:
        case LowRank():
            return replace(delta, a=delta.a.reshape(-1, *tail), b=delta.b.reshape(*delta.b.shape[:2], *ones))
        case Hadamard():
            return replace(delta, a1=delta.a1.reshape(-1, *tail), a2=delta.a2.reshape(-1, *tail))
        case Kronecker() if tail[0] % int(delta.a1.shape[1]) == 0:
            return replace(delta, a2=delta.a2.reshape(-1, tail[0] // int(delta.a1.shape[1]), *tail[1:]))
        case Full():
            return replace(delta, weight=delta.weight.reshape(-1, *tail))
    return delta
