"""`scale * B @ A`: LoRA, LoCon, and with a magnitude DoRA. What is written, whatever the trainer's form was."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterline.deltas.dtypes import NAMES, times

if TYPE_CHECKING:
    import torch

    from adapterline.deltas.base import Change


@dataclass(frozen=True)
class LowRank:
    """`scale * B @ A`, with what DoRA and lora_bias add.

    `a` is [rank, in, *kernel] and `b` is [out, rank / groups] or, for a convolution, [out, rank / groups, 1, ...], as
    PEFT stores them. With `groups`, B is a grouped convolution: outputs of group g see the g-th part of A's rows alone,
    while A sees all inputs (peft.tuners.lora.layer._ConvNd.update_layer).
    """

    a: torch.Tensor
    b: torch.Tensor
    scale: float
    magnitude: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    groups: int = 1

    @property
    def rank(self) -> int:
        """The inner size of B @ A."""
        return int(self.a.shape[0])

    @property
    def needed_rank(self) -> int:
        """Its own."""
        return self.rank

    @property
    def shape(self) -> tuple[int, ...]:
        """B's outputs, A's inputs."""
        return (int(self.b.shape[0]), *map(int, self.a.shape[1:]))

    @property
    def dtype(self) -> str:
        """A's."""
        return NAMES[str(self.a.dtype).removeprefix("torch.")]

    def low_rank(self) -> LowRank:
        """Itself."""
        return self

    def matrices(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(B [out, rank], A [rank, in * prod(kernel)]) in float64, unscaled; a grouped B with its zeros."""
        import torch

        a, b = self.a.double().flatten(1), self.b.double().flatten(1)
        if self.groups > 1:
            b = torch.block_diag(*b.chunk(self.groups))  # type: ignore[no-untyped-call]
        return b, a

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """B (A x)."""
        b, a = self.matrices()
        return (b @ (a @ x.double())) * self.scale

    def stored(self, shift: int, scale: float, dtype: torch.dtype | None = None) -> LowRank:
        """The same change with A times 2**shift and B times what is then left to `scale`, each rounded once.

        The dtype is each tensor's own unless one is given. The magnitude is kept, and rounded to `dtype`.
        """
        factor = self.scale / scale
        return LowRank(
            a=times(self.a, math.ldexp(1.0, shift), dtype),
            b=times(self.b, math.ldexp(factor, -shift), dtype),
            scale=scale,
            magnitude=None if self.magnitude is None else times(self.magnitude, 1.0, dtype),
            bias=None if self.bias is None else times(self.bias, factor, dtype),
            groups=self.groups,
        )


def in_float32(a: torch.Tensor, b: torch.Tensor, of: Change) -> LowRank:
    """The factors a [rank, in, *kernel] and b [out, rank], with the scale, magnitude and bias of the change `of`.

    float32: the product of two 16-bit floats is exact in it, that of two 32-bit ones is rounded once.
    """
    b = b.reshape(*b.shape, *[1] * (a.dim() - 2))
    return LowRank(a.float(), b.float(), of.scale, of.magnitude, of.bias)
