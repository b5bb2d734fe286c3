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


@pytest.mark.parametrize("family", ["sd3", "qwenimage"])
def test_names_that_several_families_have_are_not_guessed_from(base: BaseOf, tmp_path: Path, family: str) -> None:
    found = inspect(peft_adapter(base(family), "transformer", tmp_path / "peft", 4, 8, UNET).folder)
    assert found.family is None
    assert found.evidence == ("it may be Stable Diffusion 3 and 3.5", "it may be Qwen-Image")


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
