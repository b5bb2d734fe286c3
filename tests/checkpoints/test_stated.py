"""What a checkpoint says of its base and of its trainer, and what is made of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from adapterline.checkpoints import load_checkpoint
from adapterline.checkpoints.architectures import _WORDS, ANOTHER, NETWORK_MODULES
from adapterline.checkpoints.evidence import contradiction, evidence_of, guess, stated_base
from adapterline.checkpoints.stated import card_of, hub_id, json_of
from adapterline.checkpoints.trainers import trainer_of
from adapterline.errors import FamilyError
from adapterline.families import FAMILIES
from adapterline.families.aliases import shipped_family, shipped_for
from adapterline.families.base import family_of, open_base, read_base
from adapterline.families.shipped import SHIPPED, shipped
from adapterline.inspection import inspect
from adapterline.request import base_of, check_base
from adapterline.values import WEIGHT_NAME, ExportOptions, Source, TrainingRun

KOHYA = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
SD15, SDXL = "stable-diffusion-v1-5/stable-diffusion-v1-5", "stabilityai/stable-diffusion-xl-base-1.0"


def source_of(folder: Path, header: dict[str, str] | None = None, files: dict[str, Any] | None = None) -> Source:
    """A training folder with a header and files beside the weights: text, or what is dumped as JSON."""
    folder.mkdir(exist_ok=True)
    tensors = {f"{KOHYA}.lora_down.weight": torch.ones(4, 8), f"{KOHYA}.lora_up.weight": torch.ones(8, 4)}
    save_file(tensors, folder / WEIGHT_NAME, header)
    for name, content in (files or {}).items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return load_checkpoint(str(folder), ExportOptions(), folder)


@pytest.mark.parametrize("value", ["org/name", "org/name@main", "Org-1/na.me_2@refs/pr/1"])
def test_hub_id_is_one(value: str) -> None:
    assert hub_id(value) == value


@pytest.mark.parametrize(
    "value",
    [
        *("/home/somebody/model", "./org/name", "../org/name", "a/b/c", "name", "", "~/models", "org/..", "C:/models"),
        *(
            "models/sdxl",
            "checkpoints/flux",
            "Models/sdxl",
            "org/model.safetensors",
            "org/model.CKPT",
            None,
            3,
            ["a/b"],
        ),
        "flux/unknown-model",
    ],
)
def test_path_is_no_hub_id(value: Any) -> None:
    assert hub_id(value) is None


@pytest.mark.parametrize(
    "text", ["", "no dashes", "---\n[\n---\n", "---\n- a\n---\n", "---\nopen: 1\n", "---\n&a [*a]\n---"]
)
def test_card_that_says_nothing_is_empty(tmp_path: Path, text: str) -> None:
    (tmp_path / "README.md").write_text(text)
    assert card_of(tmp_path) == {}


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000])
def test_json_that_says_nothing_is_empty(text: str) -> None:
    assert json_of(text) == {}


CONFIG = "config:\n  process:\n  - model:\n      name_or_path: {}\n      arch: {}\n"


@pytest.mark.parametrize(
    ("header", "files"),
    [
        ({"ss_sd_model_name": "org/base"}, {}),
        ({"lora_adapter_metadata": '{"unet.base_model_name_or_path": "org/base"}'}, {}),
        ({"ot_config": '{"base_model_name": "org/base"}'}, {}),
        ({}, {"config.yaml": CONFIG.format("org/base", "nothing")}),
        ({}, {"simpletuner_config.json": {"pretrained_model_name_or_path": "org/base"}}),
        ({}, {"simpletuner_config.json": {"--pretrained_model_name_or_path": "org/base"}}),
        ({}, {"README.md": "---\nbase_model: org/base\n---\n"}),
        ({}, {"README.md": "---\nbase_model: [org/base, org/other]\n---\n"}),
    ],
)
def test_hub_id_names_the_base_wherever_a_trainer_wrote_it(
    tmp_path: Path, header: dict[str, str], files: dict[str, Any]
) -> None:
    source = source_of(tmp_path / "out", header, files)
    assert source.stated_base == "org/base"
    assert base_of(None, source, None) == "org/base"


def test_path_of_the_trainers_machine_is_nowhere(tmp_path: Path) -> None:
    path = "/home/somebody/models/sdxl"
    header = {
        "ss_sd_model_name": "sdxl",
        "ot_config": json.dumps({"base_model_name": path}),
        "lora_adapter_metadata": json.dumps({"unet.base_model_name_or_path": path}),
        "modelspec.architecture": f"lora{path}",
        "ss_base_model_version": path,
        "ss_network_module": path,
        "software": json.dumps({"name": "ai-toolkit", "version": path}),
    }
    files = {
        "config.yaml": CONFIG.format(path, path),
        "simpletuner_config.json": {"pretrained_model_name_or_path": path, "model_family": path},
        "README.md": f"---\nbase_model: {path}\ntags: [{path}]\n---\n",
    }
    source = source_of(tmp_path / "out", header, files)
    assert source.stated_base is None
    assert evidence_of(source) == ()
    assert "somebody" not in inspect(tmp_path / "out").model_dump_json()
    with pytest.raises(FamilyError, match="which base"):
        base_of(None, source, None)


def test_files_beside_a_single_file_say_nothing_of_it(tmp_path: Path) -> None:
    source_of(tmp_path / "out", files={"README.md": "---\nbase_model: org/base\ntags: [simpletuner]\n---\n"})
    alone = load_checkpoint(str(tmp_path / "out" / WEIGHT_NAME), ExportOptions(), tmp_path)
    assert (alone.stated_base, trainer_of(alone)) == (None, None)


@pytest.mark.parametrize(
    ("header", "family", "base"),
    [
        ({"ss_base_model_version": "sd_v1"}, "sd15", "sd15"),
        ({"modelspec.architecture": "stable-diffusion-v1/lora"}, "sd15", "sd15"),
        ({"ss_base_model_version": "sdxl_base_v1-0"}, "sdxl", "sdxl"),
        ({"ss_base_model_version": "sdxl_"}, "sdxl", "sdxl"),
        ({"ss_base_model_version": "sd_v2_v", "ss_v2": "True"}, "sd15", "sd21"),
        ({"ss_v2": "True"}, "sd15", None),
        ({"ss_base_model_version": "flux1"}, "flux", "flux-dev"),
        (
            {"ss_base_model_version": "flux_kontext", "modelspec.architecture": "Flux.1-dev/lora"},
            "flux",
            "flux-kontext-dev",
        ),
        ({"ss_base_model_version": "wan", "modelspec.architecture": "wan2.1/lora"}, "wan", None),
        (
            {"ss_base_model_version": "qwen_image_edit", "modelspec.architecture": "Qwen-Image-Edit-2511/lora"},
            "qwenimage",
            None,
        ),
        (
            {"modelspec.architecture": "stable-diffusion-xl-v1-base-inpainting/lora", "ss_base_model_version": "sdxl_"},
            "sdxl",
            None,
        ),
        ({"ss_network_module": "networks.lora_wan"}, "wan", None),
        ({"ss_base_model_version": "a word that nobody writes"}, None, None),
    ],
)
def test_word_for_an_architecture_tells_the_family_and_the_shape_where_it_is_certain(
    tmp_path: Path, header: dict[str, str], family: str | None, base: str | None
) -> None:
    evidence = evidence_of(source_of(tmp_path / "out", header))
    assert {each.family for each in evidence} == ({family} if family else set())
    guessed = guess(evidence)
    assert (guessed.base if guessed else None) == base
    assert stated_base(evidence) is None


def test_word_in_a_configuration_tells_the_family_too(tmp_path: Path) -> None:
    files = {"config.yaml": CONFIG.format("/x/y", "sd1"), "simpletuner_config.json": {"model_family": "sd1x"}}
    for name, content in files.items():
        evidence = evidence_of(source_of(tmp_path / name, files={name: content}))
        assert [(each.where, each.family) for each in evidence] == [(name, "sd15")]


def test_base_that_is_guessed_is_the_architecture_and_no_model(tmp_path: Path) -> None:
    source = source_of(tmp_path / "out", {"ss_base_model_version": "sd_v1"})
    base = open_base(base_of(None, source, None), tmp_path)
    assert base.architecture == open_base("sd15", tmp_path).architecture
    assert (base.model, base.revision, source.stated_base) == (None, None, None)
    found = inspect(tmp_path / "out")
    assert (found.base, found.architecture) == (None, "sd15")


def test_what_follows_a_known_word_is_not_shown(tmp_path: Path) -> None:
    source = source_of(tmp_path / "out", {"modelspec.architecture": "stable-diffusion-v1//home/somebody"})
    assert [each.text for each in evidence_of(source)] == ["stable-diffusion-v1"]


def test_order_is_base_then_run_then_checkpoint(tmp_path: Path) -> None:
    source = source_of(tmp_path / "out", {"ss_sd_model_name": "org/stated", "ss_base_model_version": "sd_v1"})
    run = TrainingRun(base_model="org/run")
    assert base_of("org/asked", source, run) == "org/asked"
    assert base_of(None, source, run) == "org/run"
    assert base_of(None, source, None) == "org/stated"


def test_header_that_contradicts_the_base_is_refused_by_both_names(tmp_path: Path) -> None:
    source = source_of(tmp_path / "out", {"ss_base_model_version": "sdxl_base_v1-0"})
    for base in ("sd15", SD15, f"{SD15}@main", str(shipped("sd15"))):
        with pytest.raises(FamilyError, match=r"'sdxl_base_v1-0', and the base .* is of Stable Diffusion 1\.x"):
            base_of(base, source, None)
    assert base_of("sdxl", source, None) == "sdxl"
    assert base_of("org/of-unknown-family", source, None) == "org/of-unknown-family"


def test_two_statements_that_contradict_each_other_are_refused_by_both_names(tmp_path: Path) -> None:
    header, card = {"ss_base_model_version": "flux1"}, {"README.md": f"---\nbase_model: {SDXL}\n---\n"}
    source = source_of(tmp_path / "out", header, card)
    assert contradiction(evidence_of(source)) is not None
    for base in (None, "flux-dev", "sdxl"):
        with pytest.raises(FamilyError, match=f"'flux1', and README.md says '{SDXL}'"):
            base_of(base, source, None)


def test_what_has_the_same_layers_is_no_contradiction(tmp_path: Path) -> None:
    check_base("skyreels-v2-t2v-14b", source_of(tmp_path / "wan", {"ss_base_model_version": "wan"}))
    check_base("sd21", source_of(tmp_path / "sd", {"ss_base_model_version": "sd_v1"}))
    check_base("chroma", source_of(tmp_path / "flux", {"ss_base_model_version": "flux1"}))


# --- trainers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "files", "trainer"),
    [
        ({"software": '{"name": "ai-toolkit", "version": "0.12.26"}'}, {}, "ai-toolkit 0.12.26"),
        ({"software": '{"name": "ai-toolkit", "version": "/home/somebody"}'}, {}, "ai-toolkit"),
        ({"ot_branch": "master", "ss_base_model_version": "sdxl_"}, {}, "OneTrainer"),
        ({"lycoris_config": "{}"}, {}, "SimpleTuner"),
        ({}, {"README.md": "---\ntags: [lora, simpletuner]\n---\n"}, "SimpleTuner"),
        ({}, {"simpletuner_config.json": {}}, "SimpleTuner"),
        ({"ss_network_module": "networks.lora_wan"}, {}, "musubi-tuner"),
        ({"ss_network_module": "musubi_tuner.networks.loha"}, {}, "musubi-tuner"),
        ({"ss_network_module": "networks.lora_flux", "ss_base_model_version": "flux_kontext"}, {}, "musubi-tuner"),
        ({"ss_network_module": "networks.lora_flux", "ss_base_model_version": "flux1"}, {}, "sd-scripts"),
        ({"ss_network_module": "networks.lora", "ss_sd_scripts_commit_hash": "(unknown)"}, {}, "sd-scripts"),
        ({"modelspec.implementation_version": "sd-scripts/abc"}, {}, "sd-scripts"),
        ({"ss_network_module": "lycoris.kohya"}, {}, "sd-scripts, lycoris"),
        ({}, {"README.md": "---\ntags: [diffusers-training]\n---\n"}, "diffusers scripts"),
        ({}, {}, None),
    ],
)
def test_trainer_is_told_by_what_it_alone_writes(
    tmp_path: Path, header: dict[str, str], files: dict[str, Any], trainer: str | None
) -> None:
    assert trainer_of(source_of(tmp_path / "out", header, files)) == trainer


# --- names of bases ---------------------------------------------------------------------------------------------------


def test_every_word_means_families_and_bases_that_there_are() -> None:
    names = {family.name for family in FAMILIES}
    for word, found in _WORDS.items():
        assert set(found.families) <= names, word
        if found.base not in (None, ANOTHER):
            assert shipped_family(str(found.base)).name == found.families[0], word
    assert {name for families in NETWORK_MODULES.values() for name in families} <= names


@pytest.mark.parametrize("alias", [base.alias for base in SHIPPED])
def test_family_of_a_shipped_base_is_the_one_that_diffusers_tells(alias: str) -> None:
    folder = shipped(alias)
    assert folder is not None
    assert shipped_family(alias) is read_base(folder).family


def test_alias_and_hub_id_open_what_is_shipped_without_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(*_: Any) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr("socket.socket.connect", connect)
    by_alias, by_id = open_base("sd15", tmp_path), open_base(SD15, tmp_path)
    assert by_alias == by_id
    assert (by_alias.model, by_alias.revision) == (SD15, None)
    moved = open_base("runwayml/stable-diffusion-v1-5", tmp_path)
    assert (moved.architecture, moved.model) == (by_alias.architecture, "runwayml/stable-diffusion-v1-5")
    assert shipped_for(f"{SD15}@main") is None  # a revision is read from the Hub


def test_folder_of_an_aliass_name_counts_only_if_it_is_a_pipeline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sd15").mkdir()
    assert open_base("sd15", tmp_path).model == SD15
    (tmp_path / "sd15").rmdir()
    folder = shipped("sdxl")
    assert folder is not None
    (tmp_path / "sd15").symlink_to(folder)
    own = open_base("sd15", tmp_path)
    assert (own.family.name, own.model) == ("sdxl", None)
    assert family_of("sd15") is own.family


def test_unknown_alias_is_refused_with_the_list(tmp_path: Path) -> None:
    with pytest.raises(FamilyError, match=r"sd15, sd21, .*cosmos-predict2\.5-14b"):
        open_base("sd1.5", tmp_path)
