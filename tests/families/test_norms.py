"""Black Forest Labs' control LoRAs: norm weights that take the place of the base's, beside a LoRA of scale 1."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import FluxControlPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from adapterline.errors import ConversionError, FamilyError
from adapterline.families.base import read_base
from adapterline.families.skeleton import build_model, targets
from adapterline.values import WEIGHT_NAME
from tests.line import Exported, run_line

BaseOf = Callable[[str], Path]
Tensors = dict[str, torch.Tensor]
NORMS = {
    "double_blocks.0.img_attn.norm.query_norm.scale": "transformer_blocks.0.attn.norm_q.weight",
    "double_blocks.0.txt_attn.norm.key_norm.scale": "transformer_blocks.0.attn.norm_added_k.weight",
    "single_blocks.0.norm.key_norm.scale": "single_transformer_blocks.0.attn.norm_k.weight",
}


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def checkpoint(base: Path, folder: Path) -> Path:
    """As flux1-depth-dev-lora has it: original names, biases of lora_B, a widened img_in, norms in bf16."""
    layers = targets(read_base(base), "transformer")
    model = dict(build_model(read_base(base).models["transformer"]).named_parameters())
    out, inputs = layers["x_embedder"].shape
    width = layers["transformer_blocks.0.attn.to_q"].shape[0]
    tensors: Tensors = {}
    for stem, rows, columns in (
        ("img_in", out, 2 * inputs),
        ("double_blocks.0.img_attn.qkv", 3 * width, width),
        ("single_blocks.0.linear2", *layers["single_transformer_blocks.0.proj_out"].shape),
    ):
        tensors |= {f"{stem}.lora_A.weight": random(3, columns), f"{stem}.lora_B.weight": random(rows, 3)}
        tensors[f"{stem}.lora_B.bias"] = random(rows)
    for number, (spelled, name) in enumerate(NORMS.items()):
        tensors[spelled] = (random(*model[name].shape) + number).bfloat16()
    save_file(tensors, folder / "depth.safetensors")
    return folder / "depth.safetensors"


@pytest.fixture
def exported(base: BaseOf, tmp_path: Path) -> Exported:
    return run_line(checkpoint(base("flux"), tmp_path), base("flux"), tmp_path)


def test_norms_are_carried_and_proven(exported: Exported) -> None:
    report = exported.report()
    assert report.passed, report.failures
    assert exported.source.dialect == "original"
    assert {check.name for check in report.checks} >= {"weights of norms, bit by bit", "effect, exact"}
    written, source = load_file(exported.folder / WEIGHT_NAME), load_file(exported.source.path)
    assert all(torch.equal(written[f"transformer.{name}"], source[spelled]) for spelled, name in NORMS.items())
    assert [transform.kind for transform in exported.plan.transforms] == ["replace-norms"]


def test_loaded_pipeline_computes_with_them_as_with_the_original_file(
    base: BaseOf, exported: Exported, tmp_path: Path
) -> None:
    ours, theirs = (FluxControlPipeline.from_pretrained(base("flux")) for _ in range(2))
    (load,) = exported.bundle.loads
    assert load.pipeline == "FluxControlPipeline"
    ours.load_lora_weights(str(exported.folder), weight_name=load.weight_name)
    state, before = ours.transformer.state_dict(), theirs.transformer.state_dict()
    source = load_file(exported.source.path)
    for spelled, name in NORMS.items():
        assert torch.equal(state[name], source[spelled].float())
    others = [key for key in before if re.search(r"norm_(added_)?[qk]\.weight$", key) and key not in NORMS.values()]
    assert others
    assert all(torch.equal(state[key], before[key]) for key in others)
    ours.unload_lora_weights()
    assert all(torch.equal(ours.transformer.state_dict()[key], before[key]) for key in NORMS.values())


def damaged(exported: Exported, folder: Path, damage: Callable[[Tensors], None]) -> set[str]:
    import shutil

    shutil.copytree(exported.folder, folder)
    tensors = load_file(folder / WEIGHT_NAME)
    with safe_open(folder / WEIGHT_NAME, framework="pt") as opened:
        header = opened.metadata()
    damage(tensors)
    save_file(tensors, folder / WEIGHT_NAME, header)
    return {check.name for check in exported.report(folder).failures if "digest" not in check.name}


def test_wrong_missing_and_surplus_norms_fail(exported: Exported, tmp_path: Path) -> None:
    name, *_ = (f"transformer.{name}" for name in NORMS.values())
    check = {"weights of norms, bit by bit"}

    def wrong(tensors: Tensors) -> None:
        tensors[name][1] += 1

    def missing(tensors: Tensors) -> None:
        del tensors[name]

    def surplus(tensors: Tensors) -> None:
        tensors[name.replace("norm_q", "norm_k")] = tensors[name].clone()

    assert damaged(exported, tmp_path / "wrong", wrong) == check
    assert damaged(exported, tmp_path / "missing", missing) == check
    assert damaged(exported, tmp_path / "surplus", surplus) == check


def test_file_in_diffusers_names_is_carried_as_well(base: BaseOf, exported: Exported, tmp_path: Path) -> None:
    again = run_line(exported.folder / WEIGHT_NAME, base("flux"), tmp_path / "again")
    assert again.source.dialect == "diffusers"
    assert again.report().passed
    assert again.bundle.digest == exported.bundle.digest


def test_norm_of_another_shape_and_of_another_family_is_refused(base: BaseOf, tmp_path: Path) -> None:
    path = checkpoint(base("flux"), tmp_path)
    tensors = load_file(path)
    spelled, *_ = NORMS
    save_file({**tensors, spelled: random(3)}, path)
    with pytest.raises(FamilyError, match=r"query_norm.* is no norm"):
        run_line(path, base("flux"), tmp_path)
    out, inputs = targets(read_base(base("sd3")), "transformer")["transformer_blocks.0.attn.to_q"].shape
    stem = "transformer.transformer_blocks.0.attn"
    tensors = {f"{stem}.to_q.lora_A.weight": random(2, inputs), f"{stem}.to_q.lora_B.weight": random(out, 2)}
    save_file(tensors | {f"{stem}.norm_q.weight": random(8)}, path)
    with pytest.raises(ConversionError, match="takes none"):
        run_line(path, base("sd3"), tmp_path)
