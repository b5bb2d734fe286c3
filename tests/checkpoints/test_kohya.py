"""What sd-scripts' header says of the scale, beside its alpha tensors."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from adapterline.checkpoints.dialects.kohya import Kohya
from adapterline.checkpoints.dialects.lycoris import Lycoris
from adapterline.errors import CheckpointError
from tests.checkpoints.tables import Keys, layer

STEMS = ("lora_unet_double_blocks_0_img_attn_qkv", "lora_unet_single_blocks_0_linear1", "lora_unet_img_in")
SPLIT = '{"split_qkv": "True", "train_blocks": "all"}'


def scale(module: str, rank: int, header: Mapping[str, str], alpha: float | None = 6.0) -> float:
    suffixes = ("lora_down.weight", "lora_up.weight", *(() if alpha is None else ("alpha",)))
    keys = Keys.of(*(key for stem in STEMS for key in layer(stem, *suffixes)), header=header)
    file = Keys(keys.tensors, keys.header, scalar=lambda key: alpha or 0.0)
    rule = Kohya().scale_rule(file, "denoiser")
    assert rule is not None
    return rule(module.removeprefix("lora_unet_"), rank)


def test_scale_is_alpha_over_rank() -> None:
    assert [scale(stem, 12, {}) for stem in STEMS] == [0.5, 0.5, 0.5]
    assert scale(STEMS[0], 4, {"ss_network_args": "{}"}) == 1.5


def test_parts_that_were_trained_apart_have_their_own_rank() -> None:
    assert [scale(stem, 12, {"ss_network_args": SPLIT}) for stem in STEMS] == [1.5, 2.0, 0.5]


@pytest.mark.parametrize(
    "comment",
    ["dimension is resized from 12 to 4; ", "Dynamic resize with sv_ratio: 0.9 from 12; "],
)
def test_resized_file_means_what_it_says(comment: str) -> None:
    """resize_lora.py decomposes the merged factors at alpha / rank of the file, and keeps the rest of the header."""
    assert scale(STEMS[0], 12, {"ss_network_args": SPLIT, "ss_training_comment": comment}) == 0.5


def test_rank_that_is_none_of_equal_parts_is_refused() -> None:
    with pytest.raises(CheckpointError, match="rank 4"):
        scale(STEMS[0], 4, {"ss_network_args": SPLIT})
    with pytest.raises(CheckpointError, match="rank 6"):
        scale(STEMS[1], 6, {"ss_network_args": SPLIT})


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "3", '{"split_qkv": "False"}', '{"split_qkv": 1}', "[" * 100_000]
)
def test_arguments_that_say_nothing_of_it_change_nothing(text: str) -> None:
    assert scale(STEMS[0], 12, {"ss_network_args": text}) == 0.5


def test_lost_alphas_mean_one_unless_the_header_says_another() -> None:
    assert scale(STEMS[0], 4, {}, alpha=None) == 1.0
    assert scale(STEMS[0], 4, {"ss_network_alpha": "4", "ss_network_dim": "4"}, alpha=None) == 1.0
    with pytest.raises(CheckpointError, match="ss_network_alpha=8"):
        scale(STEMS[0], 4, {"ss_network_alpha": "8", "ss_network_dim": "4"}, alpha=None)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"lycoris_config": '{"algo": "lokr", "multiplier": 0.5}'}, "multiplier=0.5"),
        ({"lycoris_config": '{"algo": "lokr", "multiplier": 1.0, "rs_lora": true}'}, "rs_lora"),
        ({"lycoris_config": '{"algo": "lokr", "multiplier": 1.0}'}, ""),
        ({"lycoris_config": "no json"}, ""),
    ],
)
def test_what_simpletuner_says_in_the_header_counts(header: dict[str, str], message: str) -> None:
    stem = "lycoris_blocks_0_to_q"
    keys = Keys.of(*layer(stem, "lokr_w1", "lokr_w2", "alpha"), header=header)
    file = Keys(keys.tensors, keys.header, scalar=lambda key: 4.0)

    def scale() -> float:
        rule = Lycoris().scale_rule(file, "denoiser")
        assert rule is not None
        return rule("blocks_0_to_q", None)

    if message:
        with pytest.raises(CheckpointError, match=message):
            scale()
    else:
        assert scale() == 1.0
