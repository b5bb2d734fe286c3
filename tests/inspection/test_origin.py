"""The family, where the names of the modules leave several: told by sizes, else guessed, which is said."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from adapterline.checkpoints import load_checkpoint
from adapterline.checkpoints.evidence import evidence_of
from adapterline.errors import FamilyError
from adapterline.inspection import Inspection, inspect
from adapterline.request import base_of
from adapterline.values import ExportOptions

#: (outputs, inputs) by module
Layers = Mapping[str, tuple[int, int]]
BLOCK = "transformer.transformer_blocks.0.attn"


def lora(layers: Layers, path: Path, header: dict[str, str] | None = None) -> Path:
    tensors = {}
    for module, (out, inputs) in layers.items():
        tensors[f"{module}.lora_A.weight"] = torch.zeros(2, inputs)
        tensors[f"{module}.lora_B.weight"] = torch.zeros(out, 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, header)
    return path


def attention(width: int) -> dict[str, tuple[int, int]]:
    """What SD3, Qwen-Image and MiniMax H3 all call so, and have square."""
    return {f"{BLOCK}.{name}": (width, width) for name in ("to_q", "to_k", "to_v", "to_out.0")}


def is_guess(found: Inspection) -> bool:
    return any("is a guess" in warning for warning in found.warnings)


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "family"), [(1536, "sd3"), (2432, "sd3"), (3072, "qwenimage")])
def test_size_that_one_family_alone_has_tells_it(tmp_path: Path, width: int, family: str) -> None:
    found = inspect(lora(attention(width), tmp_path / "l.safetensors"))
    assert (found.family, found.warnings) == (family, ())
    assert "the sizes of its layers are those of" in found.evidence[0]


def test_size_that_no_model_has_tells_nothing(tmp_path: Path) -> None:
    found = inspect(lora(attention(24), tmp_path / "l.safetensors"))
    assert found.family == "qwenimage"
    assert is_guess(found)


@pytest.mark.parametrize(("ratio", "hidden", "family"), [(7, 4, "flux"), (9, 6, "flux2")])
@pytest.mark.parametrize("width", [32, 3072])
def test_proportions_tell_what_the_original_names_leave_open(
    tmp_path: Path, width: int, ratio: int, hidden: int, family: str
) -> None:
    """FLUX.1's `linear1` makes q, k, v and 4 widths for an MLP; FLUX.2's MLP is gated, and takes 6."""
    layers = {
        "diffusion_model.double_blocks.0.img_attn.qkv": (3 * width, width),
        "diffusion_model.double_blocks.0.img_mlp.0": (hidden * width, width),
        "diffusion_model.single_blocks.0.linear1": (ratio * width, width),
    }
    found = inspect(lora(layers, tmp_path / "l.safetensors"))
    assert (found.family, found.warnings) == (family, ())


def test_proportions_that_fit_most_layers_only_are_a_guess(tmp_path: Path) -> None:
    layers = {
        "diffusion_model.double_blocks.0.img_attn.qkv": (96, 32),
        "diffusion_model.single_blocks.0.linear1": (9 * 32, 32),
        "diffusion_model.single_blocks.1.linear1": (11 * 32, 32),
    }
    found = inspect(lora(layers, tmp_path / "l.safetensors"))
    assert found.family == "flux2"
    assert is_guess(found)


def test_factors_of_other_forms_have_sizes_too(tmp_path: Path) -> None:
    module = "lycoris_transformer_blocks_0_attn_to_q"
    tensors = {f"{module}.lokr_w1": torch.zeros(4, 4), f"{module}.lokr_w2": torch.zeros(384, 384)}
    save_file({**tensors, f"{module}.alpha": torch.tensor(1.0)}, tmp_path / "sd3.safetensors")
    loha = {f"{module}.hada_{name}": torch.zeros(shape) for name, shape in _loha(3072).items()}
    save_file({**loha, f"{module}.alpha": torch.tensor(1.0)}, tmp_path / "qwen.safetensors")
    assert (inspect(tmp_path / "sd3.safetensors").family, inspect(tmp_path / "qwen.safetensors").family) == (
        "sd3",
        "qwenimage",
    )


def _loha(width: int) -> dict[str, tuple[int, int]]:
    return {"w1_a": (width, 2), "w1_b": (2, width), "w2_a": (width, 2), "w2_b": (2, width)}


def test_header_counts_more_than_sizes(tmp_path: Path) -> None:
    header = {"ss_base_model_version": "sd_3"}
    found = inspect(lora(attention(3072), tmp_path / "l.safetensors", header))
    assert (found.family, found.warnings) == ("sd3", ())


def clip(folder: Path, width: int, base: str | None = None) -> Path:
    """A PEFT folder of a CLIPTextModel's first attention."""
    modules = [f"base_model.model.encoder.layers.0.self_attn.{name}_proj" for name in ("q", "k", "v", "out")]
    lora({module: (width, width) for module in modules}, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "auto_mapping": {"base_model_class": "CLIPTextModel"},
        "base_model_name_or_path": base,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_size_of_a_text_encoder_rules_out_pipelines_with_another(tmp_path: Path) -> None:
    """OpenCLIP's ViT-H is Stable Diffusion 2.x's; CLIP-L is in many pipelines, and most likely SD 1.x's."""
    vit_h, clip_l = inspect(clip(tmp_path / "h", 1024)), inspect(clip(tmp_path / "l", 768))
    assert vit_h.family == clip_l.family == "sd15"
    assert is_guess(clip_l)
    assert "FLUX.1" in clip_l.warnings[0]
    assert "FLUX.1" not in str(vit_h.warnings)


# --- names alone ------------------------------------------------------------------------------------------------------


def test_models_that_have_every_name_are_the_choice_where_no_name_is_a_familys_own(tmp_path: Path) -> None:
    """LyCORIS found FLUX's FeedForward, and not its FluxAttention."""
    feed_forward = {
        f"transformer.transformer_blocks.0.{name}": (128, 32) for name in ("ff.net.0.proj", "ff_context.net.0.proj")
    }
    found = inspect(lora(feed_forward, tmp_path / "l.safetensors"))
    assert found.family == "flux"
    assert is_guess(found)
    assert "Stable Diffusion 3" in found.warnings[0]
    assert "LTX" not in found.warnings[0]


def test_name_that_no_model_has_tells_no_family(tmp_path: Path) -> None:
    layers = {**attention(3072), "transformer.transformer_blocks.0.attn.to_x": (3072, 3072)}
    assert inspect(lora({"transformer.some_block.0.to_x": (8, 8)}, tmp_path / "l.safetensors")).family is None
    assert inspect(lora(layers, tmp_path / "m.safetensors")).family == "qwenimage"


def test_models_of_the_same_layers_are_guessed_to_be_the_most_common_one(tmp_path: Path) -> None:
    layers = {f"transformer.blocks.0.attn{n}.to_{x}": (5120, 5120) for n in (1, 2) for x in "qkv"}
    found = inspect(lora(layers, tmp_path / "l.safetensors"))
    assert found.family == "wan"
    assert is_guess(found)
    assert "SkyReels V2" in found.warnings[0]
    assert found.evidence == (
        "likely Wan 2.1 and 2.2: nothing tells it from the others, and it is the most common one",
    )


# --- hints ------------------------------------------------------------------------------------------------------------

CARD = "---\ntags: [text-to-image, diffusers-training, {}]\n---\n"


def test_card_beside_a_file_makes_its_family_the_likelier_one(tmp_path: Path) -> None:
    path = lora(attention(24), tmp_path / "l.safetensors")
    (tmp_path / "README.md").write_text(CARD.format("sd3"))
    found = inspect(path)
    assert found.family == "sd3"
    assert is_guess(found)
    assert "a tag of README.md is 'sd3'" in found.warnings[0]


def test_card_of_the_run_counts_for_its_steps(tmp_path: Path) -> None:
    step = lora(attention(24), tmp_path / "checkpoint-2" / "l.safetensors")
    lower = lora(attention(24), tmp_path / "other" / "l.safetensors")
    (tmp_path / "README.md").write_text(CARD.format("sd3"))
    assert inspect(step).family == inspect(step.parent).family == "sd3"
    assert inspect(lower).family == "qwenimage"


@pytest.mark.parametrize(
    ("files", "header"),
    [
        ({"README.md": "---\nbase_model: stabilityai/stable-diffusion-3-medium-diffusers\n---\n"}, {}),
        ({"README.md": "---\nbase_model: /home/somebody/stable-diffusion-3.5-large\n---\n"}, {}),
        ({"simpletuner_config.json": '{"model_family": "sd3"}'}, {}),
        ({"simpletuner_config.json": '{"pretrained_model_name_or_path": "/data/sd3/"}'}, {}),
        ({"config.yaml": "config: {process: [{model: {name_or_path: /data/SD35-Medium}}]}"}, {}),
        ({}, {"ss_sd_model_name": "stable-diffusion-3-medium.safetensors"}),
        (
            {},
            {"lora_adapter_metadata": '{"transformer.base_model_name_or_path": "C:\\\\somebody\\\\sd3\\\\x"}'},
        ),
        ({}, {"ot_config": '{"base_model_name": "/home/somebody/sd3"}'}),
    ],
)
def test_what_is_called_like_a_base_is_a_hint(tmp_path: Path, files: dict[str, str], header: dict[str, str]) -> None:
    path = lora(attention(24), tmp_path / "l.safetensors", header)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    found = inspect(path)
    assert found.family == "sd3"
    assert is_guess(found)
    assert "somebody" not in found.model_dump_json().replace(str(tmp_path), "")


def test_peft_configuration_with_a_path_is_a_hint(tmp_path: Path) -> None:
    found = inspect(clip(tmp_path / "out", 32, "/home/somebody/FLUX.1-dev/text_encoder"))
    assert found.family == "flux"
    assert is_guess(found)
    assert "somebody" not in found.model_dump_json()


@pytest.mark.parametrize("tag", ["flux", "text-to-image", "3", "[a]", "{a: b}", "null"])
def test_hint_for_a_family_that_the_names_rule_out_counts_nothing(tmp_path: Path, tag: str) -> None:
    path = lora(attention(24), tmp_path / "l.safetensors")
    (tmp_path / "README.md").write_text(CARD.format(tag))
    assert inspect(path).family == "qwenimage"


def test_sizes_count_more_than_a_hint(tmp_path: Path) -> None:
    path = lora(attention(3072), tmp_path / "l.safetensors")
    (tmp_path / "README.md").write_text(CARD.format("sd3"))
    assert inspect(path).family == "qwenimage"


@pytest.mark.parametrize("width", [24, 3072])
def test_no_guess_and_no_size_gives_an_export_its_base(tmp_path: Path, width: int) -> None:
    path = lora(attention(width), tmp_path / "l.safetensors", {"ss_sd_model_name": "qwen-image"})
    (tmp_path / "README.md").write_text(CARD.format("qwen-image"))
    found, source = inspect(path), load_checkpoint(str(path), ExportOptions(), tmp_path)
    assert (found.family, found.base, found.architecture) == ("qwenimage", None, None)
    assert evidence_of(source) == ()
    with pytest.raises(FamilyError, match="which base"):
        base_of(None, source, None)
    assert base_of("sd35-medium", source, None) == "sd35-medium"  # the base's layers decide, and no guess forbids it
