"""How near a change of a smaller rank comes, and the one that comes nearest."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from adapterline.deltas.low_rank import LowRank, in_float32

if TYPE_CHECKING:
    from adapterline.deltas.base import Change


def approximate(delta: Change, rank: int) -> tuple[LowRank, float]:
    """(the closest change of this rank, its relative error by Frobenius norm), by a singular value decomposition.

    The factors share the singular values' square roots and are stored as float32.
    """
    import torch

    exact = delta.low_rank()
    b, a = exact.matrices()
    left, core_b = torch.linalg.qr(b)
    right, core_a = torch.linalg.qr(a.T)
    u, singular, v = torch.linalg.svd(core_b @ core_a.T)
    total = float(singular.square().sum())
    error = math.sqrt(float(singular[rank:].square().sum()) / total) if total else 0.0
    root = singular[:rank].sqrt()
    near_b, near_a = (left @ u[:, :rank]) * root, (right @ v[:rank].T * root).T
    return in_float32(near_a.reshape(-1, *exact.shape[1:]), near_b, exact), error


def smallest_error(delta: Change, rank: int) -> float:
    """The relative error by Frobenius norm that no change of this rank can stay below (Eckart and Young)."""
    import torch

    b, a = delta.low_rank().matrices()
    core = torch.linalg.qr(b).R @ torch.linalg.qr(a.T).R.T
    singular = torch.linalg.svdvals(core).square()
    total = float(singular.sum())
    return math.sqrt(float(singular[rank:].sum()) / total) if total else 0.0
