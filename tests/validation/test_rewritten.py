"""The proof of layers that were written in another form: whole layers are compared, and a mistake in one shows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapterline.values import WEIGHT_NAME, ExportOptions
from tests.line import Exported, run_line

BaseOf = Callable[[str], Path]
Tensors = dict[str, torch.Tensor]

BLOCK = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1"
LAYER = "mid_block.attentions.0.transformer_blocks.0.attn1"


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def width(base: Path) -> int:
    return int(json.loads((base / "unet" / "config.json").read_text())["block_out_channels"][-1])


def checkpoint(base: Path, folder: Path) -> Path:
    """LoHa on to_q, LoKr on to_k, a full difference with its bias on to_out, LoRA on to_v."""
    n = width(base)
    tensors: Tensors = {"to_v.lora_down.weight": random(3, n), "to_v.lora_up.weight": random(n, 3) / n}
    loha = {"a": (n, 2), "b": (2, n)}
    tensors |= {f"to_q.hada_w{i}_{part}": random(*shape) for i in "12" for part, shape in loha.items()}
    tensors |= {"to_k.lokr_w1": random(2, 2), "to_k.lokr_w2_a": random(n // 2, 2), "to_k.lokr_w2_b": random(2, n // 2)}
    tensors |= {"to_out_0.diff": random(n, n) / n, "to_out_0.diff_b": random(n)}
    tensors |= {f"{name}.alpha": torch.tensor(3.0) for name in ("to_q", "to_k", "to_v")}
    path = folder / "adapter.safetensors"
    save_file({f"{BLOCK}_{key}": tensor for key, tensor in tensors.items()}, path)
    return path


@pytest.fixture
def exported(base: BaseOf, tmp_path: Path) -> Exported:
    folder = base("sd15")
    return run_line(checkpoint(folder, tmp_path), folder, tmp_path)


def failed(exported: Exported, tmp_path: Path, damage: Callable[[Tensors], None]) -> set[str]:
    """The names of the checks that fail once the file was damaged (its digest aside)."""
    folder = tmp_path / "damaged"
    shutil.copytree(exported.folder, folder)
    tensors = load_file(folder / WEIGHT_NAME)
    damage(tensors)
    from safetensors import safe_open

    with safe_open(folder / WEIGHT_NAME, framework="pt") as opened:
        header = opened.metadata()
    save_file(tensors, folder / WEIGHT_NAME, header)
    checks = exported.report(folder).failures
    assert all(set(check.modules) <= {f"{LAYER}.to_{name}" for name in ("q", "k", "v", "out.0")} for check in checks)
    return {check.name for check in checks} - {f"{WEIGHT_NAME} has its digest"}


def test_every_form_is_proven(exported: Exported) -> None:
    report = exported.report()
    assert report.passed, report.failures
    assert {"effect, exact", "effect (on random inputs)", "magnitude and bias"} <= {c.name for c in report.checks}


@pytest.mark.parametrize("layer", ["to_q", "to_k", "to_out.0"])
@pytest.mark.parametrize("factor", ["A", "B"])
def test_one_wrong_element_fails(exported: Exported, tmp_path: Path, layer: str, factor: str) -> None:
    def damage(tensors: Tensors) -> None:
        tensor = tensors[f"unet.{LAYER}.{layer}.lora_{factor}.weight"]
        index = int(tensor.abs().argmax())
        tensor.flatten()[index] *= 1.01

    assert failed(exported, tmp_path, damage) == {"effect (on random inputs)"}


def test_wrong_scale_of_one_layer_fails(exported: Exported, tmp_path: Path) -> None:
    def damage(tensors: Tensors) -> None:
        tensors[f"unet.{LAYER}.to_q.lora_B.weight"] *= 1.0001

    assert failed(exported, tmp_path, damage) == {"effect (on random inputs)"}


def test_wrong_bias_fails(exported: Exported, tmp_path: Path) -> None:
    def damage(tensors: Tensors) -> None:
        tensors[f"unet.{LAYER}.to_out.0.lora_B.bias"][3] += 1e-3

    assert failed(exported, tmp_path, damage) == {"magnitude and bias"}


def test_bias_where_none_was_trained_fails(exported: Exported, tmp_path: Path) -> None:
    def damage(tensors: Tensors) -> None:
        tensors[f"unet.{LAYER}.to_k.lora_B.bias"][3] = 1e-3

    assert failed(exported, tmp_path, damage) == {"magnitude and bias"}


def test_approximation_is_held_to_the_best_of_its_rank(base: BaseOf, tmp_path: Path) -> None:
    folder = base("sd15")
    near = run_line(checkpoint(folder, tmp_path), folder, tmp_path, ExportOptions(approximate=2))
    report = near.report()
    assert report.passed, report.failures
    (check,) = (check for check in report.checks if "smallest possible" in check.name)

    def damage(tensors: Tensors) -> None:
        tensors[f"unet.{LAYER}.to_out.0.lora_B.weight"][:, 1] *= 1.03

    assert failed(near, tmp_path, damage) == {check.name}


def test_approximation_that_nobody_asked_for_fails(base: BaseOf, tmp_path: Path) -> None:
    folder = base("sd15")
    near = run_line(checkpoint(folder, tmp_path), folder, tmp_path, ExportOptions(approximate=2))
    report = replace(near, options=ExportOptions()).report()
    assert "effect (on random inputs)" in {check.name for check in report.failures}
