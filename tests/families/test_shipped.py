from __future__ import annotations

import functools
import inspect
import json
import re
import subprocess
import sys
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from adapterline.families import FAMILIES
from adapterline.families.base import ModelConfig, read_base
from adapterline.families.shipped import SHIPPED, ShippedBase, shipped
from adapterline.families.skeleton import build_model

ROOT = Path(__file__).parent.parent.parent
DENOISERS = ("unet", "transformer")
#: Of the text encoders, T5 without its second name for the embedding: transformers ties the two or not.
TEXT_ENCODERS = {
    ("CLIPTextModel", 768): 123_060_480,  # CLIP ViT-L/14
    ("CLIPTextModelWithProjection", 768): 123_650_304,
    ("CLIPTextModel", 1024): 340_387_840,  # OpenCLIP ViT-H/14 without its last layer
    ("CLIPTextModelWithProjection", 1280): 694_659_840,  # OpenCLIP ViT-bigG/14
    ("T5EncoderModel", 4096): 4_762_310_656,  # T5 v1.1 XXL
}
#: LTX-2 is known by what the whole file holds: denoiser and connectors.
CONNECTORS = {"ltx2": 1_431_475_200, "ltx2.3": 3_172_227_584}

#: A model that lives in its pipeline's folder is indexed by that folder.
LIBRARIES = {"ltx2": "diffusers.pipelines.ltx2"}
#: By what an alias has before its first hyphen.
MIXINS = {
    "sd15": "StableDiffusionLoraLoaderMixin",
    "sd21": "StableDiffusionLoraLoaderMixin",
    "sdxl": "StableDiffusionXLLoraLoaderMixin",
    "sd3": "SD3LoraLoaderMixin",
    "sd35": "SD3LoraLoaderMixin",
    "flux": "FluxLoraLoaderMixin",
    "chroma": "FluxLoraLoaderMixin",
    "flux2": "Flux2LoraLoaderMixin",
    "qwen": "QwenImageLoraLoaderMixin",
    "z": "ZImageLoraLoaderMixin",
    "krea2": "Krea2LoraLoaderMixin",
    "lumina2": "Lumina2LoraLoaderMixin",
    "hidream": "HiDreamImageLoraLoaderMixin",
    "auraflow": "AuraFlowLoraLoaderMixin",
    "cogview4": "CogView4LoraLoaderMixin",
    "sana": "SanaLoraLoaderMixin",
    "wan21": "WanLoraLoaderMixin",
    "wan22": "WanLoraLoaderMixin",
    "skyreels": "SkyReelsV2LoraLoaderMixin",
    "hunyuan": "HunyuanVideoLoraLoaderMixin",
    "ltx": "LTXVideoLoraLoaderMixin",
    "ltx2": "LTX2LoraLoaderMixin",
    "ltx2.3": "LTX2LoraLoaderMixin",
    "cogvideox": "CogVideoXLoraLoaderMixin",
    "cogvideox1.5": "CogVideoXLoraLoaderMixin",
    "mochi": "Mochi1LoraLoaderMixin",
    "cosmos": "CosmosLoraLoaderMixin",
}

every_base = pytest.mark.parametrize("base", SHIPPED, ids=lambda base: base.alias)


@dataclass(frozen=True)
class Built:
    base: ShippedBase
    configs: dict[str, ModelConfig]
    models: dict[str, Any]


@pytest.fixture(scope="module", params=SHIPPED, ids=lambda base: base.alias)
def built(request: pytest.FixtureRequest) -> Built:
    """A shipped base and its models as skeletons."""
    configs = models_of(request.param)
    return Built(request.param, configs, {name: build(config) for name, config in configs.items()})


def models_of(base: ShippedBase) -> dict[str, ModelConfig]:
    folder = shipped(base.alias)
    assert folder is not None
    index = json.loads((folder / "model_index.json").read_bytes())
    return {
        name: ModelConfig(
            LIBRARIES.get(library, library), cls, json.loads((folder / name / "config.json").read_bytes())
        )
        for name, (library, cls) in ((name, entry) for name, entry in index.items() if not name.startswith("_"))
    }


def build(config: ModelConfig) -> Any:
    return _build(config.library, config.model_class, json.dumps(config.config))


@functools.lru_cache(maxsize=16)  # the text encoders are the same in many bases
def _build(library: str, model_class: str, config: str) -> Any:
    with warnings.catch_warnings():
        # Chroma of diffusers 0.42 uses what diffusers 0.42 deprecates.
        warnings.filterwarnings("ignore", ".*FluxPosEmbed", FutureWarning)
        return build_model(ModelConfig(library, model_class, json.loads(config)))


def parameters(model: Any) -> int:
    return sum(
        parameter.numel()
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if name != "encoder.embed_tokens.weight"
    )


# --- the aliases ------------------------------------------------------------------------------------------------------


def test_aliases_are_unique_lower_case_names() -> None:
    aliases = [base.alias for base in SHIPPED]
    assert len(set(aliases)) == len(aliases)
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9.-]*", alias) for alias in aliases)
    assert len({base.model for base in SHIPPED}) == len(SHIPPED)


def test_every_folder_has_an_alias_and_every_alias_a_folder() -> None:
    folders = {path.name for path in (ROOT / "adapterline" / "families" / "configs").iterdir()}
    assert folders == {base.alias for base in SHIPPED}


@pytest.mark.parametrize("alias", ["", ".", "..", "SD15", "sd15/", "../families", "sd14", "sd15/unet"])
def test_what_is_no_alias_names_no_folder(alias: str) -> None:
    assert shipped(alias) is None


@every_base
def test_entry_says_where_it_is_from(base: ShippedBase) -> None:
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", base.model)
    assert re.fullmatch(r"https://(github\.com|huggingface\.co)/[\w./-]+\.(py|json)", base.source)
    assert base.licence in {"apache-2.0", "mit", "creativeml-openrail-m", "openrail++", "other"}


# --- the models -------------------------------------------------------------------------------------------------------


def test_models_have_the_public_number_of_parameters(built: Built) -> None:
    for name, model in built.models.items():
        config = built.configs[name]
        if name.removesuffix("_2") in DENOISERS:
            assert parameters(model) == built.base.parameters, name
        elif name == "connectors":
            assert parameters(model) == CONNECTORS[built.base.alias]
        else:
            width = config.config.get("hidden_size") or config.config["d_model"]
            assert parameters(model) == TEXT_ENCODERS[config.model_class, width], name


@pytest.mark.parametrize("base", [base for base in SHIPPED if base.stated], ids=lambda base: base.alias)
def test_rounded_public_figure_is_of_the_same_size(base: ShippedBase) -> None:
    counted = (base.parameters + CONNECTORS.get(base.alias, 0)) / 1e9
    # Names tell the size of the plain model: the image attention, face and control blocks of Wan come on top of it,
    # of VACE 15 further blocks of 30.
    limit = 0.7 if base.alias == "wan21-vace-1.3b" else 0.25
    assert counted == pytest.approx(float((base.stated or "").removesuffix("B")), rel=limit)


def test_configuration_is_what_the_class_takes_and_no_more(built: Built) -> None:
    for name, config in built.configs.items():
        arguments = dict(config.config)
        if config.library == "transformers":
            assert arguments.pop("architectures") == [config.model_class], name
            accepted = built.models[name].config.to_dict()
        else:
            assert arguments.pop("_class_name") == config.model_class, name
            # `config` of a model keeps also what its class does not know.
            known = inspect.signature(type(built.models[name]).__init__).parameters
            accepted = {key: value for key, value in built.models[name].config.items() if key in known}
            accepted = json.loads(json.dumps(accepted))
        assert arguments == {key: accepted.get(key, "unknown") for key in arguments}, name


def test_denoiser_has_layers_that_lora_adapts(built: Built) -> None:
    [denoiser] = [model for name, model in built.models.items() if name in DENOISERS]
    layers = [name for name, module in denoiser.named_modules() if isinstance(module, torch.nn.Linear)]
    assert 90 <= len(layers) < 5_000
    assert 300 < sum(1 for _ in denoiser.modules()) < 6_000
    assert any(re.search(r"(to_q|to_qkv_mlp_proj)$", name) for name in layers)


# --- the pipelines ----------------------------------------------------------------------------------------------------


@every_base
def test_index_names_a_pipeline_that_loads_lora_into_these_models(base: ShippedBase) -> None:
    folder = shipped(base.alias)
    assert folder is not None
    index = json.loads((folder / "model_index.json").read_bytes())
    pipeline = getattr(diffusers, index.pop("_class_name"))
    loadable = pipeline._lora_loadable_modules
    accepted = pipeline._get_signature_types()
    assert any(name in loadable for name in DENOISERS if name in index)
    for name, (_, cls) in index.items():
        assert cls in {kind.__name__ for kind in accepted[name]}, name
    assert {path.parent.name for path in folder.glob("*/config.json")} == set(index)
    assert {path.name for path in folder.rglob("*") if path.is_file()} == {"model_index.json", "config.json"}


def test_base_is_read_as_its_family(built: Built) -> None:
    folder = shipped(built.base.alias)
    assert folder is not None
    mixin = MIXINS[built.base.alias.partition("-")[0]]
    if mixin not in {family.mixin for family in FAMILIES}:
        pytest.skip(f"there is no family of {mixin} yet")
    read = read_base(folder)
    assert read.family.mixin == mixin
    denoisers = {name for name in built.models if name.removesuffix("_2") in DENOISERS}
    assert denoisers <= set(read.models) <= set(built.models)
    assert all(read.models[name] == built.configs[name] for name in read.models)


def test_wheel_has_every_configuration(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    [wheel] = tmp_path.glob("*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    files = {str(path.relative_to(ROOT)) for path in (ROOT / "adapterline/families/configs").rglob("*.json")}
    assert files <= inside


# --- the page ---------------------------------------------------------------------------------------------------------


def test_page_has_the_table_of_what_is_shipped() -> None:
    page = (ROOT / "docs" / "bases.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert rows == [row_of(base) for base in SHIPPED]


def row_of(base: ShippedBase) -> str:
    known = f"stated as {base.stated}" if base.stated else "as stated"
    return (
        f"| `{base.alias}` | [{base.title}](https://huggingface.co/{base.model}) | {base.parameters:,} | {known} "
        f"| {base.licence} | [{base.source.rpartition('/')[2]}]({base.source}) |"
    )
