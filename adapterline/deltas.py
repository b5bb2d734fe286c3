"""The change of one module's weight, as an adapter states it, and its exact algebra.

Weights are matrices here: a convolution's kernel [out, in, *k] counts as [out, in * prod(k)], as `torch.nn.Unfold` sees
it. So A is [rank, in * prod(k)] and B is [out, rank] whatever the layer, and the change is `scale * B @ A`.

    LowRank      scale * B @ A                        LoRA, LoCon, and with a magnitude DoRA
    Hadamard     scale * (B1 @ A1) * (B2 @ A2)        LoHa: a LoRA of rank r1 * r2, by the row-wise Khatri-Rao product
    Kronecker    scale * kron(W1, W2)                 LoKr: a LoRA of rank r(W1) * r(W2)
    Full         scale * W                            a difference of whole weights: a LoRA of rank min(out, in * k)
    Rows         some rows of one of these            a layer that a checkpoint has fused with others
    Ungrouped, GroupedKernel                          LoRA and differences of grouped convolutions

Each has `apply`, the additive part on given inputs, computed from its own definition, and `low_rank`, the same change
as a `LowRank`: products of entries, no decomposition, so the same on every machine. `magnitude` (DoRA) has one value
for each output, in any shape; `bias` is lora_B's, [out], and PEFT scales it too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

#: safetensors' names of the floating point dtypes in which factors are stored, and torch's.
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
#: The same the other way round.
NAMES = {dtype: name for name, dtype in DTYPES.items()}


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
        """The shape of the weight change: [out, in, *kernel]."""
        return (int(self.b.shape[0]), *map(int, self.a.shape[1:]))

    @property
    def dtype(self) -> str:
        """What its factors are stored as, by safetensors' name."""
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
        """The additive part on inputs [in * prod(kernel), n], in float64: gives [out, n]."""
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
        """[out, in, *kernel]."""
        return (int(self.b1.shape[0]), *map(int, self.a1.shape[1:]))

    @property
    def needed_rank(self) -> int:
        """r1 * r2, or what any matrix of this size needs, if that is less."""
        return min(int(self.a1.shape[0]) * int(self.a2.shape[0]), _most(self.shape))

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """See `LowRank.apply`."""
        return (self._weight() @ x.double()) * self.scale

    def low_rank(self) -> LowRank:
        """The Khatri-Rao form: row (i, j) of A is a1[i] * a2[j], column (i, j) of B is b1[:, i] * b2[:, j]."""
        ranks = int(self.a1.shape[0]) * int(self.a2.shape[0])
        if ranks > self.needed_rank:
            weight = self._weight().reshape(self.shape)
            return Full(weight, self.scale, self.magnitude, self.bias).low_rank()
        a = (self.a1.double().unsqueeze(1) * self.a2.double().unsqueeze(0)).flatten(0, 1)
        b = (self.b1.double().unsqueeze(2) * self.b2.double().unsqueeze(1)).flatten(1)
        return _low_rank(a, b, self)

    def _weight(self) -> torch.Tensor:
        first = self.b1.double() @ self.a1.double().flatten(1)
        return first * (self.b2.double() @ self.a2.double().flatten(1))


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
        """[out, in, *kernel]."""
        out = int(self.b1.shape[0]) * int(self.b2.shape[0])
        return (out, int(self.a1.shape[1]) * int(self.a2.shape[1]), *map(int, self.a2.shape[2:]))

    @property
    def needed_rank(self) -> int:
        """r1 * r2, or what any matrix of this size needs, if that is less."""
        return min(int(self.a1.shape[0]) * int(self.a2.shape[0]), _most(self.shape))

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """See `LowRank.apply`. kron(W1, W2) x is W2 X W1^T, with x as the matrix X [d * kernel, c]."""
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
        return _low_rank(_kron(self.a1.double(), self.a2.double()), b, self)


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
        """[out, in, *kernel]."""
        return tuple(map(int, self.weight.shape))

    @property
    def needed_rank(self) -> int:
        """min(out, in * prod(kernel))."""
        return _most(self.shape)

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """See `LowRank.apply`."""
        return (self.weight.double().flatten(1) @ x.double()) * self.scale

    def low_rank(self) -> LowRank:
        """The weight itself and an identity, on the side where that is smaller."""
        import torch

        out, width = self.shape[0], math.prod(self.shape[1:])
        identity = torch.eye(min(out, width), dtype=torch.float64)
        if out <= width:
            return _low_rank(self.weight.double(), identity, self)
        return _low_rank(identity.reshape(width, *self.shape[1:]), self.weight.double().flatten(1), self)


@dataclass(frozen=True)
class Rows:
    """Some output rows of another change, in a given order: one of the layers that a checkpoint has fused into one.

    `ranges` are (start, stop) of rows of `whole`.
    """

    whole: Hadamard | Kronecker | Full
    ranges: tuple[tuple[int, int], ...]

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
        """[rows, in, *kernel]."""
        return (sum(stop - start for start, stop in self.ranges), *self.whole.shape[1:])

    @property
    def needed_rank(self) -> int:
        """The fused layer's."""
        return self.whole.needed_rank

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """See `LowRank.apply`."""
        import torch

        outputs = self.whole.apply(x)
        return torch.cat([outputs[start:stop] for start, stop in self.ranges])

    def low_rank(self) -> LowRank:
        """The same rows of the fused layer's low-rank form."""
        rows = take_rows(self.whole.low_rank(), self.ranges)
        assert isinstance(rows, LowRank)
        return rows


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
        """[out, in, *kernel], where in are all inputs."""
        return self.whole.shape

    @property
    def needed_rank(self) -> int:
        """Each group needs rows of A for itself: A's, or one for each of its outputs if those are fewer."""
        return self.groups * min(self.whole.rank, self.shape[0] // self.groups)

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """See `LowRank.apply`."""
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
        """[out, in, *kernel], where in are all inputs."""
        out, width, *kernel = map(int, self.weight.shape)
        return (out, width * self.groups, *kernel)

    @property
    def needed_rank(self) -> int:
        """A row of A for each output."""
        return int(self.weight.shape[0])

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """See `LowRank.apply`."""
        import torch

        weights, parts = self.weight.double().flatten(1).chunk(self.groups), x.double().chunk(self.groups)
        return torch.cat([weight @ part for weight, part in zip(weights, parts, strict=True)]) * self.scale

    def low_rank(self) -> LowRank:
        """Rows of A that are zero but for their group's inputs, and B an identity in each group."""
        a, b = spread(self.weight.double(), self.groups)
        b = b.reshape(*b.shape, *[1] * (a.dim() - 2))
        return LowRank(a.float(), b.float(), self.scale, self.magnitude, self.bias, self.groups)


Delta = LowRank | Hadamard | Kronecker | Full | Rows | Ungrouped | GroupedKernel


def take_rows(delta: Delta, ranges: Sequence[tuple[int, int]]) -> Delta:
    """The change of these output rows alone, in the order of `ranges`. A is shared; columns of B that are zero go."""
    ranges = tuple(ranges)
    if isinstance(delta, Rows | Ungrouped | GroupedKernel):
        raise TypeError("rows are taken of a fused layer, once, and a grouped convolution is never fused")
    if not isinstance(delta, LowRank):
        return Rows(delta, ranges)
    if delta.groups > 1:
        raise TypeError("a grouped convolution is never fused")
    b = _rows(delta.b, ranges)
    assert b is not None
    used = b.flatten(1).any(dim=0)
    if bool(used.any()) and not bool(used.all()):
        # A trainer's converter fuses layers by putting their B side by side on a diagonal: this undoes it.
        return replace(
            delta,
            a=delta.a[used],
            b=b[:, used],
            magnitude=_values(delta.magnitude, ranges),
            bias=_values(delta.bias, ranges),
        )
    return replace(delta, b=b, magnitude=_values(delta.magnitude, ranges), bias=_values(delta.bias, ranges))


def reshaped(delta: Delta, tail: tuple[int, ...]) -> Delta:
    """The same change with inputs that are shaped [in, *kernel] as in `tail`: some trainers store kernels flattened."""
    if delta.shape[1:] == tail or math.prod(delta.shape[1:]) != math.prod(tail):
        return delta
    ones = [1] * (len(tail) - 1)
    match delta:
        case LowRank():
            return replace(delta, a=delta.a.reshape(-1, *tail), b=delta.b.reshape(*delta.b.shape[:2], *ones))
        case Hadamard():
            return replace(delta, a1=delta.a1.reshape(-1, *tail), a2=delta.a2.reshape(-1, *tail))
        case Kronecker() if tail[0] % int(delta.a1.shape[1]) == 0:
            return replace(delta, a2=delta.a2.reshape(-1, tail[0] // int(delta.a1.shape[1]), *tail[1:]))
        case Full():
            return replace(delta, weight=delta.weight.reshape(-1, *tail))
    return delta


def tucker(core: torch.Tensor, b: torch.Tensor, a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(A [rank, in, *kernel], B [out, rank]) of a Tucker decomposition, in float64.

    `core` is [rank of outputs, rank of inputs, *kernel], `b` [out, rank of outputs], `a` [rank of inputs, in]. The core
    folds into A (lycoris.functional.general.rebuild_tucker: "i j ..., i p, j r -> p r ..."). ValueError if they do not
    fit.
    """
    import torch

    if core.shape[:2] != (b.shape[1], a.shape[0]):
        raise ValueError("the core has other ranks")  # einsum would broadcast a rank of 1
    return torch.einsum("ij...,jr->ir...", core.double(), a.double()), b.double()


def whole(factor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(A, B) of a matrix or kernel [out, in, *kernel] that is stored whole: itself and an identity."""
    import torch

    out, width = int(factor.shape[0]), math.prod(factor.shape[1:])
    identity = torch.eye(min(out, width), dtype=factor.dtype)
    if out <= width:
        return factor, identity
    return identity.reshape(width, *factor.shape[1:]), factor.flatten(1)


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
    return replace(_low_rank(rows, torch.eye(out, dtype=torch.float64).repeat(groups, 1), delta), groups=groups)


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


def approximate(delta: Delta, rank: int) -> tuple[LowRank, float]:
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
    return _low_rank(near_a.reshape(-1, *exact.shape[1:]), near_b, exact), error


def smallest_error(delta: Delta, rank: int) -> float:
    """The relative error by Frobenius norm that no change of this rank can stay below (Eckart and Young)."""
    import torch

    b, a = delta.low_rank().matrices()
    core = torch.linalg.qr(b).R @ torch.linalg.qr(a.T).R.T
    singular = torch.linalg.svdvals(core).square()
    total = float(singular.sum())
    return math.sqrt(float(singular[rank:].sum()) / total) if total else 0.0


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


def probed_error(carried: Delta, wanted: Delta, probes: int = 16) -> float:
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


def _low_rank(a: torch.Tensor, b: torch.Tensor, of: Delta) -> LowRank:
    """float32: the product of two 16-bit floats is exact in it, that of two 32-bit ones is rounded once."""
    b = b.reshape(*b.shape, *[1] * (a.dim() - 2))
    return LowRank(a.float(), b.float(), of.scale, of.magnitude, of.bias)


def _kron(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """kron of a matrix with a matrix or kernel [out, in, *kernel]. torch.kron raises for some that were transposed."""
    out, width = int(first.shape[0] * second.shape[0]), int(first.shape[1] * second.shape[1])
    products = first.reshape(first.shape[0], 1, first.shape[1], 1, *[1] * (second.dim() - 2)) * second[None, :, None]
    return products.reshape(out, width, *second.shape[2:])


def _rows(tensor: torch.Tensor | None, ranges: Sequence[tuple[int, int]]) -> torch.Tensor | None:
    import torch

    return None if tensor is None else torch.cat([tensor[start:stop] for start, stop in ranges])


def _values(tensor: torch.Tensor | None, ranges: Sequence[tuple[int, int]]) -> torch.Tensor | None:
    """The same of what has one value for each row, in any shape."""
    return None if tensor is None else _rows(tensor.flatten(), ranges)


def _most(shape: tuple[int, ...]) -> int:
    return min(shape[0], math.prod(shape[1:]))


def _norm(b: torch.Tensor, a: torch.Tensor) -> float:
    """The Frobenius norm of B @ A, as sqrt(trace((B^T B)(A A^T)))."""
    return math.sqrt(max(float(((b.T @ b) * (a @ a.T)).sum()), 0.0))
