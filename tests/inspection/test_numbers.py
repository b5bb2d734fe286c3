"""Rank and alpha, where the factors of the layers do not tell them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from adapterline.inspection import InspectedComponent, inspect
from adapterline.texts import inspection_text

Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
K = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k"
FLAT = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
Shapes = dict[str, tuple[int, ...]]
WHOLE_LOKR: Shapes = {"lokr_w1": (4, 4), "lokr_w2": (8, 8)}


def peft(folder: Path, config: dict[str, Any], *layers: tuple[str, Shapes]) -> InspectedComponent:
    tensors = {
        f"base_model.model.{module}.{suffix}": torch.zeros(shape)
        for module, shapes in layers
        for suffix, shape in shapes.items()
    }
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return inspect(folder).components["unet"]


def single(path: Path, header: dict[str, str], shapes: Shapes, alpha: float | None = None) -> InspectedComponent:
    tensors = {f"{FLAT}.{suffix}": torch.zeros(shape) for suffix, shape in shapes.items()}
    if alpha is not None:
        tensors[f"{FLAT}.alpha"] = torch.tensor(alpha)
    save_file(tensors, path, header)
    return inspect(path).components["unet"]


# --- LoKr of whole factors --------------------------------------------------------------------------------------------


def test_whole_factors_have_the_rank_and_alpha_of_their_configuration(tmp_path: Path) -> None:
    config = {"peft_type": "LOKR", "r": 4, "alpha": 8, "rank_pattern": {"to_k": 2}, "alpha_pattern": {"to_k": 6}}
    found = peft(tmp_path, config, (Q, WHOLE_LOKR))
    assert (found.rank, found.alpha) == (4, 8)
    both = peft(tmp_path, config, (Q, WHOLE_LOKR), (K, WHOLE_LOKR))
    assert (both.rank, both.alpha) == ([2, 4], [6, 8])


def test_rank_that_factors_tell_is_not_overridden_by_a_header(tmp_path: Path) -> None:
    shapes: Shapes = {"lokr_w1": (4, 4), "lokr_w2_a": (8, 2), "lokr_w2_b": (2, 8)}
    found = single(tmp_path / "l.safetensors", {"ss_network_dim": "16"}, shapes, 1)
    assert (found.rank, found.alpha) == (2, 1)


@pytest.mark.parametrize(
    "header",
    [
        {"lycoris_config": '{"algo": "lokr", "linear_dim": 10000, "linear_alpha": 1}'},
        {"ss_network_module": "lycoris.kohya", "ss_network_dim": "10000", "ss_network_alpha": "1"},
    ],
)
def test_whole_factors_have_the_rank_that_the_header_states_and_the_alpha_of_scale_1(
    tmp_path: Path, header: dict[str, str]
) -> None:
    """lycoris.modules.lokr sets alpha to the rank then, whatever alpha it was given."""
    found = single(tmp_path / "l.safetensors", header, WHOLE_LOKR, 10000)
    assert (found.rank, found.alpha) == (10000, 10000)


@pytest.mark.parametrize("number", ["None", "Dynamic", "0", "-4", "nan", "inf", "1e999", "true", "9999999999", "4.5"])
def test_header_that_states_no_number_tells_none(tmp_path: Path, number: str) -> None:
    found = single(tmp_path / "l.safetensors", {"ss_network_dim": number}, WHOLE_LOKR, 1)
    assert (found.rank, found.alpha) == (None, None)


AI_TOOLKIT = "config: {{process: [{{network: {{type: lokr, linear: 16, linear_alpha: 16, lokr_full_rank: {}}}}}]}}"


@pytest.mark.parametrize(("full", "rank"), [("false", 16), ("true", None)])
def test_whole_factors_of_ai_toolkit_have_the_rank_of_its_configuration_unless_that_says_full(
    tmp_path: Path, full: str, rank: int | None
) -> None:
    single(tmp_path / "l.safetensors", {}, WHOLE_LOKR, float("inf"))
    (tmp_path / "config.yaml").write_text(AI_TOOLKIT.format(full))
    found = inspect(tmp_path).components["unet"]
    assert (found.rank, found.alpha) == (rank, rank)
    alone = inspect(tmp_path / "l.safetensors").components["unet"]  # the file beside may be another adapter's
    assert (alone.rank, alone.alpha) == (None, None)


# --- types without a rank ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shapes", "kind"),
    [
        ({"diff": (16, 16)}, "full"),
        ({"weight": (16,), "on_input": ()}, "ia3"),
        ({"w_norm": (16,)}, "norm"),
    ],
)
def test_type_without_a_rank_has_none_whatever_the_trainer_was_given(tmp_path: Path, shapes: Shapes, kind: str) -> None:
    header = {"ss_network_module": "lycoris.kohya", "ss_network_dim": "4", "ss_network_alpha": "1"}
    found = single(tmp_path / "l.safetensors", header, shapes)
    assert (found.adapter_type, found.rank, found.alpha) == (kind, None, None)
    assert f"unet: {kind}, rank -, alpha -, 1 modules" in inspection_text(inspect(tmp_path / "l.safetensors"))


def test_ia3_of_peft_has_neither(tmp_path: Path) -> None:
    found = peft(tmp_path, {"peft_type": "IA3"}, (Q, {"ia3_l": (16, 1)}))
    assert (found.adapter_type, found.rank, found.alpha) == ("ia3", None, None)


def test_alpha_that_counts_and_is_nowhere_is_called_unknown(tmp_path: Path) -> None:
    layer = {f"base_model.model.{Q}.lora_A.weight": torch.zeros(4, 8)}
    save_file({**layer, f"base_model.model.{Q}.lora_B.weight": torch.zeros(8, 4)}, tmp_path / "l.safetensors")
    assert "unet: lora, rank 4, alpha unknown," in inspection_text(inspect(tmp_path / "l.safetensors"))


# --- rotations --------------------------------------------------------------------------------------------------------

#: Above the diagonal of a block of 8 rows lie 28 numbers.
OFT: Shapes = {"oft_R.weight": (2, 28)}
BOFT: Shapes = {"boft_R": (1, 4, 4, 4), "boft_s": (16, 1)}


@pytest.mark.parametrize(
    ("config", "shapes", "rank"),
    [
        ({"peft_type": "OFT", "r": 0, "oft_block_size": 8}, OFT, 8),
        ({"peft_type": "OFT", "r": 2, "oft_block_size": 0}, OFT, 2),
        ({"peft_type": "OFT"}, OFT, 8),
        ({"peft_type": "BOFT", "boft_block_size": 4, "boft_block_num": 0}, BOFT, 4),
        ({"peft_type": "BOFT", "boft_block_size": 0, "boft_block_num": 4}, BOFT, 4),
        ({"peft_type": "HRA", "r": 3}, {"hra_u": (16, 3)}, 3),
        ({"peft_type": "HRA", "r": 1e300}, {"hra_u": (16, 3)}, None),
    ],
)
def test_rotation_of_peft_has_the_rank_of_its_configuration_else_its_block_size(
    tmp_path: Path, config: dict[str, Any], shapes: Shapes, rank: int
) -> None:
    found = peft(tmp_path, config, (Q, shapes))
    assert (found.adapter_type, found.rank, found.alpha) == (config["peft_type"].lower(), rank, None)


def test_refused_type_has_the_alpha_of_its_configuration(tmp_path: Path) -> None:
    config = {"peft_type": "PSOFT", "r": 3, "psoft_alpha": 6}
    found = peft(tmp_path, config, (Q, {"psoft_R": (3, 3)}))
    assert (found.rank, found.alpha) == (3, 6)


@pytest.mark.parametrize("alpha", [float("inf"), float("nan")])
def test_alpha_of_a_refused_type_that_is_no_number_is_none(tmp_path: Path, alpha: float) -> None:
    assert single(tmp_path / "l.safetensors", {}, {"oft_diag": (2, 8, 8)}, alpha).alpha is None


@pytest.mark.parametrize(
    ("header", "shapes", "rank", "alpha"),
    [
        ({"ss_network_dim": "2", "ss_network_alpha": "0.1"}, {"oft_blocks": (2, 8, 8)}, 2, 0.1),
        ({}, {"oft_blocks": (2, 8, 8)}, 8, 0.5),
        ({}, {"oft_diag": (2, 8, 8)}, 8, 0.5),
        ({}, {"oft_blocks": (3, 2, 4, 4)}, 4, 0.5),
        ({}, OFT, 8, 0.5),
        ({}, {"oft_blocks": (2, 8, 7)}, None, 0.5),
        ({}, {"oft_R.weight": (2, 27)}, None, 0.5),
    ],
)
def test_rotation_of_others_has_the_rank_of_the_header_else_its_block_size(
    tmp_path: Path, header: dict[str, str], shapes: Shapes, rank: int | None, alpha: float
) -> None:
    found = single(tmp_path / "l.safetensors", header, shapes, 0.5)
    assert (found.adapter_type, found.rank, found.alpha) == ("oft", rank, alpha)
