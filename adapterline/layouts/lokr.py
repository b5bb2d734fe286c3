"""LoKr kept as LoKr, for the families whose loaders take it: FLUX.2 and Z-Image (`--keep-form`).

    {component}.{module}.lokr_w1, or lokr_w1_a and lokr_w1_b;  lokr_w2 likewise

diffusers infers peft's LoKrConfig from the shapes and sets alpha to the rank (utils.peft_utils._create_lokr_config), so
there the scale is folded into the left factor; PEFT itself is given a configuration that says it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from adapterline.deltas import NAMES, Kronecker, times
from adapterline.errors import ConversionError
from adapterline.layouts.config import alpha_of, most_common, target_modules, unusual
from adapterline.layouts.scale import torch_dtype
from adapterline.values import TensorPlan

if TYPE_CHECKING:
    import torch


def lokr_tensors(stem: str, delta: Kronecker, requested: str | None) -> dict[str, TensorPlan]:
    """The tensors of one layer, by key. ConversionError for what LoKr of diffusers has no place for."""
    if delta.magnitude is not None or delta.bias is not None:
        raise ConversionError(
            f"{stem} has a {'DoRA magnitude' if delta.bias is None else 'bias'} beside its LoKr factors.",
            expected="LoKr alone, with --keep-form",
            remedy="Leave --keep-form out: as LoRA it can be carried.",
        )
    if len(delta.shape) > 2:
        raise ConversionError(
            f"{stem} is a convolution, and diffusers infers the form of LoKr for linear layers alone.",
            expected="linear layers, with --keep-form",
            remedy="Leave --keep-form out: as LoRA it can be carried.",
        )
    left, right = factors(delta.a1, delta.b1), factors(delta.a2, delta.b2)
    plans = {}
    for number, parts in ((1, left), (2, right)):
        for place, (suffix, tensor) in enumerate(parts.items()):
            factor = delta.scale if number == 1 and place == 0 else 1.0
            plans[f"{stem}.lokr_w{number}{suffix}"] = _planned(tensor, factor, requested)
    return plans


def factors(a: torch.Tensor, b: torch.Tensor) -> dict[str, torch.Tensor]:
    """{"": the matrix} of a factor that is whole, one of its halves being an identity; else {"_a": b, "_b": a}."""
    if _is_identity(b):
        return {"": a}
    return {"": b} if _is_identity(a) else {"_a": b, "_b": a}


def _is_identity(matrix: torch.Tensor) -> bool:
    import torch

    return matrix.shape[0] == matrix.shape[1] and torch.equal(matrix, torch.eye(len(matrix), dtype=matrix.dtype))


def _planned(tensor: torch.Tensor, factor: float, requested: str | None) -> TensorPlan:
    """A factor that is no power of two is rounded once, into float32 unless another dtype was asked for."""
    own = NAMES[str(tensor.dtype).removeprefix("torch.")]
    exact = math.frexp(abs(factor))[0] == 0.5
    dtype = requested or (own if exact else "F32")
    make: Callable[[], torch.Tensor] = partial(times, tensor.contiguous(), factor, torch_dtype(dtype))
    return TensorPlan(dtype, tuple(map(int, tensor.shape)), make)


def is_lokr(deltas: Mapping[str, object]) -> bool:
    """Are all layers of a component to be written as LoKr?"""
    return bool(deltas) and all(isinstance(delta, Kronecker) for delta in deltas.values())


@dataclass(frozen=True)
class _Factor:
    """One of the two factors of a layer; `rank` is None where it is whole."""

    outputs: int
    inputs: int
    rank: int | None

    @property
    def size(self) -> int:
        return max(self.outputs, self.inputs)


def lokr_config(deltas: Mapping[str, Kronecker], as_pattern: Callable[[str], str], exact: bool) -> dict[str, Any]:
    """The LoKrConfig of these layers, for factors that the scale is not in. See `config.lora_config`.

    peft makes the factors' shapes from the rank and from two settings for all layers
    (peft.tuners.lokr.layer.LoKrLayer.update_layer). ConversionError where they would be others.
    """
    pairs = {module: (_factor(delta.a1, delta.b1), _factor(delta.a2, delta.b2)) for module, delta in deltas.items()}
    ranks = {module: right.rank or left.rank or right.size for module, (left, right) in pairs.items()}
    both = any(left.rank is not None for left, _ in pairs.values())
    for module, (left, right) in pairs.items():
        _check_form(module, left, ranks[module] if both else None)
        _check_form(module, right, ranks[module])
    alphas = {module: alpha_of(delta.scale, ranks[module]) for module, delta in deltas.items()}
    rank, alpha = most_common(ranks), most_common(alphas)
    return {
        "peft_type": "LOKR",
        "r": rank,
        "alpha": alpha,
        "rank_pattern": unusual(ranks, rank, as_pattern),
        "alpha_pattern": unusual(alphas, alpha, as_pattern),
        "target_modules": target_modules(deltas, exact),
        "decompose_both": both,
        "decompose_factor": _decompose_factor(pairs.values()),
    }


def _factor(a: torch.Tensor, b: torch.Tensor) -> _Factor:
    whole = "" in factors(a, b)
    return _Factor(int(b.shape[0]), int(a.shape[1]), None if whole else int(a.shape[0]))


def _check_form(module: str, factor: _Factor, rank: int | None) -> None:
    made = rank if rank is not None and rank < factor.size / 2 else None
    if made != factor.rank:
        raise ConversionError(
            f"{module} has a LoKr factor of {factor.outputs} x {factor.inputs}, {_form(factor.rank)}; PEFT would make "
            f"it {_form(made)}.",
            expected="factors of the form that PEFT gives them, with --keep-form and the peft layout",
            remedy="Leave --keep-form out: as LoRA it can be carried.",
        )


def _form(rank: int | None) -> str:
    return "whole" if rank is None else f"of rank {rank}"


def _decompose_factor(pairs: Iterable[tuple[_Factor, _Factor]]) -> int:
    """The setting by which peft splits these sizes so: one of the left factors' sizes, or -1 for nearly square ones."""
    from peft.tuners.lokr.layer import factorization

    splits = {split for left, right in pairs for split in ((left.outputs, right.outputs), (left.inputs, right.inputs))}
    for candidate in (*sorted({left for left, _ in splits}), -1):
        if all(factorization(left * right, candidate) == (left, right) for left, right in splits):
            return candidate
    raise ConversionError(
        f"The LoKr factors split the layers in ways that no single decompose_factor gives: {sorted(splits)[:4]}, ...",
        expected="one LoKrConfig for the whole component",
        remedy="Leave --keep-form out: as LoRA it can be carried.",
    )
