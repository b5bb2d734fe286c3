"""The change of one module's weight, as an adapter states it, and its exact algebra.

Weights are matrices here: a convolution's kernel [out, in, *k] counts as [out, in * prod(k)], as `torch.nn.Unfold` sees
it. So A is [rank, in * prod(k)] and B is [out, rank] whatever the layer, and the change is `scale * B @ A`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterline.errors import ConversionError

if TYPE_CHECKING:
    import torch

#: safetensors' names of the floating point dtypes in which factors are stored, and torch's.
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
#: The same the other way round.
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class LowRank:
    """`scale * B @ A`, with what DoRA and lora_bias add.

    `a` is [rank, in, *kernel] and `b` is [out, rank] or, for a convolution, [out, rank, 1, ...], as PEFT stores them.
    `magnitude` (DoRA) has one value for each output, in any shape. `bias` is lora_B's, [out]; PEFT scales it too.
    """

    a: torch.Tensor
    b: torch.Tensor
    scale: float
    magnitude: torch.Tensor | None = None
    bias: torch.Tensor | None = None

    @property
    def rank(self) -> int:
        """The inner size of B @ A."""
        return int(self.a.shape[0])

    needed_rank = rank

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight that it changes: [out, in, *kernel]."""
        return (int(self.b.shape[0]), *map(int, self.a.shape[1:]))

    def low_rank(self, max_rank: int | None = None) -> LowRank:
        """Itself. ConversionError if that needs more than `max_rank`."""
        if max_rank is not None and self.rank > max_rank:
            raise ConversionError(f"A rank of {self.rank} is needed.", expected=f"at most {max_rank}")
        return self

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """The additive part on inputs [in * prod(kernel), n], in float64: gives [out, n]."""
        return (self.b.double().flatten(1) @ (self.a.double().flatten(1) @ x.double())) * self.scale

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
        )


Delta = LowRank


def times(tensor: torch.Tensor, factor: float, dtype: torch.dtype | None = None) -> torch.Tensor:
    """`tensor * factor`, rounded once to `dtype` (None: the tensor's own), as if computed in float64."""
    if factor == 1.0:
        return tensor if dtype is None else tensor.to(dtype)
    if dtype in (None, tensor.dtype) and math.frexp(factor)[0] == 0.5:
        return tensor * factor  # a power of two: exact but for the one rounding, and a tenth of the time
    return (tensor.double() * factor).to(dtype or tensor.dtype)


def relative_error(carried: LowRank, wanted: LowRank) -> float:
    """|carried - wanted| / |wanted| of the two changes of a weight, by Frobenius norm, without forming them.

    Both have the same rank, and their factors correspond up to a power of two that may have moved from B to A. Then

        B'A' - BA = (B' - B 2^-k) A' + B 2^-k (A' - A 2^k)

    has terms that are small where the two agree, so that its norm, taken from Gram matrices in float64, loses nothing
    to cancellation. Infinite if `wanted` is zero and `carried` is not, or if something is not finite.
    """
    import torch

    if wanted.a.shape != carried.a.shape or wanted.b.shape != carried.b.shape:
        return math.inf
    shift = power_between(wanted.a, carried.a)
    b = wanted.b.double().flatten(1) * math.ldexp(wanted.scale, -shift)
    a = wanted.a.double().flatten(1) * math.ldexp(1.0, shift)
    off_b = carried.b.double().flatten(1) * carried.scale - b
    off_a = carried.a.double().flatten(1) - a
    if bool(off_a.any()):
        difference = _norm(torch.cat([off_b, b], dim=1), torch.cat([a + off_a, off_a], dim=0))
    else:
        difference = _norm(off_b, a) if bool(off_b.any()) else 0.0  # half the rank: what is usual
    if difference == 0.0:
        return 0.0
    size = _norm(b, a)
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


def _norm(b: torch.Tensor, a: torch.Tensor) -> float:
    """The Frobenius norm of B @ A, as sqrt(trace((B^T B)(A A^T)))."""
    return math.sqrt(max(float(((b.T @ b) * (a @ a.T)).sum()), 0.0))
