"""Some output rows of a change: a layer that a checkpoint has fused with others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from adapterline.deltas.full import Full
from adapterline.deltas.hadamard import Hadamard
from adapterline.deltas.kronecker import Kronecker
from adapterline.deltas.low_rank import LowRank

if TYPE_CHECKING:
    import torch

#: (start, stop) of rows.
Ranges = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Rows:
    """Some output rows of another change, in a given order: one of the layers that a checkpoint has fused into one.

    `ranges` are of `whole`. A LowRank is never wrapped: its rows are a LowRank (`factor_rows`).
    """

    whole: Hadamard | Kronecker | Full
    ranges: Ranges

    dtype = "F32"

    @property
    def scale(self) -> float:
        """The fused layer's."""
        return self.whole.scale

    @property
    def magnitude(self) -> torch.Tensor | None:
        """The rows' part of the fused layer's."""
        return _values(self.whole.magnitude, self.ranges)

    @property
    def bias(self) -> torch.Tensor | None:
        """The rows' part of the fused layer's."""
        return _values(self.whole.bias, self.ranges)

    @property
    def shape(self) -> tuple[int, ...]:
        """As many outputs as rows."""
        return (sum(stop - start for start, stop in self.ranges), *self.whole.shape[1:])

    @property
    def needed_rank(self) -> int:
        """The fused layer's."""
        return self.whole.needed_rank

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """The rows of what the fused layer gives."""
        import torch

        outputs = self.whole.apply(x)
        return torch.cat([outputs[start:stop] for start, stop in self.ranges])

    def low_rank(self) -> LowRank:
        """The same rows of the fused layer's low-rank form."""
        return factor_rows(self.whole.low_rank(), self.ranges)


def factor_rows(delta: LowRank, ranges: Ranges) -> LowRank:
    """The rows of B, and A as it is but for what meets columns of B that are zero now. TypeError for a grouped B."""
    if delta.groups > 1:
        raise TypeError("a grouped convolution is never fused")
    b = _rows(delta.b, ranges)
    magnitude, bias = _values(delta.magnitude, ranges), _values(delta.bias, ranges)
    used = b.flatten(1).any(dim=0)
    if bool(used.any()) and not bool(used.all()):
        # A trainer's converter fuses layers by putting their B side by side on a diagonal: this undoes it.
        return replace(delta, a=delta.a[used], b=b[:, used], magnitude=magnitude, bias=bias)
    return replace(delta, b=b, magnitude=magnitude, bias=bias)


def _rows(tensor: torch.Tensor, ranges: Ranges) -> torch.Tensor:
    import torch

    return torch.cat([tensor[start:stop] for start, stop in ranges])


def _values(tensor: torch.Tensor | None, ranges: Ranges) -> torch.Tensor | None:
    """The same of what has one value for each row, in any shape."""
    return None if tensor is None else _rows(tensor.flatten(), ranges)
