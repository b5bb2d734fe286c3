"""The forms in which trainers store the change of a layer: which tensors make one, and what it is.

A *part* is what a tensor is within its layer; dialects name the parts, each by its own suffixes. The parts of a layer
decide its form. Sources: sd-scripts networks/lora.py, lycoris.modules (locon, loha, lokr, full), peft.tuners.
"""

from __future__ import annotations

import math
from typing import Final

from adapterline.checkpoints.form import Form, Layer, Shapes, Tensors, first, untold
from adapterline.checkpoints.peft_types import PEFT_FORMS
from adapterline.deltas import Delta, Full, Hadamard, Kronecker, LowRank, tucker, whole
from adapterline.errors import CheckpointError, ConversionError

#: The suffixes that sd-scripts, LyCORIS, musubi-tuner, OneTrainer and ai-toolkit have in common.
SUFFIXES: Final[dict[str, str]] = {
    "lora_down.weight": "a", "lora_up.weight": "b", "lora_mid.weight": "mid", "alpha": "alpha",
    "dora_scale": "dora_scale", "diff": "diff", "diff_b": "bias_diff",
    "hada_w1_a": "b1", "hada_w1_b": "a1", "hada_w2_a": "b2", "hada_w2_b": "a2", "hada_t1": "core1", "hada_t2": "core2",
    "lokr_w1": "w1", "lokr_w1_a": "w1_b", "lokr_w1_b": "w1_a",
    "lokr_w2": "w2", "lokr_w2_a": "w2_b", "lokr_w2_b": "w2_a", "lokr_t2": "w2_core",
}  # fmt: skip
#: Parts of adapters whose effect depends on the weights of the base, or that no LoRA file has a place for.
REFUSED: Final[dict[str, str]] = {
    "oft_blocks": "OFT and BOFT multiply the base weights by rotations: the change depends on the base weights",
    "oft_diag": "OFT multiplies the base weights by rotations: the change depends on the base weights",
    "oft_R.weight": "OFT multiplies the base weights by rotations: the change depends on the base weights",
    "rescale": "OFT with a rescaling multiplies the base weights: the change depends on the base weights",
    "on_input": "IA3 rescales the base weights: the change depends on the base weights",
    "a1.weight": "GLoRA multiplies the base weights: the change depends on the base weights",
    "a2.weight": "GLoRA multiplies the base weights: the change depends on the base weights",
    "b1.weight": "GLoRA multiplies the base weights: the change depends on the base weights",
    "b2.weight": "GLoRA multiplies the base weights: the change depends on the base weights",
    "w_norm": "the weights of a norm were trained, and a LoRA file has no place for them",
    "b_norm": "the bias of a norm was trained, and a LoRA file has no place for it",
}

#: May accompany any form. PEFT scales lora_B's `bias`; `bias_diff` is a difference of the base's bias, not scaled.
#: A `magnitude` is PEFT's, `dora_scale` LyCORIS's: their shapes for a convolution mean different things.
_ANY: Final = frozenset({"alpha", "magnitude", "dora_scale", "bias", "bias_diff"})


def form_of(parts: frozenset[str], where: str) -> Form:
    """The form that these parts make. CheckpointError if they are not whole, or of several forms."""
    if {"magnitude", "dora_scale"} <= parts:
        raise CheckpointError(f"{where} has two DoRA magnitudes.", expected="one", remedy="Save the adapter again.")
    own = parts - _ANY
    if fitting := [form for form in FORMS if form.needs <= own <= form.needs | form.may]:
        return fitting[0]
    nearest = max(FORMS, key=lambda form: (len(own & (form.needs | form.may)), -len(form.needs - own)))
    if strange := sorted(own - nearest.needs - nearest.may):
        raise CheckpointError(
            f"{where} has tensors of several adapter types: {', '.join(sorted(own))}.",
            expected=f"one type; {', '.join(strange)} is no part of {nearest.name}",
            remedy="Save one adapter alone.",
        )
    missing = " and no ".join(_NAMES.get(part, part) for part in sorted(nearest.needs - own))
    raise CheckpointError(
        f"{where} has no {missing}.",
        expected="both factors of every layer",
        remedy="The checkpoint is not whole; save it again.",
    )


def build(form: Form, tensors: Tensors, layer: Layer, where: str) -> Delta:
    """The change.

    CheckpointError if the shapes of the parts do not fit each other, ConversionError for a DoRA magnitude for each
    input.
    """
    shapes = {part: tuple(map(int, tensor.shape)) for part, tensor in tensors.items()}
    if len(shapes.get("diff", (0, 0))) == 1:
        raise ConversionError(
            f"{where} has a difference of {shapes['diff'][0]} weights, one for each channel: that of a norm.",
            expected="changes of linear layers and convolutions",
            remedy="A LoRA file has no place for it. Train without norms (ai-toolkit: without all_layers).",
        )
    try:
        out = form.outputs(shapes)
        for part in ("magnitude", "dora_scale", "bias", "bias_diff"):
            if part in tensors and out is not None:
                _check_per_output(where, part, shapes[part], _spread_over(out, part, shapes))
        if "dora_scale" in tensors:
            tensors = {**tensors, "magnitude": tensors["dora_scale"]}
        if "bias_diff" in tensors:
            tensors = {**tensors, "bias": (tensors["bias_diff"].double() / layer.scale).float()}
        delta = form.build(tensors, layer)
        shape = delta.shape
    except (RuntimeError, IndexError, ValueError, ZeroDivisionError) as error:
        raise _misfit(form, shapes, where) from error
    if len(shape) < 2 or min(shape) < 1 or delta.needed_rank < 1:
        raise _misfit(form, shapes, where)
    return delta


def _misfit(form: Form, shapes: Shapes, where: str) -> CheckpointError:
    listed = ", ".join(f"{_NAMES.get(part, part)} is {list(shapes[part])}" for part in sorted(shapes))
    return CheckpointError(f"The factors of {where} do not fit: {listed}.", expected=f"those of a {form.name} layer")


def _spread_over(out: int, part: str, shapes: Shapes) -> int:
    """How many outputs a magnitude is for: OneTrainer's B of a depthwise convolution has one row for all of them."""
    a = shapes.get("a", ())
    values = math.prod(shapes[part])
    alone = out == 1 and len(a) > 2 and part in ("magnitude", "dora_scale") and values == a[1]
    return values if alone else out


def _check_per_output(where: str, part: str, shape: tuple[int, ...], out: int) -> None:
    """One value for each output, in a shape that says so.

    LyCORIS and OneTrainer have [out, 1, ...] for one of each output, [1, in, 1, ...] for one of each input, also where
    there are as many inputs as outputs; PEFT has [out], and [1, out, 1, ...] for a convolution.
    """
    per_output = shape == (out, *[1] * (len(shape) - 1))
    if part == "magnitude" and not per_output:
        per_output = shape == (1, out, *[1] * (len(shape) - 2)) and len(shape) > 2
    if part in ("magnitude", "dora_scale") and not per_output and len(shape) > 1:
        raise ConversionError(
            f"The DoRA magnitude of {where} is {list(shape)}: one for each input.",
            expected=f"one for each of its {out} outputs, as PEFT and diffusers have it",
            remedy="What it does depends on the base weights. Train with the magnitude on the outputs.",
        )
    if math.prod(shape) != out:
        what = "magnitude" if part in ("magnitude", "dora_scale") else "bias"
        raise CheckpointError(
            f"The {what} of {where} has {math.prod(shape)} values.", expected=f"one for each of its {out} outputs"
        )


# --- the forms --------------------------------------------------------------------------------------------------------


def _lora(tensors: Tensors, layer: Layer) -> Delta:
    a, b = tensors["a"], tensors["b"]
    if a.dim() < 2 or b.dim() < 2 or b.shape[1] < 1 or a.shape[0] % b.shape[1] or any(n != 1 for n in b.shape[2:]):
        raise ValueError
    groups = int(a.shape[0] // b.shape[1])
    if groups > 1 and (a.dim() < 3 or b.shape[0] % groups):
        raise ValueError
    if b.dim() != a.dim():
        b = b.reshape(*b.shape[:2], *[1] * (a.dim() - 2))
    return LowRank(a, b, layer.scale, tensors.get("magnitude"), tensors.get("bias"), groups)


def _tucker_lora(tensors: Tensors, layer: Layer) -> Delta:
    down, mid, up = tensors["a"].flatten(1), tensors["mid"], tensors["b"].flatten(1)
    a, b = tucker(mid, up, down)
    b = b.reshape(*b.shape, *[1] * (a.dim() - 2))
    return LowRank(a.float(), b.float(), layer.scale, tensors.get("magnitude"), tensors.get("bias"))


def _hadamard(tensors: Tensors, layer: Layer) -> Delta:
    pairs = []
    for number in "12":
        a, b = tensors[f"a{number}"], tensors[f"b{number}"]
        if f"core{number}" in tensors:
            a, b = tucker(tensors[f"core{number}"], b.T, a)
        elif b.shape[1] != a.shape[0]:
            raise ValueError
        pairs.append((a, b.flatten(1)))
    (a1, b1), (a2, b2) = pairs
    if a1.shape[1:] != a2.shape[1:] or b1.shape[0] != b2.shape[0]:
        raise ValueError
    return Hadamard(a1, b1, a2, b2, layer.scale, tensors.get("magnitude"), tensors.get("bias"))


def _kronecker(tensors: Tensors, layer: Layer) -> Delta:
    if "w1" in tensors:
        a1, b1 = whole(tensors["w1"])
    else:
        a1, b1 = tensors["w1_a"], tensors["w1_b"]
    if "w2" in tensors:
        a2, b2 = whole(tensors["w2"])
    elif "w2_core" in tensors:
        a2, b2 = tucker(tensors["w2_core"], tensors["w2_b"].T, tensors["w2_a"])
    else:
        a2, b2 = tensors["w2_a"], tensors["w2_b"]
    if b1.shape[1] != a1.shape[0] or b2.shape[1] != a2.shape[0] or a1.dim() != 2:
        raise ValueError
    return Kronecker(a1, b1, a2, b2, layer.scale, tensors.get("magnitude"), tensors.get("bias"))


def _full(tensors: Tensors, layer: Layer) -> Delta:
    if tensors["diff"].dim() < 2:
        raise ValueError
    return Full(tensors["diff"], layer.scale, tensors.get("magnitude"), tensors.get("bias"))


def _kronecker_rank(shapes: Shapes) -> int | None:
    """lora_dim, by any factor that was decomposed; None if both are whole (lycoris.modules.lokr)."""
    return shapes["w1_a"][0] if "w1_a" in shapes else shapes["w2_a"][0] if "w2_a" in shapes else None


def _kronecker_outputs(shapes: Shapes) -> int:
    first = shapes["w1"][0] if "w1" in shapes else shapes["w1_b"][0]
    if "w2" in shapes:
        return first * shapes["w2"][0]
    return first * shapes["w2_b"][1 if "w2_core" in shapes else 0]


def _hadamard_outputs(shapes: Shapes) -> int:
    return shapes["b1"][1 if "core1" in shapes else 0]


_LOKR_FACTORS: Final = ({"w1"}, {"w1_a", "w1_b"}), ({"w2"}, {"w2_a", "w2_b"}, {"w2_a", "w2_b", "w2_core"})

FORMS: tuple[Form, ...] = (
    Form("lora", frozenset("ab"), first("a"), first("b"), _lora),
    Form("lora (Tucker)", frozenset({"a", "b", "mid"}), first("a"), first("b"), _tucker_lora),
    Form("loha", frozenset({"a1", "b1", "a2", "b2"}), first("a1"), _hadamard_outputs, _hadamard),
    Form(
        "loha (Tucker)",
        frozenset({"a1", "b1", "a2", "b2", "core1", "core2"}),
        first("a1"),
        _hadamard_outputs,
        _hadamard,
    ),
    *(
        Form("lokr", frozenset(first | second), _kronecker_rank, _kronecker_outputs, _kronecker)
        for first in _LOKR_FACTORS[0]
        for second in _LOKR_FACTORS[1]
    ),
    Form("full", frozenset({"diff"}), untold, first("diff"), _full),
    *PEFT_FORMS,
)

#: Parts that lie in a file once, for all layers of a component.
SHARED: Final = frozenset(part for form in FORMS for part in form.shared)
#: Parts that are no floating point numbers.
INTEGERS: Final = frozenset(part for form in FORMS for part in form.integers)

_NAMES: Final = {"a": "lora_A", "b": "lora_B", "mid": "lora_mid"}
