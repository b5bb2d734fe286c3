"""Changes of grouped convolutions, whose outputs see the inputs of their own group alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from adapterline.deltas.low_rank import LowRank, in_float32

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Ungrouped:
    """A LowRank on a grouped convolution, by a trainer whose B is not grouped: every output sees all rows of A."""

    whole: LowRank
    groups: int

    dtype = "F32"
    magnitude = None

    @property
    def scale(self) -> float:
        """That of the factors."""
        return self.whole.scale

    @property
    def bias(self) -> torch.Tensor | None:
        """That of the factors."""
        return self.whole.bias

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the factors."""
        return self.whole.shape

    @property
    def needed_rank(self) -> int:
        """Each group needs rows of A for itself: A's, or one for each of its outputs if those are fewer."""
        return self.groups * min(self.whole.rank, self.shape[0] // self.groups)

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """What the factors give."""
        return self.whole.apply(x)

    def low_rank(self) -> LowRank:
        """The same with B in groups."""
        return grouped(self.whole, self.groups)


@dataclass(frozen=True)
class GroupedKernel:
    """`scale * W` on a grouped convolution: W is [out, in / groups, *kernel], as the layer's own weight."""

    weight: torch.Tensor
    scale: float
    groups: int
    bias: torch.Tensor | None = None
    magnitude: torch.Tensor | None = None  # of a depthwise one alone: elsewhere PEFT's norm is of another matrix

    dtype = "F32"

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's, with the inputs of all groups."""
        out, width, *kernel = map(int, self.weight.shape)
        return (out, width * self.groups, *kernel)

    @property
    def needed_rank(self) -> int:
        """A row of A for each output."""
        return int(self.weight.shape[0])

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """Each group's outputs from its own inputs."""
        import torch

        weights, parts = self.weight.double().flatten(1).chunk(self.groups), x.double().chunk(self.groups)
        return torch.cat([weight @ part for weight, part in zip(weights, parts, strict=True)]) * self.scale

    def low_rank(self) -> LowRank:
        """Rows of A that are zero but for their group's inputs, and B an identity in each group."""
        a, b = spread(self.weight.double(), self.groups)
        b = b.reshape(*b.shape, *[1] * (a.dim() - 2))
        return LowRank(a.float(), b.float(), self.scale, self.magnitude, self.bias, self.groups)


def grouped(delta: LowRank, groups: int) -> LowRank:
    """The same change with B as a grouped convolution's, for a trainer whose outputs see all of A's rows.

    Each group gets rows of A for itself: A's, or, where a group has fewer outputs than A has rows, one for each output.
    So the rank is groups * min(rank, out / groups).
    """
    import torch

    if delta.groups == groups:
        return delta
    if delta.groups != 1:
        raise ValueError(f"a B of {delta.groups} groups cannot become one of {groups}")
    out = int(delta.b.shape[0]) // groups
    if delta.rank <= out:
        return replace(delta, a=delta.a.repeat(groups, *[1] * (delta.a.dim() - 1)), groups=groups)
    b, a = delta.matrices()
    rows = (b @ a).reshape(-1, *delta.a.shape[1:])
    return replace(in_float32(rows, torch.eye(out, dtype=torch.float64).repeat(groups, 1), delta), groups=groups)


def spread(kernel: torch.Tensor, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(A, B) of the kernel [out, in / groups, *kernel] of a grouped convolution: B is grouped, A sees all inputs.

    A has a row for each output, zero but for its group's inputs; the rank is out.
    """
    import torch

    out, width = int(kernel.shape[0]), int(kernel.shape[1])
    a = kernel.new_zeros(out, width * groups, *kernel.shape[2:])
    for group in range(groups):
        rows = slice(group * out // groups, (group + 1) * out // groups)
        a[rows, group * width : (group + 1) * width] = kernel[rows]
    return a, torch.eye(out // groups, dtype=kernel.dtype).repeat(groups, 1)
