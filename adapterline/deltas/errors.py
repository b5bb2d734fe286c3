"""How far one change is from another, without forming either."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from adapterline.deltas.base import Change
    from adapterline.deltas.low_rank import LowRank


def relative_error(carried: LowRank, wanted: LowRank) -> float:
    """|carried - wanted| / |wanted| of the two changes of a weight, by Frobenius norm, without forming them.

    Both have the same rank, and their factors correspond up to a power of two that may have moved from B to A. Then

        B'A' - BA = (B' - B 2^-k) A' + B 2^-k (A' - A 2^k)

    has terms that are small where the two agree, so that its norm, taken from Gram matrices in float64, loses nothing
    to cancellation. Infinite if `wanted` is zero and `carried` is not, or if something is not finite.
    """
    import torch

    if wanted.a.shape != carried.a.shape or wanted.b.shape != carried.b.shape or wanted.groups != carried.groups:
        return math.inf
    shift = power_between(wanted.a, carried.a)
    b, a = wanted.matrices()
    found_b, found_a = carried.matrices()
    b, a = b * math.ldexp(wanted.scale, -shift), a * math.ldexp(1.0, shift)
    off_b, off_a = found_b * carried.scale - b, found_a - a
    if bool(off_a.any()):
        difference = _norm(torch.cat([off_b, b], dim=1), torch.cat([a + off_a, off_a], dim=0))
    else:
        difference = _norm(off_b, a) if bool(off_b.any()) else 0.0  # half the rank: what is usual
    if difference == 0.0:
        return 0.0
    size = _norm(b, a)
    return difference / size if size and math.isfinite(difference) else math.inf


def exact_error(carried: LowRank, wanted: LowRank) -> float:
    """The same for factors that need not correspond: of other ranks, permuted, negated, rescaled.

        B'A' - BA = [B', -B] [A'; A]

    whose norm is that of R_B R_A^T, of the triangular factors of both. QR in float64 loses no more than about
    1e-15 |B| |A| to cancellation, so that factors that differ in rewriting alone come out below 1e-13.
    """
    import torch

    if carried.shape != wanted.shape:
        return math.inf
    b, a = wanted.matrices()
    found_b, found_a = carried.matrices()
    b, found_b = b * wanted.scale, found_b * carried.scale
    if not all(bool(factor.isfinite().all()) for factor in (b, a, found_b, found_a)):
        return math.inf
    # Columns of one size: else the larger ones' rounding errors would cover the smaller.
    b, a = _balanced(b, a)
    found_b, found_a = _balanced(found_b, found_a)
    left = torch.linalg.qr(torch.cat([found_b, -b], dim=1)).R
    right = torch.linalg.qr(torch.cat([found_a, a]).T).R
    difference, size = float((left @ right.T).norm()), _norm(b, a)
    if difference == 0.0:
        return 0.0
    return difference / size if size else math.inf


def probed_error(carried: Change, wanted: Change, probes: int = 16) -> float:
    """|(carried - wanted) X| / |wanted X| for a fixed Gaussian X [in * prod(kernel), probes].

    |D X|^2 / probes has the mean |D|^2 (Frobenius), and is at worst, for a D of rank 1, chi-squared distributed with
    `probes` degrees of freedom: with 16, it is below a tenth of its mean once in a million times. So an estimate is
    within a factor of about three of the relative Frobenius error: enough to tell rounding from a mistake.
    """
    import torch

    if carried.shape != wanted.shape:
        return math.inf
    generator = torch.Generator().manual_seed(20)
    x = torch.randn(math.prod(wanted.shape[1:]), probes, dtype=torch.float64, generator=generator)
    expected = wanted.apply(x)
    difference, size = float((carried.apply(x) - expected).norm()), float(expected.norm())
    if difference == 0.0:
        return 0.0
    return difference / size if size and math.isfinite(difference) else math.inf


def power_between(before: torch.Tensor, after: torch.Tensor) -> int:
    """The k for which `after` is `before * 2**k`, if there is one: read off the largest element. 0 for zero tensors."""
    if before.numel() == 0 or before.shape != after.shape:
        return 0
    index = before.abs().argmax()
    old, new = float(before.flatten()[index]), float(after.flatten()[index])
    if not (old and new and math.isfinite(old) and math.isfinite(new)):
        return 0
    return round(math.log2(abs(new / old)))


def _balanced(b: torch.Tensor, a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same product, with B and A of one norm."""
    ratio = float(b.norm()), float(a.norm())
    if not all(ratio):
        return b, a
    root = math.sqrt(ratio[1] / ratio[0])
    return b * root, a / root


def _norm(b: torch.Tensor, a: torch.Tensor) -> float:
    """The Frobenius norm of B @ A, as sqrt(trace((B^T B)(A A^T)))."""
    return math.sqrt(max(float(((b.T @ b) * (a @ a.T)).sum()), 0.0))
