from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from adapterline.checkpoints import load_checkpoint
from adapterline.checkpoints.extract import extract
from adapterline.errors import FamilyError
from adapterline.families import family_named
from adapterline.families.base import ModelConfig, open_base, read_base
from adapterline.families.skeleton import build_model, build_pipeline, plain_name, targets
from adapterline.layouts import convert
from adapterline.scratch import Scratch
from adapterline.serialize import serialize
from adapterline.values import WEIGHT_NAME, ExportOptions
from tests.bases import CONFIGS, load_component
from tests.bases import FAMILIES as TESTED
from tests.families.tiny import CASES

BaseOf = Callable[[str], Path]
FULL = CONFIGS / "sd15_full"


def storage(model: torch.nn.Module) -> int:
    """Bytes of all parameters and buffers, each storage once."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


# --- what diffusers says ----------------------------------------------------------------------------------------------


def test_family_is_found_by_its_name() -> None:
    assert family_named("flux").title == "FLUX.1"
    with pytest.raises(KeyError):
        family_named("wan3")


@pytest.mark.parametrize(
    ("pipeline", "family"),
    [
        ("StableDiffusionPipeline", "sd15"),
        ("StableDiffusionImg2ImgPipeline", "sd15"),
        ("StableDiffusionInpaintPipeline", "sd15"),
        ("StableDiffusionControlNetPipeline", "sd15"),
        ("StableDiffusionXLPipeline", "sdxl"),
        ("StableDiffusionXLImg2ImgPipeline", "sdxl"),
        ("StableDiffusionXLInpaintPipeline", "sdxl"),
        ("StableDiffusion3Pipeline", "sd3"),
        ("StableDiffusion3Img2ImgPipeline", "sd3"),
        ("FluxPipeline", "flux"),
        ("FluxKontextPipeline", "flux"),
        ("FluxFillPipeline", "flux"),
        ("FluxImg2ImgPipeline", "flux"),
        ("Flux2Pipeline", "flux2"),
        ("QwenImagePipeline", "qwenimage"),
        ("QwenImageEditPipeline", "qwenimage"),
        ("AmusedPipeline", "amused"),
    ],
)
def test_pipeline_class_tells_the_family(base: BaseOf, tmp_path: Path, pipeline: str, family: str) -> None:
    source = CASES[family].write(tmp_path / "tiny") if family == "amused" else base(family)
    folder = _with_index(source, tmp_path / "base", _class_name=pipeline)
    found = read_base(folder)
    assert (found.family.name, found.pipeline) == (family, pipeline)


def _with_index(source: Path, folder: Path, **changes: Any) -> Path:
    """The configurations of a base, with another model_index.json."""
    for path in source.glob("*/config.json"):
        (folder / path.parent.name).mkdir(parents=True)
        shutil.copy(path, folder / path.parent.name)
    index = json.loads((source / "model_index.json").read_text()) | changes
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "AmusedImg2ImgPipeline",
        "DDPMPipeline",
        "NoSuchPipeline",
        "UNet2DConditionModel",
        "os.system",
        "",
        None,
        3,
        "__name__",
    ],
)
def test_pipeline_of_no_supported_family_is_refused(base: BaseOf, tmp_path: Path, name: Any) -> None:
    with pytest.raises(FamilyError):
        read_base(_with_index(base("sd15"), tmp_path / "base", _class_name=name))


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, None])
@pytest.mark.parametrize("place", ["model_index.json", "unet/config.json"])
def test_base_whose_configuration_cannot_be_read_is_refused(
    base: BaseOf, tmp_path: Path, place: str, text: str | None
) -> None:
    folder = _with_index(base("sd15"), tmp_path / "base")
    (folder / place).unlink()
    if text is not None:
        (folder / place).write_text(text)
    with pytest.raises(FamilyError):
        read_base(folder)


def test_base_that_is_no_pipeline_is_refused(base: BaseOf, tmp_path: Path) -> None:
    with pytest.raises(FamilyError, match="model_index"):
        open_base(str(tmp_path), tmp_path)
    with pytest.raises(FamilyError, match="neither a folder nor a Hub id"):
        open_base(str(tmp_path / "nothing"), tmp_path)
    with pytest.raises(FamilyError, match="none of the models"):
        read_base(_with_index(base("sd15"), tmp_path / "base", unet=[None, None], text_encoder=None))


@pytest.mark.parametrize("name", ["NoSuchModel", "logging", "DiffusionPipeline", "__doc__"])
def test_model_class_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(FamilyError, match="no model class"):
        build_model(ModelConfig("diffusers", name, {}))


def test_configuration_that_builds_nothing_is_refused(base: BaseOf) -> None:
    config = read_base(base("sd15")).models["unet"].config | {"block_out_channels": "x"}
    with pytest.raises(FamilyError, match="cannot be built"):
        build_model(ModelConfig("diffusers", "UNet2DConditionModel", config))


# --- architecture -----------------------------------------------------------------------------------------------------


def test_architecture_is_of_what_the_models_are_and_not_of_where_they_came_from(base: BaseOf, tmp_path: Path) -> None:
    before = read_base(base("sd15")).architecture
    folder = _with_index(base("sd15"), tmp_path / "base", _diffusers_version="9.9")
    path = folder / "unet" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"_name_or_path": "/elsewhere", "_diffusers_version": "9"}, indent=7))
    assert read_base(folder).architecture == before
    path.write_text(json.dumps(config | {"cross_attention_dim": 48}))
    assert read_base(folder).architecture != before


# --- skeletons --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", TESTED)
def test_skeleton_is_the_real_model_without_its_memory(base: BaseOf, family: str) -> None:
    for component, config in read_base(base(family)).models.items():
        skeleton, real = build_model(config), load_component(base(family), component)
        assert type(skeleton) is type(real)
        assert not skeleton.training
        shapes = {name: (tuple(p.shape), p.is_meta) for name, p in skeleton.named_parameters(remove_duplicate=False)}
        assert shapes == {name: (tuple(p.shape), False) for name, p in real.named_parameters(remove_duplicate=False)}
        assert not any(tensor.is_meta or tensor.any() for tensor in skeleton.state_dict().values())
        assert storage(skeleton) < 8 * (len(shapes) + len(list(skeleton.buffers())))


def test_skeleton_of_the_real_sd15_has_its_parameters_and_no_memory() -> None:
    models = {name: build_model(config) for name, config in read_base(FULL).models.items()}
    counts = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    assert counts == {"unet": 859_520_964, "text_encoder": 123_060_480}
    assert all(storage(model) < 16_000 for model in models.values())


@pytest.mark.parametrize("family", TESTED)
def test_pipeline_is_built_around_skeletons_alone(base: BaseOf, family: str) -> None:
    model = read_base(base(family))
    name = model.family.components[0].name
    pipeline = build_pipeline(model, {name: build_model(model.models[name])})
    assert type(pipeline).__name__ == model.pipeline
    assert [key for key, part in pipeline.components.items() if isinstance(part, torch.nn.Module)] == [name]


@pytest.mark.parametrize("family", TESTED)
def test_targets_are_the_layers_of_the_real_model(base: BaseOf, family: str) -> None:
    model = read_base(base(family))
    for component in model.models:
        real = {
            plain_name(name): tuple(module.weight.shape)
            for name, module in load_component(base(family), component).named_modules()
            if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
        }
        found = targets(model, component)
        assert {name: target.shape for name, target in found.items()} == real
        assert {target.kind for target in found.values()} <= {"Linear", "Conv2d"}
        assert targets(model, component) is found


# --- an export of real size -------------------------------------------------------------------------------------------


def test_rank_4_adapter_of_the_real_sd15_is_256_tensors_and_797184_parameters(tmp_path: Path) -> None:
    base = read_base(FULL)
    adapted = [
        (name, target.shape)
        for name, target in targets(base, "unet").items()
        if name.endswith(("to_q", "to_k", "to_v", "to_out.0"))
    ]
    tensors = {}
    for name, (out, inner) in adapted:
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(4, inner)
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(out, 4)
    (tmp_path / "trained").mkdir()
    save_file(tensors, tmp_path / "trained" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["to_q", "to_k", "to_v", "to_out.0"]}
    (tmp_path / "trained" / "adapter_config.json").write_text(json.dumps(config))

    options, scratch = ExportOptions(), Scratch(tmp_path / "scratch", 10**9, 1e6)
    adapter = extract(load_checkpoint(str(tmp_path / "trained"), options, tmp_path), base, options)
    bundle = serialize(convert(adapter, base, options), scratch)

    with safe_open(scratch.folder(bundle.digest) / WEIGHT_NAME, "pt") as file:
        written = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    assert len(written) == 256
    assert sum(tensor.numel() for tensor in written.values()) == 797_184
    assert bundle.files[0].size == pytest.approx(797_184 * 4, rel=0.02)
    for key, tensor in tensors.items():
        assert torch.equal(written[key.replace("base_model.model.", "unet.")], tensor), key
