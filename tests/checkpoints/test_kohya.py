"""What sd-scripts' header says of the scale, beside its alpha tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest

from adapterline.checkpoints.dialects import identify
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


STEM = "lora_unet_blocks_0_to_q"


def dylora(header: Mapping[str, str], rank: int = 8) -> float:
    """The scale of a layer with alpha 6, by the only dialect that reads it."""
    keys = Keys.of(*layer(STEM, "lora_down.weight", "lora_up.weight", "alpha"), header=header)
    file = Keys(keys.tensors, keys.header, scalar=lambda key: 6.0)
    rule = identify(file)[0].scale_rule(file, "denoiser")
    assert rule is not None
    return rule("blocks_0_to_q", rank)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ({"ss_network_args": '{"algo": "dylora", "block_size": "1"}'}, 6 / 8),
        ({"ss_network_args": '{"algo": "DyLoRA", "block_size": "2", "preset": "attn-mlp"}'}, 6 / 4),
        ({"ss_network_args": '{"algo": "dylora"}', "ss_network_module": "lycoris.kohya"}, 6 / 2),
        ({"lycoris_config": '{"algo": "dylora", "block_size": 8, "apply_preset": {"target_module": ["A"]}}'}, 6.0),
        ({"ss_network_args": '{"unit": "4"}', "ss_network_module": "networks.dylora"}, 6 / 8),
        ({"ss_network_args": '{"algo": "dylora"}', "ss_network_module": "networks.lora"}, 6 / 8),
        ({"ss_network_args": '{"algo": "lora", "block_size": "2"}'}, 6 / 8),
    ],
)
def test_blocks_divide_the_alpha_of_lycoris_dylora(header: dict[str, str], expected: float) -> None:
    assert dylora(header) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"block_size": "none"}, "block_size='none'"),
        ({"block_size": "0"}, "block_size='0'"),
        ({"block_size": [2]}, "block_size=.2."),
        ({"block_size": "3"}, "blocks of 3, and blocks_0_to_q has rank 8"),
        ({"preset": "my/preset.toml"}, "with a preset of its own"),
        ({"preset": {}}, "with a preset of its own"),
        ({"module_algo_map": {"Attention": {"block_size": 2}}}, "with a preset of its own"),
        ({"bypass_mode": "True"}, "bypass_mode"),
    ],
)
@pytest.mark.parametrize("key", ["ss_network_args", "lycoris_config"])
def test_dylora_whose_blocks_are_open_is_refused(key: str, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        dylora({key: json.dumps({"algo": "dylora", **arguments})})
    assert "alpha * block_size / rank" in str(caught.value)
    assert "toml" not in str(caught.value), "no path of the trainer's machine"


def test_resized_dylora_and_dylora_in_some_layers_are_refused() -> None:
    resized = {"ss_network_args": '{"algo": "dylora"}', "ss_training_comment": "dimension is resized from 16 to 8; "}
    with pytest.raises(CheckpointError, match="resized"):
        dylora(resized)
    with pytest.raises(CheckpointError, match="with a preset of its own"):
        dylora({"lycoris_config": '{"algo": "lora", "apply_preset": {"name_algo_map": {"a": {"algo": "dylora"}}}}'})


def test_dylora_without_alpha_is_refused() -> None:
    header = {"ss_network_args": '{"algo": "dylora"}', "ss_network_alpha": "8", "ss_network_dim": "8"}
    file = Keys.of(*layer(STEM, "lora_down.weight", "lora_up.weight"), header=header)
    rule = identify(file)[0].scale_rule(file, "denoiser")
    assert rule is not None
    with pytest.raises(CheckpointError, match="has no alpha tensor"):
        rule("blocks_0_to_q", 8)
