from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

from adapterline.deltas import LowRank
from adapterline.errors import ConversionError
from adapterline.families.base import Base, read_base
from adapterline.layouts import convert
from adapterline.serialize import write_safetensors
from adapterline.values import WEIGHT_NAME, Adapter, ExportOptions, FilePlan, LoadCall
from tests.layouts.random_deltas import deltas_for, names_in

BaseOf = Callable[[str], Path]


def with_parts(deltas: dict[str, LowRank], **parts: bool) -> dict[str, LowRank]:
    return {
        name: LowRank(d.a, d.b, d.scale, **{part: torch.ones(d.shape[0]) for part, wanted in parts.items() if wanted})
        for name, d in deltas.items()
    }


def planned(base: Base, components: dict[str, dict[str, LowRank]], **options: Any) -> FilePlan:
    (file,) = convert(Adapter(base.family.name, components), base, ExportOptions(**options)).files
    return file


def metadata(file: FilePlan) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.header["lora_adapter_metadata"])
    return found


def load(base_folder: Path, file: FilePlan, folder: Path) -> Any:
    """A real pipeline with real weights that loaded the file, as its users would."""
    write_safetensors(folder / WEIGHT_NAME, file.tensors, file.header)
    pipeline = DiffusionPipeline.from_pretrained(base_folder)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*(is_gradient_checkpointing|lora_bias=True|lora_B.bias).*")
        pipeline.load_lora_weights(str(folder), weight_name=WEIGHT_NAME)
    return pipeline


def adapted(model: Any) -> dict[str, Any]:
    """The adapted layers of a loaded model, by their names without `text_model.`."""
    return {
        name.removeprefix("text_model."): module for name, module in model.named_modules() if hasattr(module, "lora_A")
    }


# --- keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "component", "stem", "magnitude"),
    [
        ("sd15", "unet", "unet.", "lora_magnitude_vector"),
        ("flux", "transformer", "transformer.", "lora_magnitude_vector"),
        ("sd15", "text_encoder", "text_encoder.text_model.", "lora_magnitude_vector.weight"),
        ("sdxl", "text_encoder_2", "text_encoder_2.text_model.", "lora_magnitude_vector.weight"),
    ],
)
def test_keys_are_those_that_consumers_know(
    base: BaseOf, family: str, component: str, stem: str, magnitude: str
) -> None:
    model = read_base(base(family))
    (name, *_) = names_in(model, component, "(to_q|q_proj)$")
    deltas = with_parts(deltas_for(model, component, [name]), magnitude=True, bias=True)
    file = planned(model, {component: deltas})
    parts = ("lora_A.weight", "lora_B.weight", "lora_B.bias", magnitude)
    assert set(file.tensors) == {f"{stem}{name}.{part}" for part in parts}
    assert (file.path, file.role, file.layout) == ("pytorch_lora_weights.safetensors", "weights", "diffusers")


def test_load_call_is_the_pipelines_own(base: BaseOf) -> None:
    model = read_base(base("flux"))
    deltas = deltas_for(model, "transformer", names_in(model, "transformer", "to_q$"))
    plan = convert(Adapter("flux", {"transformer": deltas}), model, ExportOptions())
    assert plan.loads == (LoadCall(pipeline="FluxPipeline", method="load_lora_weights", weight_name=WEIGHT_NAME),)


def test_tensors_are_made_as_they_are_planned(base: BaseOf) -> None:
    model = read_base(base("sd15"))
    deltas = with_parts(deltas_for(model, "unet", names_in(model, "unet", "conv1$|to_k$"), scale=2.5), magnitude=True)
    for options in ({}, {"dtype": "float16"}, {"scale": "header"}, {"scale": "header", "dtype": "bfloat16"}):
        for key, tensor in planned(model, {"unet": deltas}, **options).tensors.items():
            made = tensor.make()
            assert tuple(made.shape) == tensor.shape, key
            assert made.dtype == {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[tensor.dtype]


@pytest.mark.parametrize(("dtype", "stored"), [("float16", "F16"), ("bfloat16", "BF16"), ("float32", "F32")])
def test_dtype_is_that_which_was_asked_for(base: BaseOf, dtype: str, stored: str) -> None:
    model = read_base(base("sd15"))
    deltas = deltas_for(model, "unet", names_in(model, "unet", "to_q$"))
    assert {tensor.dtype for tensor in planned(model, {"unet": deltas}, dtype=dtype).tensors.values()} == {stored}


# --- the header -------------------------------------------------------------------------------------------------------


def test_header_says_nothing_where_nothing_needs_saying(base: BaseOf) -> None:
    model = read_base(base("sd15"))
    unet = deltas_for(model, "unet", names_in(model, "unet", "to_q$"))
    clip = deltas_for(model, "text_encoder", names_in(model, "text_encoder", "q_proj$"), rank=2)
    assert planned(model, {"unet": unet}).header == {"format": "pt"}
    assert planned(model, {"unet": unet, "text_encoder": clip}).header == {"format": "pt"}
    assert planned(model, {"unet": with_parts(unet, magnitude=True)}).header == {"format": "pt"}


@pytest.mark.parametrize("why", ["rank", "bias"])
def test_header_is_there_for_every_component_where_one_needs_it(base: BaseOf, why: str) -> None:
    model = read_base(base("sd15"))
    names = names_in(model, "unet", "to_q$")
    unet = deltas_for(model, "unet", names)
    unet = with_parts(unet, bias=True) if why == "bias" else unet | deltas_for(model, "unet", names[:1], rank=2)
    clip = deltas_for(model, "text_encoder", names_in(model, "text_encoder", "q_proj$"))
    said = metadata(planned(model, {"unet": unet, "text_encoder": clip}))
    assert {key.split(".")[0] for key in said} == {"unet", "text_encoder"}
    assert (said["unet.r"], said["unet.lora_alpha"]) == (4, 4)
    assert said["unet.lora_bias"] is (why == "bias")
    assert said["unet.rank_pattern"] == ({f"^{re.escape(names[0])}": 2} if why == "rank" else {})
    assert not any("text_model" in name for name in said["text_encoder.target_modules"])


def test_header_is_minimal_and_sorted(base: BaseOf) -> None:
    model = read_base(base("sd15"))
    deltas = deltas_for(model, "unet", names_in(model, "unet", "to_q$"))
    backwards = dict(reversed(deltas.items()))
    text = planned(model, {"unet": deltas}, scale="header").header["lora_adapter_metadata"]
    assert planned(model, {"unet": backwards}, scale="header").header["lora_adapter_metadata"] == text
    said = json.loads(text)
    assert list(said) == sorted(said)
    assert {key.removeprefix("unet.") for key in said} == {
        *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules", "lora_bias", "use_dora")
    }
    assert said["unet.target_modules"] == sorted(deltas)
    assert "peft" not in text


@pytest.mark.parametrize("scale", [2.0, 1 / 3, 0.1, 5.656854249492381])
def test_scale_in_the_header_is_the_scale_after_loading(base: BaseOf, tmp_path: Path, scale: float) -> None:
    model = read_base(base("sd15"))
    names = names_in(model, "unet", "to_q$")
    unet = deltas_for(model, "unet", names, rank=3, scale=scale) | deltas_for(model, "unet", names[:2], 4, 1.5)
    clip = deltas_for(model, "text_encoder", names_in(model, "text_encoder", "q_proj$"), scale=scale)
    file = planned(model, {"unet": unet, "text_encoder": clip}, scale="header")
    pipeline = load(base("sd15"), file, tmp_path)
    for component, deltas in (("unet", unet), ("text_encoder", clip)):
        layers = adapted(getattr(pipeline, component))
        assert set(layers) == set(deltas)
        for name, delta in deltas.items():
            assert next(iter(layers[name].scaling.values())) == pytest.approx(delta.scale, rel=1e-12), name
            assert torch.equal(next(iter(layers[name].lora_A.values())).weight, delta.a)


def test_mixed_ranks_arrive_with_scale_one_once_folded(base: BaseOf, tmp_path: Path) -> None:
    model = read_base(base("sdxl"))
    names = names_in(model, "text_encoder_2", "(q|v)_proj$")
    deltas = deltas_for(model, "text_encoder_2", names) | deltas_for(model, "text_encoder_2", names[1:2], 2, 0.5)
    pipeline = load(base("sdxl"), planned(model, {"text_encoder_2": deltas}), tmp_path)
    layers = adapted(pipeline.text_encoder_2)
    assert {name: next(iter(module.r.values())) for name, module in layers.items()} == {
        name: delta.rank for name, delta in deltas.items()
    }
    assert {next(iter(module.scaling.values())) for module in layers.values()} == {1.0}


@pytest.mark.parametrize("options", [{}, {"scale": "header"}], ids=["portable", "header"])
def test_layer_whose_name_ends_others_is_adapted_alone(base: BaseOf, tmp_path: Path, options: dict[str, Any]) -> None:
    """FLUX has a `proj_out`, and one in every single block: peft takes a name for all that end in it."""
    model = read_base(base("flux"))
    assert len(names_in(model, "transformer", r"(^|\.)proj_out$")) > 2
    deltas = deltas_for(model, "transformer", ["proj_out"])
    file = planned(model, {"transformer": deltas}, **options)
    assert metadata(file)["transformer.target_modules"] == "proj_out"
    layers = adapted(load(base("flux"), file, tmp_path).transformer)
    assert set(layers) == {"proj_out"}
    assert not any(parameter.is_meta for parameter in layers["proj_out"].parameters())


def test_layers_in_blocks_do_not_take_the_one_that_ends_their_names(base: BaseOf, tmp_path: Path) -> None:
    model = read_base(base("flux"))
    names = names_in(model, "transformer", r"\.proj_out$")
    file = planned(model, {"transformer": deltas_for(model, "transformer", names)})
    assert file.header == {"format": "pt"}
    assert set(adapted(load(base("flux"), file, tmp_path).transformer)) == set(names)


def test_rank_of_a_look_alike_is_its_own(base: BaseOf, tmp_path: Path) -> None:
    model = read_base(base("flux"))
    names = names_in(model, "transformer", r"(^|\.)proj_out$")
    deltas = deltas_for(model, "transformer", names) | deltas_for(model, "transformer", ["proj_out"], rank=2)
    layers = adapted(load(base("flux"), planned(model, {"transformer": deltas}), tmp_path).transformer)
    assert {name: next(iter(module.r.values())) for name, module in layers.items()} == {
        name: 2 if name == "proj_out" else 4 for name in names
    }


def test_magnitude_that_some_layers_lack_is_refused(base: BaseOf) -> None:
    model = read_base(base("sd15"))
    deltas = deltas_for(model, "unet", names_in(model, "unet", "to_q$"))
    (first, *_) = deltas
    mixed = deltas | with_parts({first: deltas[first]}, magnitude=True)
    with pytest.raises(ConversionError, match="magnitude"):
        planned(model, {"unet": mixed})
    clip = with_parts(deltas_for(model, "text_encoder", names_in(model, "text_encoder", "q_proj$")), magnitude=True)
    assert planned(model, {"unet": deltas, "text_encoder": clip}).tensors, "components may differ"


def test_bias_that_some_layers_lack_is_zero_there(base: BaseOf, tmp_path: Path) -> None:
    model = read_base(base("sd15"))
    deltas = deltas_for(model, "unet", names_in(model, "unet", "to_q$"))
    (first, *rest) = deltas
    mixed = deltas | with_parts({first: deltas[first]}, bias=True)
    layers = adapted(load(base("sd15"), planned(model, {"unet": mixed}), tmp_path).unet)
    biases = {name: next(iter(layers[name].lora_B.values())).bias for name in layers}
    assert torch.equal(biases[first], torch.full_like(biases[first], 2.0)), "the scale is folded into it"
    assert len(rest) > 1
    assert not any(biases[name].any() for name in rest)
