"""Components that take more than one file and one call, and layers that take more than their factors."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from adapterline.families.base import read_base
from adapterline.families.skeleton import build_pipeline, targets
from adapterline.package.card import snippet
from adapterline.summaries import summarize
from adapterline.validation import validate_file
from adapterline.validation.consumers.diffusers import Diffusers, load_into_skeleton
from adapterline.values import WEIGHT_NAME, Bundle, ExportOptions
from tests.families.adapted import layers_of, load, same_layers, train
from tests.families.tiny import CASES, Case, Tiny
from tests.line import Exported, run_line

SECOND = "pytorch_lora_weights_2.safetensors"
WAN, SANA = CASES["wan"], CASES["sana"]


def export(case: Case, work: Path, *components: str, **options: Any) -> Exported:
    for name in components:
        train(case.build(name), work / "trained" / name)
    return run_line(work / "trained", case.write(work / "base"), work, ExportOptions(**options))


def attention(model: torch.nn.Module) -> list[str]:
    return [name for name, _ in model.named_modules() if re.search(r"attn\d\.to_[qkv]$", name)]


# --- Wan's two experts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("components", "files"),
    [
        (("transformer",), [WEIGHT_NAME]),
        (("transformer_2",), [SECOND]),
        (("transformer", "transformer_2"), [WEIGHT_NAME, SECOND]),
    ],
)
def test_each_expert_of_wan_has_its_file_and_its_call(
    tmp_path: Path, components: tuple[str, ...], files: list[str]
) -> None:
    exported = export(WAN, tmp_path, *components)
    assert [file.path for file in exported.plan.files] == files
    assert [(call.weight_name, call.kwargs.get("load_into_transformer_2")) for call in exported.plan.loads] == [
        (name, True if name == SECOND else None) for name in files
    ]
    for name in files:  # the loader knows no other prefix
        assert {key.split(".")[0] for key in load_file(exported.folder / name)} == {"transformer"}
    assert validate_file(exported.folder / files[-1], exported.base, exported.source).passed


def test_second_call_under_one_adapter_name_leaves_the_first_as_it_was(tmp_path: Path) -> None:
    exported = export(WAN, tmp_path, "transformer", "transformer_2")
    models = {name: WAN.build(name) for name in WAN.models}
    pipeline = build_pipeline(exported.base, models)
    first, second = exported.plan.loads
    for call in (first, second):
        pipeline.load_lora_weights(
            str(exported.folder), weight_name=call.weight_name, adapter_name="mine", **call.kwargs
        )
    assert pipeline.get_list_adapters() == {"transformer": ["mine"], "transformer_2": ["mine"]}
    for name, model in models.items():
        same_layers(train(WAN.build(name), tmp_path / "again" / name), model)
        assert {tuple(layer.active_adapters) for layer in layers_of(model).values()} == {("mine",)}


def test_experts_that_changed_places_are_found(tmp_path: Path) -> None:
    exported = export(WAN, tmp_path, "transformer", "transformer_2")
    shutil.copytree(exported.folder, tmp_path / "swapped")
    shutil.copy(exported.folder / WEIGHT_NAME, tmp_path / "swapped" / SECOND)
    shutil.copy(exported.folder / SECOND, tmp_path / "swapped" / WEIGHT_NAME)
    report = validate_file(tmp_path / "swapped" / WEIGHT_NAME, exported.base, exported.source)
    failed = {(check.name, check.component) for check in report.failures}
    assert {("effect, exact", "transformer"), ("effect, exact", "transformer_2")} <= failed


def test_expert_whose_call_forgets_where_it_goes_is_found(tmp_path: Path) -> None:
    exported = export(WAN, tmp_path, "transformer_2")
    (call,) = exported.plan.loads
    astray = exported.bundle.model_copy(update={"loads": (call.model_copy(update={"kwargs": {}}),)})
    assert isinstance(astray, Bundle)
    broken = Exported(**{**vars(exported), "bundle": astray})
    assert exported.report().passed
    assert not broken.report().passed


def test_first_file_alone_is_not_the_export_of_both(tmp_path: Path) -> None:
    exported = export(WAN, tmp_path, "transformer", "transformer_2")
    (tmp_path / "alone").mkdir()
    shutil.copy(exported.folder / WEIGHT_NAME, tmp_path / "alone")
    report = validate_file(tmp_path / "alone" / WEIGHT_NAME, exported.base, exported.source)
    assert ("no module is missing", "transformer_2") in {(check.name, check.component) for check in report.failures}


def test_both_experts_are_in_the_summary(tmp_path: Path) -> None:
    exported = export(WAN, tmp_path, "transformer", "transformer_2")
    summary = summarize(exported.adapter, exported.plan)
    assert set(summary) == {"transformer", "transformer_2"}
    for name, file in (("transformer", WEIGHT_NAME), ("transformer_2", SECOND)):
        assert summary[name].parameters == sum(t.numel() for t in load_file(exported.folder / file).values())


def test_zeros_that_the_loader_adds_for_images_are_no_finding(tmp_path: Path) -> None:
    tiny = WAN.models["transformer"]
    images = dict(tiny.config) | {"image_dim": 8, "added_kv_proj_dim": 24}
    case = Case("WanImageToVideoPipeline", {"transformer": Tiny(tiny.model_class, images, tiny.inputs)})
    trained = train(case.build("transformer"), tmp_path / "trained" / "transformer", attention)
    exported = run_line(tmp_path / "trained", case.write(tmp_path / "base"), tmp_path)
    assert exported.report().passed
    model = case.build("transformer")
    load(exported, {"transformer": model})
    added = set(layers_of(model)) - set(layers_of(trained))
    assert {name.rpartition(".")[2] for name in added} == {"add_k_proj", "add_v_proj"}

    # Only zeros that are in no file are let pass.
    loads, files = exported.plan.loads, tuple(load.weight_name for load in exported.plan.loads)
    found = load_into_skeleton(exported.folder, loads, exported.base, ("transformer",), {})
    assert added <= set(found.components["transformer"])
    kept = Diffusers().load(exported.folder, files, loads, exported.base, ())
    assert kept is not None
    assert {name for name, layer in kept.components["transformer"].items() if layer.is_filler} == added
    grown = tmp_path / "grown"
    grown.mkdir()
    tensors = load_file(exported.folder / WEIGHT_NAME)
    zeros = {
        f"transformer.{name}.lora_{part}.weight": getattr(found.components["transformer"][name].delta, part.lower())
        for name in added
        for part in "AB"
    }
    save_file(tensors | {key: tensor.contiguous() for key, tensor in zeros.items()}, grown / WEIGHT_NAME)
    kept = Diffusers().load(grown, files, loads, exported.base, ())
    assert kept is not None
    assert not any(layer.is_filler for layer in kept.components["transformer"].values())


# --- grouped convolutions ---------------------------------------------------------------------------------------------


def _depthwise(model: torch.nn.Module) -> list[str]:
    return [name for name, _ in model.named_modules() if name.endswith("ff.conv_depth")]


def test_depthwise_layer_sees_all_inputs_through_its_adapter(tmp_path: Path) -> None:
    base = read_base(SANA.write(tmp_path / "base"))
    layer = targets(base, "transformer")["transformer_blocks.0.ff.conv_depth"]
    assert (layer.groups, layer.shape, layer.change) == (16, (16, 1, 3, 3), (16, 16, 3, 3))


@pytest.mark.parametrize(("rank", "alpha", "scale"), [(16, 24, "portable"), (32, 5, "portable"), (16, 5, "header")])
def test_adapter_of_a_depthwise_layer_says_its_rank_and_is_exact(
    tmp_path: Path, rank: int, alpha: float, scale: str
) -> None:
    trained = train(SANA.build("transformer"), tmp_path / "trained" / "transformer", _depthwise, rank, alpha)
    options = ExportOptions(scale=scale)  # type: ignore[arg-type]
    exported = run_line(tmp_path / "trained", SANA.write(tmp_path / "base"), tmp_path, options)
    assert exported.report().passed
    with safe_open(exported.folder / WEIGHT_NAME, "pt") as file:
        metadata = json.loads(file.metadata()["lora_adapter_metadata"])
    assert metadata["transformer.r"] == rank
    assert metadata["transformer.lora_alpha"] == (rank if scale == "portable" else alpha)
    model = SANA.build("transformer")
    load(exported, {"transformer": model})
    same_layers(trained, model)


def test_depthwise_layer_without_its_rank_in_the_header_fails(tmp_path: Path) -> None:
    train(SANA.build("transformer"), tmp_path / "trained" / "transformer", _depthwise, 32, 5)
    exported = run_line(tmp_path / "trained", SANA.write(tmp_path / "base"), tmp_path)
    (tmp_path / "bare").mkdir()
    save_file(load_file(exported.folder / WEIGHT_NAME), tmp_path / "bare" / WEIGHT_NAME, {"format": "pt"})
    assert not validate_file(tmp_path / "bare" / WEIGHT_NAME, exported.base, exported.source).passed


def test_pipeline_class_of_both_experts_is_diffusers_own(tmp_path: Path) -> None:
    exported = export(WAN, tmp_path, "transformer")
    assert type(build_pipeline(exported.base, {"transformer": WAN.build("transformer")})) is WanPipeline


def test_snippet_opens_the_pipeline_once_for_both_calls(tmp_path: Path) -> None:
    exported = export(WAN, tmp_path, "transformer", "transformer_2")
    lines = snippet(exported.plan.loads, "here", "org/wan").splitlines()
    assert lines[2:] == [
        "pipe = diffusers.WanPipeline.from_pretrained('org/wan')",
        f"pipe.load_lora_weights('here', weight_name={WEIGHT_NAME!r})",
        f"pipe.load_lora_weights('here', weight_name={SECOND!r}, load_into_transformer_2=True)",
    ]


def test_snippet_of_a_modular_pipeline_loads_its_components_first(tmp_path: Path) -> None:
    exported = export(CASES["anima"], tmp_path, "text_conditioner")
    lines = snippet(exported.plan.loads, "here", None).splitlines()
    assert [line.partition("(")[0] for line in lines[2:]] == [
        "pipe = diffusers.AnimaModularPipeline.from_pretrained",
        "pipe.load_components",
        "pipe.load_lora_weights",
    ]
