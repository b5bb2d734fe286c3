"""`scale * kron(W1, W2)`: LoKr."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterline.deltas.base import full_rank
from adapterline.deltas.full import Full
from adapterline.deltas.low_rank import LowRank, in_float32

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Kronecker:
    """`scale * kron(W1, W2)` (LoKr), where W1 is `b1 @ a1` and W2 is `b2 @ a2`.

    `b1` is [p, r1], `a1` [r1, c], `b2` [q, r2], `a2` [r2, d, *kernel]; the weight is [p * q, c * d, *kernel]. A factor
    that is stored whole comes as itself and an identity (`whole`).
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
        """[p * q, c * d, *kernel]."""
        out = int(self.b1.shape[0]) * int(self.b2.shape[0])
        return (out, int(self.a1.shape[1]) * int(self.a2.shape[1]), *map(int, self.a2.shape[2:]))

    @property
    def needed_rank(self) -> int:
        """r1 * r2, or what any matrix of this size needs, if that is less."""
        return min(int(self.a1.shape[0]) * int(self.a2.shape[0]), full_rank(self.shape))

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """kron(W1, W2) x is W2 X W1^T, with x as the matrix X [d * kernel, c]."""
        import torch

        c, d = int(self.a1.shape[1]), int(self.a2.shape[1])
        first = self.b1.double() @ self.a1.double()
        second = self.b2.double() @ self.a2.double().flatten(1)
        inputs = x.double().reshape(c, d, -1, x.shape[1]).flatten(1, 2)  # [c, d * kernel, n]
        outputs = torch.einsum("pc,qe,cen->pqn", first, second, inputs)
        return outputs.flatten(0, 1) * self.scale

    def low_rank(self) -> LowRank:
        """kron(B1 @ A1, B2 @ A2) is kron(B1, B2) @ kron(A1, A2)."""
        if int(self.a1.shape[0]) * int(self.a2.shape[0]) > self.needed_rank:
            first, second = self.b1.double() @ self.a1.double(), self.b2.double() @ self.a2.double().flatten(1)
            weight = _kron(first, second.reshape(int(self.b2.shape[0]), *self.a2.shape[1:]))
            return Full(weight, self.scale, self.magnitude, self.bias).low_rank()
        b = _kron(self.b1.double(), self.b2.double())
        return in_float32(_kron(self.a1.double(), self.a2.double()), b, self)


def _kron(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """kron of a matrix with a matrix or kernel [out, in, *kernel]. torch.kron raises for some that were transposed."""
    out, width = int(first.shape[0] * second.shape[0]), int(first.shape[1] * second.shape[1])
    products = first.reshape(first.shape[0], 1, first.shape[1], 1, *[1] * (second.dim() - 2)) * second[None, :, None]
    return products.reshape(out, width, *second.shape[2:])
