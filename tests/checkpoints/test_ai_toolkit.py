"""What ai-toolkit writes beside plain LoRA, and SimpleTuner's format for ComfyUI, which has the same keys."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from adapterline.deltas import Delta
from adapterline.errors import CheckpointError, ConversionError, FamilyError
from adapterline.families.base import read_base
from adapterline.families.skeleton import targets
from tests.line import Exported, run_line

BaseOf = Callable[[str], Path]
Tensors = dict[str, torch.Tensor]

QUERY = "transformer_blocks.0.attn.to_q"
CLIP = "text_model.encoder.layers.0.self_attn.q_proj"


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(shape[0])) * 0.1


def shape_of(base: Path, component: str, module: str) -> tuple[int, ...]:
    return targets(read_base(base), component)[module].shape


def pair(stem: str, shape: tuple[int, ...], rank: int = 4) -> Tensors:
    return {f"{stem}.lora_A.weight": drawn(rank, shape[1]), f"{stem}.lora_B.weight": drawn(shape[0], rank)}


def product(tensors: Tensors, stem: str) -> torch.Tensor:
    return tensors[f"{stem}.lora_B.weight"].double() @ tensors[f"{stem}.lora_A.weight"].double()


def exported(tensors: Tensors, base: Path, folder: Path, header: dict[str, str] | None = None) -> Exported:
    save_file(tensors, folder / "style.safetensors", header)
    return run_line(folder / "style.safetensors", base, folder)


def weight(delta: Delta) -> torch.Tensor:
    return delta.apply(torch.eye(delta.shape[1], dtype=torch.float64))


@pytest.mark.parametrize("stem", ["transformer", "diffusion_model"])
def test_full_rank_is_the_whole_change(stem: str, base: BaseOf, tmp_path: Path) -> None:
    change = drawn(*shape_of(base("flux"), "transformer", QUERY))
    tensors = {f"{stem}.{QUERY}.lora_A.weight": change}
    done = exported(tensors, base("flux"), tmp_path, {"software": '{"name": "ai-toolkit"}'})
    torch.testing.assert_close(weight(done.adapter.components["transformer"][QUERY]), change.double())
    assert done.report().passed, done.report().failures


@pytest.mark.parametrize("stem", ["transformer", "diffusion_model"])
def test_whole_change_by_nobody_known_is_a_missing_half(stem: str, base: BaseOf, tmp_path: Path) -> None:
    change = drawn(*shape_of(base("flux"), "transformer", QUERY))
    with pytest.raises(CheckpointError, match="no lora_B"):
        exported({f"{stem}.{QUERY}.lora_A.weight": change}, base("flux"), tmp_path)


def test_lora_without_any_b_is_no_full_rank(base: BaseOf, tmp_path: Path) -> None:
    shape = shape_of(base("flux"), "transformer", QUERY)
    with pytest.raises((CheckpointError, FamilyError)):
        exported({f"transformer.{QUERY}.lora_A.weight": drawn(2, shape[1])}, base("flux"), tmp_path)


def test_layer_without_b_beside_others_is_not_whole(base: BaseOf, tmp_path: Path) -> None:
    shape = shape_of(base("flux"), "transformer", QUERY)
    tensors = pair(f"transformer.{QUERY}", shape) | {f"transformer.{QUERY[:-1]}k.lora_A.weight": drawn(*shape)}
    with pytest.raises(CheckpointError, match="no lora_B"):
        exported(tensors, base("flux"), tmp_path)


@pytest.mark.parametrize(
    ("prefix", "component"), [("lora_te", "text_encoder"), ("lora_te1", "text_encoder"), ("lora_te2", "text_encoder_2")]
)
@pytest.mark.parametrize("alone", [True, False])
def test_text_encoder_with_pefts_suffixes(
    prefix: str, component: str, alone: bool, base: BaseOf, tmp_path: Path
) -> None:
    folder = base("sd3")
    tensors = pair(f"{prefix}.{CLIP}", shape_of(folder, component, CLIP.removeprefix("text_model.")))
    stem = f"{prefix}.{CLIP}"
    if not alone:
        tensors |= pair(f"transformer.{QUERY}", shape_of(folder, "transformer", QUERY))
    done = exported(tensors, folder, tmp_path)
    (delta,) = done.adapter.components[component].values()
    torch.testing.assert_close(weight(delta), product(tensors, stem))
    assert done.report().passed, done.report().failures


def test_difference_of_a_norm_is_refused_with_the_reason(base: BaseOf, tmp_path: Path) -> None:
    tensors = pair(f"transformer.{QUERY}", shape_of(base("flux"), "transformer", QUERY))
    tensors["transformer.transformer_blocks.0.attn.norm_q.diff"] = drawn(16)
    with pytest.raises(ConversionError, match="that of a norm"):
        exported(tensors, base("flux"), tmp_path)


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_alpha_that_the_header_says_too_is_taken(prefix: str, base: BaseOf, tmp_path: Path) -> None:
    """SimpleTuner with `--lora_format=comfyui`: alpha tensors, and a LoraConfig with no component in front."""
    stem = f"transformer.{QUERY}"
    tensors = pair(stem, shape_of(base("flux"), "transformer", QUERY)) | {f"{stem}.alpha": torch.tensor(8.0)}
    config = {f"{prefix}r": 4, f"{prefix}lora_alpha": 8}
    done = exported(tensors, base("flux"), tmp_path, {"lora_adapter_metadata": json.dumps(config)})
    torch.testing.assert_close(weight(done.adapter.components["transformer"][QUERY]), 2 * product(tensors, stem))


@pytest.mark.parametrize("alpha", [4, 16, 8 * (1 + 5e-6), 8 * (1 - 5e-6)])
def test_alpha_that_the_header_contradicts_is_refused(alpha: float, base: BaseOf, tmp_path: Path) -> None:
    stem = f"transformer.{QUERY}"
    tensors = pair(stem, shape_of(base("flux"), "transformer", QUERY)) | {f"{stem}.alpha": torch.tensor(8.0)}
    header = {"lora_adapter_metadata": json.dumps({"r": 4, "lora_alpha": alpha})}
    with pytest.raises(CheckpointError, match=f"stated twice: 2 by alpha tensors, and {alpha / 4:g}"):
        exported(tensors, base("flux"), tmp_path, header)


def test_alpha_that_was_rounded_to_float32_does_not_contradict_the_header(base: BaseOf, tmp_path: Path) -> None:
    stem, alpha = f"transformer.{QUERY}", 10 / 3
    tensors = pair(stem, shape_of(base("flux"), "transformer", QUERY)) | {f"{stem}.alpha": torch.tensor(alpha)}
    header = {"lora_adapter_metadata": json.dumps({"r": 4, "lora_alpha": alpha})}
    assert tensors[f"{stem}.alpha"].item() != alpha
    exported(tensors, base("flux"), tmp_path, header)
