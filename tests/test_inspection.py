from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapterline.checkpoints import load_checkpoint
from adapterline.checkpoints.extract import extract
from adapterline.errors import CheckpointError
from adapterline.families.base import read_base
from adapterline.inspection import Inspection, inspect
from adapterline.layouts import convert
from adapterline.serialize import write_safetensors
from adapterline.values import WEIGHT_NAME, ExportOptions
from tests.bases import FAMILIES, peft_adapter

BaseOf = Callable[[str], Path]

UNET = ["to_q", "to_k", "to_v", "to_out.0"]
CLIP = ["q_proj", "v_proj"]


def diffusers_file(tensors: dict[str, torch.Tensor], path: Path, header: dict[str, Any] | None = None) -> Path:
    save_file(tensors, path, {"lora_adapter_metadata": json.dumps(header)} if header else None)
    return path


def pair(module: str, rank: int = 4, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return {
        f"{module}.lora_A.weight": torch.ones(rank, 8, dtype=dtype),
        f"{module}.lora_B.weight": torch.ones(6, rank, dtype=dtype),
    }


Q = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
K = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k"


def test_no_torch_is_imported_for_a_safetensors_file(sd15_base: Path, tmp_path: Path) -> None:
    adapter = peft_adapter(sd15_base, "unet", tmp_path / "peft", 4, 8, UNET)
    single = diffusers_file(pair(Q), tmp_path / "l.safetensors")
    code = """
import json, sys
from adapterline import inspect
found = inspect(sys.argv[1])
heavy = [name for name in ("torch", "diffusers", "transformers", "peft", "prefect", "boto3") if name in sys.modules]
print(json.dumps([found.family, heavy]))
"""
    for path in (single, adapter.folder):
        answer = subprocess.run(
            [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True, timeout=120
        )
        assert json.loads(answer.stdout) == ["sd15", []]


def test_peft_folder_is_told_in_numbers(sd15_base: Path, tmp_path: Path) -> None:
    import peft

    adapter = peft_adapter(
        sd15_base,
        "unet",
        tmp_path / "peft",
        4,
        6,
        UNET,
        use_dora=True,
        rank_pattern={"to_k": 2},
        alpha_pattern={"to_v": 8},
        dtype=torch.bfloat16,
    )
    tensors = load_file(adapter.folder / "adapter_model.safetensors")
    found = inspect(adapter.folder)
    assert (found.container, found.dialect, found.family) == ("peft-folder", "peft", "sd15")
    assert found.trainer == f"peft {peft.__version__}"
    assert found.warnings == ()
    assert found.evidence
    assert found.path == str(adapter.folder)
    assert found.files == ("adapter_config.json", "adapter_model.safetensors")
    assert found.size == sum((adapter.folder / name).stat().st_size for name in found.files)
    assert found.digest == load_checkpoint(str(adapter.folder), ExportOptions(), tmp_path).digest
    assert set(found.components) == {"unet"}
    unet = found.components["unet"]
    assert (unet.rank, unet.alpha, unet.modules) == ([2, 4], [6, 8], 128)
    assert (unet.adapter_type, unet.dtype) == ("dora", "bfloat16")
    assert unet.parameters == sum(tensor.numel() for tensor in tensors.values())
    assert Inspection.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize(
    ("settings", "kind", "alpha"),
    [({"lora_bias": True}, "lora+bias", 6), ({"use_rslora": True}, "lora", 12), ({}, "lora", 6)],
)
def test_kind_and_alpha_are_those_of_the_effect(
    sd15_base: Path, tmp_path: Path, settings: dict[str, bool], kind: str, alpha: float
) -> None:
    """rsLoRA's alpha is told as the one that means the same without it: the scale times the rank."""
    adapter = peft_adapter(sd15_base, "unet", tmp_path / "peft", 4, 6, UNET, **settings)
    unet = inspect(adapter.folder).components["unet"]
    assert (unet.adapter_type, unet.alpha) == (kind, alpha)


#: What makes a family's names its own, where the names of the attention's layers are several families'.
TELLING = {"flux2": ["to_qkv_mlp_proj"], "sd3": [r"ff_context.net.2"], "qwenimage": ["img_mlp.net.2"]}


@pytest.mark.parametrize("family", FAMILIES)
def test_family_of_a_file_in_diffusers_form_is_guessed(base: BaseOf, tmp_path: Path, family: str) -> None:
    component = "unet" if family.startswith("sd") and family != "sd3" else "transformer"
    modules = UNET + TELLING.get(family, [])
    adapter = peft_adapter(base(family), component, tmp_path / "peft", 4, 8, modules)
    options, model = ExportOptions(), read_base(base(family))
    plan = convert(extract(load_checkpoint(str(adapter.folder), options, tmp_path), model, options), model, options)
    write_safetensors(tmp_path / WEIGHT_NAME, plan.files[0].tensors, plan.files[0].header)
    found = inspect(tmp_path / WEIGHT_NAME)
    assert (found.family, found.dialect, found.trainer) == (family, "diffusers", "diffusers")
    assert set(found.components) == {component}
    assert found.components[component].alpha == 4
    assert inspect(adapter.folder).family == family


BLOCK = "transformer.transformer_blocks.0.attn"


def test_names_that_several_families_have_are_guessed_from_and_it_is_said(tmp_path: Path) -> None:
    path = diffusers_file(pair(f"{BLOCK}.to_q") | pair(f"{BLOCK}.to_k"), tmp_path / "l.safetensors")
    found = inspect(path)
    assert found.family == "qwenimage"
    (warning,) = found.warnings
    assert "is a guess" in warning
    assert "Stable Diffusion 3" in warning
    assert "--base" in warning


@pytest.mark.parametrize(("version", "family"), [("qwen_image", "qwenimage"), ("sd_3", "sd3")])
def test_what_the_header_says_decides_between_families_of_the_same_names(
    tmp_path: Path, version: str, family: str
) -> None:
    save_file(pair(f"{BLOCK}.to_q"), tmp_path / "l.safetensors", {"ss_base_model_version": version})
    found = inspect(tmp_path / "l.safetensors")
    assert found.family == family
    assert f"the header's ss_base_model_version says '{version}'" in found.evidence


@pytest.mark.parametrize("family", ["sd3", "qwenimage"])
def test_class_that_peft_noted_decides_too(base: BaseOf, tmp_path: Path, family: str) -> None:
    folder = peft_adapter(base(family), "transformer", tmp_path / "peft", 4, 8, UNET).folder
    assert inspect(folder).family == family


def test_names_win_over_a_header_that_contradicts_them_and_it_is_said(tmp_path: Path) -> None:
    save_file(pair(Q), tmp_path / "l.safetensors", {"ss_base_model_version": "flux1"})
    found = inspect(tmp_path / "l.safetensors")
    assert found.family == "sd15"
    assert any("'flux1'" in warning and "Stable Diffusion 1.x" in warning for warning in found.warnings)


def kohya_file(modules: list[str], path: Path, header: dict[str, str] | None = None, suffix: str = "") -> Path:
    """sd-scripts' keys; `suffix` is that of another type, with one tensor a layer."""
    tensors = {}
    for module in modules:
        if suffix:
            tensors[f"{module}.{suffix}"] = torch.ones(2, 4, 4)
        else:
            tensors |= {f"{module}.lora_down.weight": torch.ones(4, 8), f"{module}.lora_up.weight": torch.ones(6, 4)}
        tensors[f"{module}.alpha"] = torch.tensor(2.0)
    save_file(tensors, path, header)
    return path


@pytest.mark.parametrize(
    ("modules", "family", "components"),
    [
        (["lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"], "sd15", {"unet"}),
        (["lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q"], "sd15", {"unet"}),
        (
            [
                "lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q",
                "lora_te1_text_model_encoder_layers_0_mlp_fc1",
                "lora_te2_text_model_encoder_layers_0_mlp_fc1",
            ],
            "sdxl",
            {"unet", "text_encoder", "text_encoder_2"},
        ),
        (["lora_unet_double_blocks_0_img_mod_lin", "lora_unet_single_blocks_0_linear1"], "flux", {"transformer"}),
        (["lora_unet_joint_blocks_0_x_block_attn_qkv"], "sd3", {"transformer"}),
        (["lora_unet_transformer_blocks_0_img_mlp_net_0_proj"], "qwenimage", {"transformer"}),
    ],
)
def test_flat_and_original_names_tell_the_family_and_the_components(
    tmp_path: Path, modules: list[str], family: str, components: set[str]
) -> None:
    found = inspect(kohya_file(modules, tmp_path / "l.safetensors"))
    assert (found.family, set(found.components)) == (family, components)
    assert {(each.rank, each.alpha) for each in found.components.values()} == {(4, 2)}


@pytest.mark.parametrize(
    ("denoiser", "family", "roles"),
    [
        ("double_blocks.0.img_mod.lin", "flux", {"clip_l": "text_encoder", "t5xxl": "text_encoder_2"}),
        ("joint_blocks.0.x_block.attn.qkv", "sd3", {"clip_g": "text_encoder_2", "t5xxl": "text_encoder_3"}),
    ],
)
def test_roles_of_comfyui_are_told_as_the_pipelines_components(
    tmp_path: Path, denoiser: str, family: str, roles: dict[str, str]
) -> None:
    names = [f"diffusion_model.{denoiser}", "diffusion_model.single_blocks.0.linear1"][: 1 + (family == "flux")]
    names += [f"text_encoders.{role}.transformer.encoder.layers.0.mlp.fc1" for role in roles]
    tensors = {key: tensor for name in names for key, tensor in pair(name).items()}
    found = inspect(diffusers_file(tensors, tmp_path / "l.safetensors"))
    assert found.family == family
    assert set(found.components) == {"transformer", *roles.values()}


@pytest.mark.parametrize(
    ("suffix", "kind", "rank", "alpha", "reason"),
    [
        ("oft_blocks", "oft", 4, 2, "rotations"),
        ("on_input", "ia3", None, None, "IA3 rescales"),
        ("w_norm", "norm", None, None, "norm were trained"),
    ],
)
def test_type_that_cannot_be_exported_is_told_with_the_reason(
    tmp_path: Path, suffix: str, kind: str, rank: int | None, alpha: float | None, reason: str
) -> None:
    modules = [f"lora_unet_down_blocks_0_attentions_{n}_transformer_blocks_0_attn1_to_q" for n in (0, 1)]
    header = {"ss_network_module": "lycoris.kohya", "ss_base_model_version": "sd_v1"}
    found = inspect(kohya_file(modules, tmp_path / "l.safetensors", header, suffix))
    assert (found.container, found.family, found.trainer) == ("safetensors", "sd15", "sd-scripts, lycoris")
    assert found.dialect == "lycoris"
    unet = found.components["unet"]
    assert (unet.adapter_type, unet.rank, unet.alpha, unet.modules) == (kind, rank, alpha, 2)
    assert any("cannot be exported" in warning and reason in warning for warning in found.warnings)


def test_peft_type_that_cannot_be_exported_is_told_with_the_reason(tmp_path: Path) -> None:
    module = Q.removeprefix("unet.")
    save_file({f"base_model.model.{module}.oft_R.weight": torch.ones(2, 3)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "OFT", "peft_version": "0.18.0"}')
    found = inspect(tmp_path)
    assert (found.dialect, found.trainer, found.family) == ("peft", "peft 0.18.0", "sd15")
    assert (found.components["unet"].adapter_type, found.components["unet"].modules) == ("oft", 1)
    assert any("rotations" in warning for warning in found.warnings)


def test_a_file_that_is_no_adapter_is_refused_all_the_same(tmp_path: Path) -> None:
    save_file({"conv_in.weight": torch.ones(4, 4)}, tmp_path / "whole.safetensors")
    with pytest.raises(CheckpointError, match="whole model"):
        inspect(tmp_path / "whole.safetensors")


def test_family_that_cannot_be_told_is_said_to_be_unknown(tmp_path: Path) -> None:
    found = inspect(diffusers_file(pair("transformer.some_block.to_q"), tmp_path / "l.safetensors"))
    assert found.family is None
    assert "--base" in found.warnings[0]
    clip = inspect(diffusers_file(pair("text_encoder.text_model.encoder.q_proj"), tmp_path / "clip.safetensors"))
    assert clip.family is None


def test_component_of_bare_keys_is_guessed(tmp_path: Path) -> None:
    for module, component in (
        ("down_blocks.0.to_q", "unet"),
        ("single_transformer_blocks.0.to_q", "transformer"),
        ("text_model.encoder.q_proj", "text_encoder"),
    ):
        path = diffusers_file(pair(f"base_model.model.{module}"), tmp_path / "l.safetensors")
        assert set(inspect(path, ExportOptions(alpha=4)).components) == {component}
        path.unlink()


def test_alpha_that_nothing_says_is_unknown_until_it_is_given(sd15_base: Path, tmp_path: Path) -> None:
    adapter = peft_adapter(sd15_base, "unet", tmp_path / "peft", 4, 6, UNET)
    bare = diffusers_file(load_file(adapter.folder / "adapter_model.safetensors"), tmp_path / "bare.safetensors")
    found = inspect(bare)
    assert found.components["unet"].alpha is None
    assert any("--alpha" in warning for warning in found.warnings)
    given = inspect(bare, ExportOptions(alpha=6))
    assert (given.components["unet"].alpha, given.warnings) == (6, ())
    config = adapter.folder / "adapter_config.json"
    configured = inspect(bare, ExportOptions(adapter_config=str(config)))
    assert (configured.components["unet"].alpha, configured.warnings) == (6, ())
    assert configured.size == bare.stat().st_size + config.stat().st_size


def test_alpha_is_told_as_export_would_take_it(tmp_path: Path) -> None:
    path = diffusers_file(pair(Q) | pair(K, 2), tmp_path / "l.safetensors")
    assert inspect(path).components["unet"].alpha == [2, 4]
    assert inspect(path, ExportOptions(alpha=8)).components["unet"].alpha == 8
    header = {"unet.r": 4, "unet.lora_alpha": 1, "unet.rank_pattern": {"to_k": 2}}
    stated = inspect(diffusers_file(pair(Q) | pair(K, 2), tmp_path / "m.safetensors", header))
    assert stated.components["unet"].alpha == 1


def test_step_and_base_are_told(tmp_path: Path) -> None:
    folder = tmp_path / "out" / "checkpoint-300"
    folder.mkdir(parents=True)
    diffusers_file(pair(Q), folder / WEIGHT_NAME)
    (folder / "README.md").write_text("---\nbase_model: org/base\n---\n")
    found = inspect(tmp_path / "out", ExportOptions(step=300))
    assert (found.step, found.base, found.container) == (300, "org/base", "training-folder")


def test_layer_that_lacks_a_factor_is_warned_of(tmp_path: Path) -> None:
    tensors = pair(Q) | pair(K)
    del tensors[f"{K}.lora_B.weight"]
    found = inspect(diffusers_file(tensors, tmp_path / "l.safetensors"))
    assert any("1 of 2 layers of unet" in warning for warning in found.warnings)
    with pytest.raises(CheckpointError, match="whole"):
        inspect(diffusers_file({f"{K}.lora_A.weight": torch.ones(4, 4)}, tmp_path / "none.safetensors"))


def test_factor_that_is_a_number_is_refused(tmp_path: Path) -> None:
    tensors = {f"{Q}.lora_A.weight": torch.tensor(1.0), f"{Q}.lora_B.weight": torch.ones(4, 4)}
    with pytest.raises(CheckpointError, match="single number"):
        inspect(diffusers_file(tensors, tmp_path / "l.safetensors"))


def test_dtypes_that_differ_are_all_told(tmp_path: Path) -> None:
    path = diffusers_file(pair(Q, dtype=torch.float16) | pair(K, 8), tmp_path / "l.safetensors")
    unet = inspect(path).components["unet"]
    assert (unet.dtype, unet.rank) == (["float16", "float32"], [4, 8])


def test_torch_file_is_told_too(tmp_path: Path) -> None:
    torch.save(pair(Q), tmp_path / "l.pt")
    found = inspect(tmp_path / "l.pt")
    assert (found.container, found.family, found.components["unet"].dtype) == ("torch", "sd15", "float32")
