"""What every form of a change has."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from adapterline.deltas.low_rank import LowRank


class Change(Protocol):
    """The change of one module's weight, in whatever form.

    `low_rank().apply(x)` is `apply(x)` but for the rounding of factors to float32, and `low_rank().rank` is at most
    `needed_rank`. The forms are dataclasses that have all this without inheriting it: a dataclass takes an inherited
    property for the default of its field.
    """

    @property
    def scale(self) -> float:
        """What the product of the tensors is multiplied by."""
        ...

    @property
    def magnitude(self) -> torch.Tensor | None:
        """DoRA's: one value for each output, in any shape. No part of `apply`."""
        ...

    @property
    def bias(self) -> torch.Tensor | None:
        """lora_B's, [out], which PEFT scales too. No part of `apply`."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """[out, in, *kernel] of the weight change, with the inputs of all groups of a grouped convolution."""
        ...

    @property
    def dtype(self) -> str:
        """What the factors of `low_rank` are stored as, by safetensors' name."""
        ...

    @property
    def needed_rank(self) -> int:
        """The rank of `low_rank`, told by the shapes alone."""
        ...

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """The additive part on inputs [in * prod(kernel), n], in float64: gives [out, n].

        Computed from the form's own definition, not from `low_rank`: the one is a witness of the other.
        """
        ...

    def low_rank(self) -> LowRank:
        """The same change as factors: products of entries, no decomposition, so the same on every machine."""
        ...


def full_rank(shape: tuple[int, ...]) -> int:
    """The largest rank that a change of this shape can have: min(out, in * prod(kernel))."""
    return min(shape[0], math.prod(shape[1:]))
