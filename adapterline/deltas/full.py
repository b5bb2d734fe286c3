"""`scale * W`: a difference of whole weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterline.deltas.base import full_rank
from adapterline.deltas.low_rank import LowRank, in_float32

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Full:
    """`scale * W`: the difference of a whole weight, [out, in, *kernel]."""

    weight: torch.Tensor
    scale: float
    magnitude: torch.Tensor | None = None
    bias: torch.Tensor | None = None

    dtype = "F32"

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's."""
        return tuple(map(int, self.weight.shape))

    @property
    def needed_rank(self) -> int:
        """What any matrix of this size needs: min(out, in * prod(kernel))."""
        return full_rank(self.shape)

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """W x."""
        return (self.weight.double().flatten(1) @ x.double()) * self.scale

    def low_rank(self) -> LowRank:
        """The weight itself and an identity, on the side where that is smaller."""
        import torch

        out, width = self.shape[0], math.prod(self.shape[1:])
        identity = torch.eye(min(out, width), dtype=torch.float64)
        if out <= width:
            return in_float32(self.weight.double(), identity, self)
        return in_float32(identity.reshape(width, *self.shape[1:]), self.weight.double().flatten(1), self)
