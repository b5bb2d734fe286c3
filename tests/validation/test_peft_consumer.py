"""PEFT drops what it has no place for without a word: what it made of a folder is counted and compared."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapterline.errors import CheckpointError
from adapterline.families.base import Base, read_base
from adapterline.validation import validate_file
from adapterline.validation.consumers.peft import Peft
from adapterline.validation.files import exhibit_at
from adapterline.values import ExportOptions, ValidationReport
from tests.bases import peft_adapter
from tests.line import Exported, run_line

BaseOf = Callable[[str], Path]
Tensors = dict[str, torch.Tensor]
Config = dict[str, Any]

LAYER = "transformer_blocks.0.attn.to_q"
OTHER = "transformer_blocks.0.attn.to_k"
STEM = f"base_model.model.{LAYER}"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture(scope="module")
def exported_of(base: BaseOf, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    """A good export of a transformer, plain with mixed alphas, or DoRA."""

    def make(name: str, **settings: Any) -> Exported:
        work = tmp_path_factory.mktemp(name)
        peft_adapter(base("flux"), "transformer", work / "t" / "transformer", 4, 10, ["to_q", "to_k"], **settings)
        return run_line(work / "t", base("flux"), work, ExportOptions(layouts=("peft",)))

    made = {
        "mixed": make("mixed", alpha_pattern={"to_k": 6}, rank_pattern={r"transformer_blocks\.0\..*to_k": 2}),
        "dora": make("dora", use_dora=True),
    }
    return made.__getitem__


def broken(
    good: Exported, out: Path, edit: Callable[[Tensors, Config], None], *, against: bool = True
) -> ValidationReport:
    """The report on a copy of the good folder that `edit` changed."""
    folder = out / "transformer"
    shutil.copytree(good.folder / "peft/transformer", folder)
    tensors, config = load_file(folder / WEIGHTS), json.loads((folder / CONFIG).read_text())
    edit(tensors, config)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / WEIGHTS, {"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config))
    return validate_file(folder, good.base, good.source if against else None)


def failed(report: ValidationReport) -> set[str]:
    return {check.name for check in report.failures}


def no_edit(tensors: Tensors, config: Config) -> None:
    pass


@pytest.mark.parametrize("kind", ["mixed", "dora"])
@pytest.mark.parametrize("against", [True, False])
def test_a_good_folder_passes_with_every_tensor_counted(
    exported_of: Callable[[str], Exported], tmp_path: Path, kind: str, against: bool
) -> None:
    report = broken(exported_of(kind), tmp_path, no_edit, against=against)
    assert report.passed, report.failures
    (arrived,) = [check for check in report.checks if check.name == "all tensors arrive"]
    count = len(load_file(exported_of(kind).folder / "peft/transformer" / WEIGHTS))
    assert (arrived.observed, arrived.limit) == (f"{count} of {count}", f"{count}")
    assert {check.consumer for check in report.checks} == {"peft"}
    assert report.consumers == {f"transformer/{CONFIG}": ("peft",), f"transformer/{WEIGHTS}": ("peft",)}


# --- what PEFT loads without an exception, and what it then lacks -----------------------------------------------------


def _a_tensor_is_missing(tensors: Tensors, config: Config) -> None:
    del tensors[f"{STEM}.lora_B.weight"]


def _a_layer_is_missing(tensors: Tensors, config: Config) -> None:
    del tensors[f"{STEM}.lora_A.weight"], tensors[f"{STEM}.lora_B.weight"]


def _a_tensor_is_for_no_module(tensors: Tensors, config: Config) -> None:
    tensors["base_model.model.transformer_blocks.7.attn.to_q.lora_A.weight"] = torch.ones(4, 16)


def _a_layer_is_no_target(tensors: Tensors, config: Config) -> None:
    config["target_modules"].remove(LAYER)


def _a_target_is_no_layer(tensors: Tensors, config: Config) -> None:
    config["target_modules"].append("proj_mlp")


def _keys_have_a_prefix_too_many(tensors: Tensors, config: Config) -> None:
    for key in list(tensors):
        tensors[key.replace("base_model.model.", "base_model.model.module.")] = tensors.pop(key)


def _keys_are_diffusers_own(tensors: Tensors, config: Config) -> None:
    for key in list(tensors):
        tensors[key.replace("base_model.model.", "transformer.")] = tensors.pop(key)


def _values_are_nan(tensors: Tensors, config: Config) -> None:
    tensors[f"{STEM}.lora_A.weight"][0, 0] = torch.nan


def _everything_is_zero(tensors: Tensors, config: Config) -> None:
    for key in tensors:
        tensors[key].zero_()


def _shapes_are_swapped(tensors: Tensors, config: Config) -> None:
    key = f"{STEM}.lora_A.weight"
    tensors[key] = tensors[key].T.clone()


def _rank_is_another(tensors: Tensors, config: Config) -> None:
    config["r"] = 8


def _ranks_are_lost(tensors: Tensors, config: Config) -> None:
    config["rank_pattern"] = {}


@pytest.mark.parametrize(
    ("edit", "checks"),
    [
        (_a_tensor_is_missing, {"has data (not on the meta device)"}),
        (_a_layer_is_missing, {"has data (not on the meta device)"}),
        (_a_tensor_is_for_no_module, {"all tensors arrive"}),
        (_a_layer_is_no_target, {"all tensors arrive"}),
        (_a_target_is_no_layer, {"has data (not on the meta device)"}),
        (_keys_have_a_prefix_too_many, {"all tensors arrive", "has data (not on the meta device)"}),
        (_keys_are_diffusers_own, {"all tensors arrive", "has data (not on the meta device)"}),
        (_values_are_nan, {"finite"}),
        (_everything_is_zero, {"alive (some B is not zero)"}),
        (_shapes_are_swapped, {"loads"}),
        (_rank_is_another, {"loads"}),
        (_ranks_are_lost, {"loads"}),
    ],
)
def test_a_folder_that_does_not_load_whole_fails_by_itself(
    exported_of: Callable[[str], Exported],
    tmp_path: Path,
    edit: Callable[[Tensors, Config], None],
    checks: set[str],
) -> None:
    assert failed(broken(exported_of("mixed"), tmp_path, edit, against=False)) >= checks


def test_modules_that_nothing_was_loaded_into_are_named(exported_of: Callable[[str], Exported], tmp_path: Path) -> None:
    report = broken(exported_of("mixed"), tmp_path, _a_tensor_is_missing, against=False)
    assert {check.name: check.modules for check in report.failures} == {"has data (not on the meta device)": (LAYER,)}


# --- what loads whole and computes something else ---------------------------------------------------------------------


def _alpha_is_lost(tensors: Tensors, config: Config) -> None:
    config |= {"lora_alpha": config["r"], "alpha_pattern": {}}


def _alpha_of_some_is_lost(tensors: Tensors, config: Config) -> None:
    config["alpha_pattern"] = {}


def _scale_is_of_the_root_of_the_rank(tensors: Tensors, config: Config) -> None:
    config["use_rslora"] = True


def _one_element_is_one_ulp_off(tensors: Tensors, config: Config) -> None:
    values = tensors[f"{STEM}.lora_B.weight"]
    values[3, 1] = torch.nextafter(values[3, 1], torch.tensor(torch.inf))


def _layers_are_swapped(tensors: Tensors, config: Config) -> None:
    # of equal rank and shape
    other = "base_model.model.single_transformer_blocks.0.attn.to_q"
    for part in ("lora_A.weight", "lora_B.weight"):
        one, two = f"{STEM}.{part}", f"{other}.{part}"
        tensors[one], tensors[two] = tensors[two], tensors[one]


@pytest.mark.parametrize(
    ("edit", "modules"),
    [
        (_alpha_is_lost, {LAYER, OTHER}),
        (_alpha_of_some_is_lost, {LAYER}),
        (_scale_is_of_the_root_of_the_rank, {LAYER, OTHER}),
        (_one_element_is_one_ulp_off, {LAYER}),
        (_layers_are_swapped, {LAYER, "single_transformer_blocks.0.attn.to_q"}),
    ],
)
def test_a_folder_with_another_effect_fails_and_names_the_modules(
    exported_of: Callable[[str], Exported],
    tmp_path: Path,
    edit: Callable[[Tensors, Config], None],
    modules: set[str],
) -> None:
    (tmp_path / "alone").mkdir()
    assert broken(exported_of("mixed"), tmp_path / "alone", edit, against=False).passed
    report = broken(exported_of("mixed"), tmp_path, edit)
    (check,) = [check for check in report.failures if check.name == "effect, exact"]
    assert set(check.modules) >= modules
    assert (LAYER in check.modules) is (LAYER in modules)


def test_rows_in_another_order_and_other_signs_are_the_same_effect(
    exported_of: Callable[[str], Exported], tmp_path: Path
) -> None:
    def edit(tensors: Tensors, config: Config) -> None:
        a, b = tensors[f"{STEM}.lora_A.weight"], tensors[f"{STEM}.lora_B.weight"]
        tensors[f"{STEM}.lora_A.weight"], tensors[f"{STEM}.lora_B.weight"] = -a.flip(0), -b.flip(1)

    report = broken(exported_of("mixed"), tmp_path, edit)
    assert report.passed, report.failures


def _magnitude_is_lost(tensors: Tensors, config: Config) -> None:
    for key in [key for key in tensors if "magnitude" in key]:
        del tensors[key]


def _dora_is_off(tensors: Tensors, config: Config) -> None:
    config["use_dora"] = False


def _magnitude_is_another(tensors: Tensors, config: Config) -> None:
    tensors[f"{STEM}.lora_magnitude_vector"][0] *= 1.01


@pytest.mark.parametrize(
    ("edit", "check"),
    [
        (_magnitude_is_lost, "has data (not on the meta device)"),
        (_dora_is_off, "all tensors arrive"),
        (_magnitude_is_another, "effect, exact"),
    ],
)
def test_dora_that_is_not_what_was_trained_fails(
    exported_of: Callable[[str], Exported], tmp_path: Path, edit: Callable[[Tensors, Config], None], check: str
) -> None:
    assert check in failed(broken(exported_of("dora"), tmp_path, edit))


def test_magnitude_is_taken_by_both_of_its_names(exported_of: Callable[[str], Exported], tmp_path: Path) -> None:
    def edit(tensors: Tensors, config: Config) -> None:
        for key in [key for key in tensors if key.endswith("magnitude_vector")]:
            tensors[f"{key}.weight"] = tensors.pop(key)

    report = broken(exported_of("dora"), tmp_path, edit)
    assert report.passed, report.failures


@pytest.mark.parametrize("value", [1.0, torch.nan])
def test_whole_weights_that_were_not_trained_fail(
    exported_of: Callable[[str], Exported], tmp_path: Path, value: float
) -> None:
    def edit(tensors: Tensors, config: Config) -> None:
        config["modules_to_save"] = ["x_embedder"]
        width = exported_of("mixed").base.models["transformer"].config
        inner = width["num_attention_heads"] * width["attention_head_dim"]
        tensors["base_model.model.x_embedder.weight"] = torch.full((inner, width["in_channels"]), value)
        tensors["base_model.model.x_embedder.bias"] = torch.zeros(inner)

    report = broken(exported_of("mixed"), tmp_path, edit)
    assert ("finite (whole weights)" in failed(report)) is (value != 1.0)
    (check,) = [check for check in report.failures if "bit by bit" in check.name]
    assert len(check.modules) == 2


# --- folders that are not looked at -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "LOHA"}, "of type 'LOHA'"),
        ({"peft_type": "XLORA"}, "of type 'XLORA'"),
        ({"megatron_config": {"x": 1}, "megatron_core": "antigravity"}, "for Megatron"),
    ],
)
def test_other_types_and_what_imports_modules_are_refused(
    exported_of: Callable[[str], Exported], tmp_path: Path, settings: Config, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        broken(exported_of("mixed"), tmp_path, lambda tensors, config: config.update(settings))


def test_pickled_weights_are_not_loaded(exported_of: Callable[[str], Exported], tmp_path: Path) -> None:
    folder = tmp_path / "transformer"
    shutil.copytree(exported_of("mixed").folder / "peft/transformer", folder)
    torch.save(load_file(folder / WEIGHTS), folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match="not a valid safetensors file"):
        validate_file(folder, exported_of("mixed").base)


# --- which model a folder is for --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trainers(base: BaseOf, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters of three models of SDXL, in folders as a trainer may call them."""
    folder = tmp_path_factory.mktemp("trainers")
    for component, name, targets in (
        ("unet", "a", ["mid_block.attentions.0.transformer_blocks.0.attn1.to_q"]),
        ("text_encoder", "b", ["q_proj"]),
        ("text_encoder_2", "c", ["q_proj"]),
    ):
        peft_adapter(base("sdxl"), component, folder / name, 4, 6, targets)
    return folder


def shown(path: Path, base: Base) -> dict[str, str]:
    """The component by folder, of all PEFT folders that are shown."""
    (layout,) = exhibit_at(path, base).layouts
    assert layout.layout == "peft"
    return {load.weight_name: load.attributes["model"] for load in layout.loads}


WANTED = {"a": "unet", "b": "text_encoder", "c": "text_encoder_2"}


def test_folders_side_by_side_are_one_exhibit(base: BaseOf, trainers: Path) -> None:
    assert shown(trainers, read_base(base("sdxl"))) == WANTED
    report = validate_file(trainers, read_base(base("sdxl")))
    assert report.passed, report.failures
    assert {check.component for check in report.checks if check.component} == set(WANTED.values())


@pytest.mark.parametrize("name", WANTED)
def test_model_is_told_by_the_class_that_the_configuration_names(base: BaseOf, trainers: Path, name: str) -> None:
    model = read_base(base("sdxl"))
    assert shown(trainers / name, model) == {name: WANTED[name]}
    assert shown(trainers / name / WEIGHTS, model) == {name: WANTED[name]}
    assert validate_file(trainers / name, model).passed


@pytest.mark.parametrize("name", ["a", "b"])
def test_model_is_told_by_its_modules_where_the_configuration_is_silent(
    base: BaseOf, trainers: Path, tmp_path: Path, name: str
) -> None:
    shutil.copytree(trainers / name, tmp_path / name)
    config = json.loads((tmp_path / name / CONFIG).read_text())
    for mapping in (None, "CLIPTextModel", {"base_model_class": "Another"}):
        (tmp_path / name / CONFIG).write_text(json.dumps(config | {"auto_mapping": mapping}))
        assert shown(tmp_path / name, read_base(base("sdxl"))) == {name: WANTED[name]}


def test_model_is_told_by_its_shapes_where_two_are_of_one_class(base: BaseOf, tmp_path: Path) -> None:
    """SD3's two CLIP text encoders differ in width."""
    model = read_base(base("sd3"))
    assert len({model.models[name].model_class for name in ("text_encoder", "text_encoder_2")}) == 1
    wide = dict(model.models["text_encoder_2"].config)
    wide["hidden_size"] *= 2
    encoder = replace(model.models["text_encoder_2"], config=wide)
    other = replace(model, models={**model.models, "text_encoder_2": encoder}, architecture="another")
    peft_adapter(base("sd3"), "text_encoder_2", tmp_path / "narrow", 4, 6, ["q_proj"])
    assert shown(tmp_path / "narrow", other) == {"narrow": "text_encoder"}
    tensors = load_file(tmp_path / "narrow" / WEIGHTS)
    grown = {key: torch.cat([tensor, tensor], 1 if "lora_A" in key else 0) for key, tensor in tensors.items()}
    shutil.copytree(tmp_path / "narrow", tmp_path / "wide")
    save_file(grown, tmp_path / "wide" / WEIGHTS)
    assert shown(tmp_path / "wide", other) == {"wide": "text_encoder_2"}


def test_name_of_the_folder_comes_first(base: BaseOf, trainers: Path, tmp_path: Path) -> None:
    shutil.copytree(trainers / "b", tmp_path / "text_encoder_2")
    model = read_base(base("sdxl"))
    assert shown(tmp_path / "text_encoder_2", model) == {"text_encoder_2": "text_encoder_2"}
    assert not validate_file(tmp_path / "text_encoder_2", model).passed


def test_two_folders_for_one_model_are_refused(base: BaseOf, trainers: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        shutil.copytree(trainers / "b", tmp_path / name)
    with pytest.raises(CheckpointError, match="several adapters of text_encoder: first, second"):
        exhibit_at(tmp_path, read_base(base("sdxl")))


def test_folder_is_found_from_within(base: BaseOf, trainers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trainers / "b")
    assert validate_file(Path(), read_base(base("sdxl"))).passed


def test_layers_have_their_tensors_and_say_how_the_file_stores_them(exported_of: Callable[[str], Exported]) -> None:
    good = exported_of("mixed")
    (layout,) = exhibit_at(good.folder / "peft", good.base).layouts
    loaded = Peft().load(good.folder / "peft", layout.files, layout.loads, good.base, ())
    layers = loaded.components["transformer"]
    assert len(layers) > 2
    assert not any(part.is_meta for layer in layers.values() for part in layer.parts)
    assert {layer.dtype for layer in layers.values()} == {"F32"}
