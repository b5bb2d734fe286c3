"""LoKr kept as LoKr where diffusers loads it, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapterline.errors import ConversionError
from adapterline.families.base import read_base
from adapterline.families.skeleton import targets
from adapterline.values import WEIGHT_NAME, ExportOptions
from tests.line import Exported, run_line

BaseOf = Callable[[str], Path]
LAYERS = ("transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.to_k", "single_transformer_blocks.0.attn.to_out")
KEPT = ExportOptions(keep_form=True)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def checkpoint(base: Path, folder: Path, *, alpha: float = 3.0, whole: bool = False) -> Path:
    """LoKr with factors of 4, the right one decomposed to rank 2 unless `whole`."""
    tensors = {}
    for module in LAYERS:
        out, inputs = targets(read_base(base), "transformer")[module].shape
        stem = f"lycoris_{module.replace('.', '_')}"
        tensors |= {f"{stem}.lokr_w1": random(4, 4), f"{stem}.alpha": torch.tensor(alpha)}
        if whole:
            tensors[f"{stem}.lokr_w2"] = random(out // 4, inputs // 4)
        else:
            tensors |= {f"{stem}.lokr_w2_a": random(out // 4, 2), f"{stem}.lokr_w2_b": random(2, inputs // 4)}
    save_file(tensors, folder / "lokr.safetensors")
    return folder / "lokr.safetensors"


def written(exported: Exported) -> dict[str, torch.Tensor]:
    return load_file(exported.folder / WEIGHT_NAME)


@pytest.mark.parametrize("whole", [False, True])
def test_lokr_is_kept_and_proven(base: BaseOf, tmp_path: Path, whole: bool) -> None:
    exported = run_line(checkpoint(base("flux2"), tmp_path, whole=whole), base("flux2"), tmp_path, KEPT)
    report = exported.report()
    assert report.passed, report.failures
    suffixes = {"lokr_w1", "lokr_w2"} if whole else {"lokr_w1", "lokr_w2_a", "lokr_w2_b"}
    assert {key.rpartition(".")[2] for key in written(exported)} == suffixes


def test_scale_goes_into_the_left_factor(base: BaseOf, tmp_path: Path) -> None:
    source = load_file(path := checkpoint(base("flux2"), tmp_path, alpha=3.0))
    tensors = written(run_line(path, base("flux2"), tmp_path, KEPT))
    stem = f"lycoris_{LAYERS[0].replace('.', '_')}"
    assert torch.equal(tensors[f"transformer.{LAYERS[0]}.lokr_w1"], source[f"{stem}.lokr_w1"] * 1.5)
    assert torch.equal(tensors[f"transformer.{LAYERS[0]}.lokr_w2_a"], source[f"{stem}.lokr_w2_a"])


def test_wrong_factor_fails_the_proof(base: BaseOf, tmp_path: Path) -> None:
    exported = run_line(checkpoint(base("flux2"), tmp_path), base("flux2"), tmp_path, KEPT)
    tensors = written(exported)
    tensors[f"transformer.{LAYERS[1]}.lokr_w2_b"][0, 0] += 0.01
    save_file(tensors, exported.folder / WEIGHT_NAME, {"format": "pt"})
    failures = {check.name: check.modules for check in exported.report().failures if "digest" not in check.name}
    assert failures == {"effect (on random inputs)": (LAYERS[1],)}


def test_family_that_loads_lora_alone_is_refused(base: BaseOf, tmp_path: Path) -> None:
    layer = "transformer_blocks.0.attn.to_q"
    out, inputs = targets(read_base(base("flux")), "transformer")[layer].shape
    stem = f"transformer.{layer}"
    tensors = {f"{stem}.lokr_w1": random(4, 4), f"{stem}.lokr_w2": random(out // 4, inputs // 4)}
    save_file(tensors | {f"{stem}.alpha": torch.tensor(1.0)}, tmp_path / "flux.safetensors")
    with pytest.raises(ConversionError, match=r"FLUX\.1 loads LoRA alone"):
        run_line(tmp_path / "flux.safetensors", base("flux"), tmp_path, KEPT)
    assert run_line(tmp_path / "flux.safetensors", base("flux"), tmp_path).report().passed


def test_scale_in_the_header_has_no_place_there(base: BaseOf, tmp_path: Path) -> None:
    options = ExportOptions(keep_form=True, scale="header")
    with pytest.raises(ConversionError, match="scale in the factors"):
        run_line(checkpoint(base("flux2"), tmp_path), base("flux2"), tmp_path, options)


def test_lora_is_not_touched_by_it(base: BaseOf, tmp_path: Path) -> None:
    layer = f"transformer.{LAYERS[0]}"
    out, inputs = targets(read_base(base("flux2")), "transformer")[LAYERS[0]].shape
    tensors = {f"{layer}.lora_A.weight": random(2, inputs), f"{layer}.lora_B.weight": random(out, 2)}
    save_file(tensors, tmp_path / "lora.safetensors")
    exported = run_line(tmp_path / "lora.safetensors", base("flux2"), tmp_path, KEPT)
    assert exported.report().passed
    assert set(written(exported)) == set(tensors)
