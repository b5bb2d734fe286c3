"""`scale * (B1 @ A1) * (B2 @ A2)`: LoHa."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterline.deltas.base import full_rank
from adapterline.deltas.full import Full
from adapterline.deltas.low_rank import LowRank, in_float32

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Hadamard:
    """`scale * (B1 @ A1) * (B2 @ A2)`, element by element (LoHa).

    `a1`, `a2` are [rank, in, *kernel] and `b1`, `b2` are [out, rank]; the two ranks may differ. A Tucker core is folded
    into them before (`tucker`).
    """

    a1: torch.Tensor
    b1: torch.Tensor
    a2: torch.Tensor
    b2: torch.Tensor
    scale: float
    magnitude: torch.Tensor | None = None
    bias: torch.Tensor | None = None

    dtype = "F32"

    @property
    def shape(self) -> tuple[int, ...]:
        """That of either product."""
        return (int(self.b1.shape[0]), *map(int, self.a1.shape[1:]))

    @property
    def needed_rank(self) -> int:
        """r1 * r2, or what any matrix of this size needs, if that is less."""
        return min(int(self.a1.shape[0]) * int(self.a2.shape[0]), full_rank(self.shape))

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """The products are formed, and then their product."""
        return (self._weight() @ x.double()) * self.scale

    def low_rank(self) -> LowRank:
        """The Khatri-Rao form: row (i, j) of A is a1[i] * a2[j], column (i, j) of B is b1[:, i] * b2[:, j]."""
        ranks = int(self.a1.shape[0]) * int(self.a2.shape[0])
        if ranks > self.needed_rank:
            weight = self._weight().reshape(self.shape)
            return Full(weight, self.scale, self.magnitude, self.bias).low_rank()
        a = (self.a1.double().unsqueeze(1) * self.a2.double().unsqueeze(0)).flatten(0, 1)
        b = (self.b1.double().unsqueeze(2) * self.b2.double().unsqueeze(1)).flatten(1)
        return in_float32(a, b, self)

    def _weight(self) -> torch.Tensor:
        first = self.b1.double() @ self.a1.double().flatten(1)
        return first * (self.b2.double() @ self.a2.double().flatten(1))
