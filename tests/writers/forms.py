"""What trainers store for a layer, and the change that they compute with it, by their own formulas.

Nothing here is taken from adapterline: each function names the code that it repeats, and its `weight` is that code's
dense change in float64, of the tensors as they are rounded to the dtype of the file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

#: [out, in, *kernel], the channels that a group sees counted in `in`.
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Change:
    """The tensors of one layer by suffix, in sd-scripts' and LyCORIS's spelling, and what they do.

    `weight` is [out, in, *kernel]. With a DoRA `magnitude` [out] the weight is then scaled to it, row by row.
    """

    stored: Mapping[str, Tensor]
    weight: Tensor
    magnitude: Tensor | None = None
    bias: Tensor | None = None


@dataclass(frozen=True)
class Draw:
    """Random tensors of a dtype."""

    seed: int
    dtype: torch.dtype = torch.float32
    generator: torch.Generator = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "generator", torch.Generator().manual_seed(self.seed))

    def normal(self, *shape: int, std: float = 0.5) -> Tensor:
        return (torch.randn(shape, generator=self.generator) * std).to(self.dtype)

    def number(self, value: float) -> Tensor:
        return torch.tensor(value).to(self.dtype)


#: Draws the change of a layer of this shape.
Form = Callable[[Draw, Shape], Change]


def lora(rank: int = 4, alpha: float | None = 2.0) -> Form:
    """sd-scripts networks/lora.py LoRAModule (`scale = alpha / lora_dim`), LoRA-FA's and DyLoRA's files, LyCORIS LoCon.

    A convolution's `lora_down` has its kernel. Without an alpha the file has none, and the scale is 1.
    """

    def make(draw: Draw, shape: Shape) -> Change:
        down, up = draw.normal(rank, *shape[1:]), draw.normal(shape[0], rank, *[1] * (len(shape) - 2))
        scale = 1.0 if alpha is None else alpha / rank
        weight = scale * (up.double().flatten(1) @ down.double().flatten(1)).reshape(shape)
        stored = {"lora_down.weight": down, "lora_up.weight": up}
        return Change(stored if alpha is None else {**stored, "alpha": draw.number(alpha)}, weight)

    return make


def rank_stabilized(rank: int = 4, alpha: float = 2.0) -> Form:
    """lycoris/modules/locon.py with rs_lora: the scale is alpha / sqrt(dim), and `alpha` alpha * dim / sqrt(dim)."""

    def make(draw: Draw, shape: Shape) -> Change:
        plain = lora(rank, 1.0)(draw, shape)
        scale = alpha / math.sqrt(rank)
        stored = {**plain.stored, "alpha": draw.number(alpha * rank / math.sqrt(rank))}
        return Change(stored, plain.weight * rank * scale)

    return make


def tucker_lora(rank: int = 3, alpha: float = 2.0) -> Form:
    """lycoris/modules/locon.py with use_tucker: down 1 x 1, mid with the kernel, up 1 x 1. Linear ones have no mid."""

    def make(draw: Draw, shape: Shape) -> Change:
        if math.prod(shape[2:]) == 1:
            return lora(rank, alpha)(draw, shape)
        ones = [1] * (len(shape) - 2)
        down, up = draw.normal(rank, shape[1], *ones), draw.normal(shape[0], rank, *ones)
        mid = draw.normal(rank, rank, *shape[2:])
        # lycoris/functional/general.py tucker_weight_from_conv
        weight = torch.einsum("mn...,im,nj->ij...", mid.double(), up.double().flatten(1), down.double().flatten(1)) * (
            alpha / rank
        )
        stored = {"lora_down.weight": down, "lora_mid.weight": mid, "lora_up.weight": up, "alpha": draw.number(alpha)}
        return Change(stored, weight)

    return make


def loha(rank: int = 3, alpha: float = 2.0, *, tucker: bool = False, whole_kernels: bool = False) -> Form:
    """lycoris/modules/loha.py and lycoris/functional/loha.py: `((w1a @ w1b) * (w2a @ w2b)) * alpha / dim`.

    A convolution's kernel is flattened in w*_b; with `tucker` it is in t1 and t2; with `whole_kernels` w*_b is
    [rank, in, *kernel] and w*_a [out, rank, 1, 1], as OneTrainer's LoHaModule.initialize_weights has it.
    """

    def make(draw: Draw, shape: Shape) -> Change:
        out, kernel = shape[0], shape[2:]
        stored: dict[str, Tensor] = {"alpha": draw.number(alpha)}
        products = []
        for number in "12":
            if tucker and math.prod(kernel) > 1:
                core = draw.normal(rank, rank, *kernel)
                a, b = draw.normal(rank, out), draw.normal(rank, shape[1])
                products.append(torch.einsum("ij...,ip,jr->pr...", core.double(), a.double(), b.double()))
                stored[f"hada_t{number}"] = core
            else:
                a, b = draw.normal(out, rank), draw.normal(rank, math.prod(shape[1:]))
                products.append((a.double() @ b.double()).reshape(shape))
                if whole_kernels:
                    a, b = a.reshape(out, rank, *[1] * len(kernel)), b.reshape(rank, *shape[1:])
            stored |= {f"hada_w{number}_a": a, f"hada_w{number}_b": b}
        return Change(stored, products[0] * products[1] * (alpha / rank))

    return make


def lokr(
    rank: int = 2,
    alpha: float = 3.0,
    *,
    factor: int = 4,
    first: str = "whole",
    second: str = "decomposed",
    stored_alpha: float | None = None,
) -> Form:
    """lycoris/modules/lokr.py, musubi-tuner's and ai-toolkit's copies: `kron(w1, w2) * scale`.

    w1 is [out_l, in_m] and w2 [out_k, in_n, *kernel] of the factorized sizes; `first` and `second` are whole,
    decomposed or, for w2, tucker. With both whole the scale is 1 whatever alpha is stored.
    """

    def make(draw: Draw, shape: Shape) -> Change:
        (out_l, out_k), (in_m, in_n) = (_factorized(size, factor) for size in shape[:2])
        stored: dict[str, Tensor] = {}
        if first == "decomposed":
            stored |= {"lokr_w1_a": draw.normal(out_l, rank), "lokr_w1_b": draw.normal(rank, in_m)}
            w1 = stored["lokr_w1_a"].double() @ stored["lokr_w1_b"].double()
        else:
            stored["lokr_w1"] = draw.normal(out_l, in_m)
            w1 = stored["lokr_w1"].double()
        kernel = shape[2:]
        if second == "whole":
            stored["lokr_w2"] = draw.normal(out_k, in_n, *kernel)
            w2 = stored["lokr_w2"].double()
        elif second == "tucker" and math.prod(kernel) > 1:
            core = draw.normal(rank, rank, *kernel)
            stored |= {"lokr_t2": core, "lokr_w2_a": draw.normal(rank, out_k), "lokr_w2_b": draw.normal(rank, in_n)}
            w2 = torch.einsum(
                "ij...,ip,jr->pr...", core.double(), stored["lokr_w2_a"].double(), stored["lokr_w2_b"].double()
            )
        else:
            stored |= {"lokr_w2_a": draw.normal(out_k, rank), "lokr_w2_b": draw.normal(rank, in_n * math.prod(kernel))}
            w2 = (stored["lokr_w2_a"].double() @ stored["lokr_w2_b"].double()).reshape(out_k, in_n, *kernel)
        whole = first == second == "whole"
        stored["alpha"] = draw.number(stored_alpha if stored_alpha is not None else rank if whole else alpha)
        w1 = w1.reshape(*w1.shape, *[1] * len(kernel))
        return Change(stored, torch.kron(w1, w2.contiguous()) * (1.0 if whole else alpha / rank))

    return make


def full(*, bias: bool = True) -> Form:
    """lycoris/modules/full.py: the difference of the whole weight, and of the bias where the layer has one."""

    def make(draw: Draw, shape: Shape) -> Change:
        stored = {"diff": draw.normal(*shape, std=0.1)}
        if bias:
            stored["diff_b"] = draw.normal(shape[0], std=0.1)
        return Change(stored, stored["diff"].double(), bias=stored["diff_b"].double() if bias else None)

    return make


def dora(form: Form, suffix: str = "dora_scale", *, flat: bool = False) -> Form:
    """Weight decomposition on the outputs: lycoris/functional/general.py weight_decompose with wd_on_out, OneTrainer's
    DoRAModule with decompose_output_axis. `dora_scale` is [out, 1, ...]; ai-toolkit's `magnitude` is `flat`, [out]."""

    def make(draw: Draw, shape: Shape) -> Change:
        change = form(draw, shape)
        values = draw.normal(shape[0]).abs() + 0.5
        stored = values if flat else values.reshape(-1, *[1] * (len(shape) - 1))
        return replace(change, stored={**change.stored, suffix: stored}, magnitude=values.double())

    return make


def dora_on_inputs(form: Form) -> Form:
    """The same along the inputs, which is what OneTrainer does unless told otherwise: [1, in, ...]."""

    def make(draw: Draw, shape: Shape) -> Change:
        change = form(draw, shape)
        scale = (draw.normal(shape[1]).abs() + 0.5).reshape(1, -1, *[1] * (len(shape) - 2))
        return replace(change, stored={**change.stored, "dora_scale": scale})

    return make


def depthwise(rank: int = 4, alpha: float = 2.0) -> Form:
    """OneTrainer's create_layer for a convolution whose groups are its channels: `lora_down` sees all of them, and
    `lora_up` has out / groups = 1 output, which its forward adds to every output of the layer."""

    def make(draw: Draw, shape: Shape) -> Change:
        down, up = draw.normal(rank, shape[0], *shape[2:]), draw.normal(1, rank, *[1] * (len(shape) - 2))
        one = (up.double().flatten(1) @ down.double().flatten(1)) * (alpha / rank)
        weight = one.expand(shape[0], -1).reshape(shape[0], *down.shape[1:])
        return Change({"lora_down.weight": down, "lora_up.weight": up, "alpha": draw.number(alpha)}, weight)

    return make


def split_lora(parts: tuple[int, ...], rank: int = 2, alpha: float = 3.0) -> Form:
    """sd-scripts networks/lora_flux.py with split_qkv: a LoRA for each part of a fused layer, at alpha / lora_dim.

    state_dict puts `lora_down` one under the other and `lora_up` on a diagonal; alpha stays that of a part.
    """

    def make(draw: Draw, shape: Shape) -> Change:
        downs = [draw.normal(rank, *shape[1:]) for _ in parts]
        ups = [draw.normal(out, rank) for out in parts]
        weight = torch.cat([up.double() @ down.double() for up, down in zip(ups, downs, strict=True)]) * (alpha / rank)
        stored = {"lora_down.weight": torch.cat(downs), "lora_up.weight": torch.block_diag(*ups)}
        return Change({**stored, "alpha": draw.number(alpha)}, weight)

    return make


def other(suffixes: Mapping[str, tuple[int, ...]]) -> Form:
    """Tensors of a type whose change depends on the base's weights: they are refused, so there is no truth."""

    def make(draw: Draw, shape: Shape) -> Change:
        return Change({key: draw.normal(*sizes) for key, sizes in suffixes.items()}, torch.zeros(shape))

    return make


OFT_KOHYA = other({"oft_blocks": (2, 4, 4), "alpha": ()})  # networks/oft.py
DIAG_OFT = other({"oft_blocks": (2, 4, 4), "alpha": ()})  # lycoris/modules/diag_oft.py
BOFT = other({"oft_blocks": (2, 2, 4, 4), "alpha": ()})  # lycoris/modules/boft.py
OFT_ONETRAINER = other({"oft_R.weight": (2, 6)})
IA3 = other({"weight": (8, 1), "on_input": ()})  # lycoris/modules/ia3.py
GLORA = other({"a1.weight": (4, 8), "a2.weight": (8, 4), "b1.weight": (4, 8), "b2.weight": (8, 4), "alpha": ()})
NORM = other({"w_norm": (8,), "b_norm": (8,)})  # lycoris/modules/norms.py


def _factorized(size: int, factor: int) -> tuple[int, int]:
    """lycoris/functional/general.py factorization, for a factor that divides the size; else (1, size)."""
    return (factor, size // factor) if size % factor == 0 and size > factor else (1, size)
