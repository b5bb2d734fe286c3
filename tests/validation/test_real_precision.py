"""Adapters as trainers store them: half precision, small B, alpha 1 or a scale that is no power of two.

Judged on each module's weight change after a real load, in float64, against what the stored factors and alpha say.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapterline.families.base import read_base
from adapterline.families.skeleton import targets
from adapterline.validation import tolerances
from adapterline.values import WEIGHT_NAME, ExportOptions
from tests.families.adapted import layers_of, load
from tests.families.tiny import CASES
from tests.line import run_line

Changes = dict[str, torch.Tensor]
HALVES = [torch.float16, torch.bfloat16]


def checkpoint(folder: Path, base: Path, dtype: torch.dtype, rank: int, alpha: float, sigma: float) -> Changes:
    """Writes one for every attention projection of the FLUX in `base`; gives each layer's [out, in] change."""
    generator, tensors, changes = torch.Generator().manual_seed(rank), {}, {}
    for name, target in targets(read_base(base), "transformer").items():
        if name.endswith(("to_q", "to_k", "to_v", "to_out.0")):
            a = (torch.randn(rank, target.shape[1], generator=generator) * 0.02).to(dtype)
            b = (torch.randn(target.shape[0], rank, generator=generator) * sigma).to(dtype)
            stem = f"transformer.{name}"
            tensors |= {f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b}
            changes[name] = b.double() @ a.double() * (alpha / rank)
    header = {"transformer.r": rank, "transformer.lora_alpha": alpha}
    save_file(tensors, folder / "trained.safetensors", {"lora_adapter_metadata": json.dumps(header)})
    return changes


def loaded(exported_models: dict[str, torch.nn.Module]) -> Changes:
    """What each layer adds to its weight, from what the loader put into the model."""
    return {
        name: layer.lora_B["default_0"].weight.detach().double()
        @ layer.lora_A["default_0"].weight.detach().double()
        * layer.scaling["default_0"]
        for name, layer in layers_of(exported_models["transformer"]).items()
    }


def worst(found: Changes, wanted: Changes) -> float:
    assert found.keys() == wanted.keys()
    return max(float((found[name] - change).norm() / change.norm()) for name, change in wanted.items())


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("rank", "alpha"), [(64, 1.0), (128, 1.0), (16, 27.0)])
@pytest.mark.parametrize("sigma", [1e-3, 1e-4])
def test_every_weight_changes_as_trained_within_the_stated_bound(
    tmp_path: Path, dtype: torch.dtype, rank: int, alpha: float, sigma: float
) -> None:
    case = CASES["flux"]
    base = case.write(tmp_path / "base")
    wanted = checkpoint(tmp_path, base, dtype, rank, alpha, sigma)
    exported = run_line(tmp_path / "trained.safetensors", base, tmp_path)
    assert exported.report().passed
    models = {"transformer": case.build("transformer")}
    load(exported, models)
    assert worst(loaded(models), wanted) <= tolerances.FOLD
    stored = {tensor.dtype for tensor in load_file(exported.folder / WEIGHT_NAME).values()}
    if dtype == torch.float16 or alpha == 1.0:
        assert stored == {dtype}, "the power of two is split, and the rest rounded once"
    else:
        assert stored == {torch.float32}, "eight bits cannot hold this scale within the bound"


@pytest.mark.parametrize("dtype", HALVES)
def test_the_scale_that_stays_in_the_header_rounds_nothing(tmp_path: Path, dtype: torch.dtype) -> None:
    case = CASES["flux"]
    base = case.write(tmp_path / "base")
    wanted = checkpoint(tmp_path, base, dtype, 64, 27.0, 1e-4)
    exported = run_line(tmp_path / "trained.safetensors", base, tmp_path, ExportOptions(scale="header"))
    models = {"transformer": case.build("transformer")}
    load(exported, models)
    assert worst(loaded(models), wanted) <= tolerances.EXACT
