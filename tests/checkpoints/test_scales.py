from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from adapterline.checkpoints.scales import from_alpha, from_peft_config, unit, unit_of_rank, whole_number
from adapterline.errors import CheckpointError

PLAIN = {"peft_type": "LORA", "r": 8, "lora_alpha": 16}


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_q = torch.nn.Linear(4, 4)
        self.to_out = torch.nn.ModuleList([torch.nn.Linear(4, 4), torch.nn.Dropout(0.0)])
        self.proj_out = torch.nn.Linear(4, 4)


class Net(torch.nn.Module):
    """Names that are the end of other names, and a number with two digits."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList([Block() for _ in range(12)])
        self.proj_out = torch.nn.Linear(4, 4)
        self.to_q = torch.nn.Linear(4, 4)


TARGETS = ["to_q", "to_out.0", "proj_out"]
PATTERNS = [
    "to_q",
    "blocks.1.to_q",
    "^proj_out",
    "^blocks.1.to_q",
    r"blocks\.[0-3]\.to_q",
    r"blocks.*proj_out",
    r"^blocks\.\d\.to_out\.0",
    "to_out.0",
    "out",
    "locks.1.to_q",
    "blocks.1",
    "to_q|proj_out",
    ".*",
    "^",
]


def pefts_own(**settings_: Any) -> tuple[dict[str, Any], dict[str, tuple[int, float]]]:
    """(the configuration as it is saved, rank and scaling of every layer as peft computes them)."""
    config = LoraConfig(target_modules=TARGETS, **settings_)
    model = get_peft_model(Net(), config)
    layers = {
        name.removeprefix("base_model.model."): (module.r["default"], module.scaling["default"])
        for name, module in model.named_modules()
        if hasattr(module, "scaling")
    }
    saved = {
        key: sorted(value) if isinstance(value, set) else value
        for key, value in model.peft_config["default"].to_dict().items()
    }
    return saved | {"peft_type": "LORA"}, layers


@pytest.mark.filterwarnings(
    "ignore:.*rslora.*", "ignore:.*RSLora.*", "ignore:.*use_rslora.*", "ignore:.*did not match.*"
)
@settings(max_examples=60, deadline=None)
@given(
    r=st.integers(1, 9),
    alpha=st.integers(1, 40),
    ranks=st.dictionaries(st.sampled_from(PATTERNS), st.integers(1, 9), max_size=3),
    alphas=st.dictionaries(st.sampled_from(PATTERNS), st.integers(1, 40), max_size=3),
    rslora=st.booleans(),
)
def test_scale_of_every_layer_is_what_peft_computes(
    r: int, alpha: int, ranks: dict[str, int], alphas: dict[str, int], rslora: bool
) -> None:
    config, layers = pefts_own(r=r, lora_alpha=alpha, rank_pattern=ranks, alpha_pattern=alphas, use_rslora=rslora)
    rule = from_peft_config(config, "adapter_config.json")
    assert len(layers) == 12 * 3 + 2
    for module, (rank, scaling) in layers.items():
        assert rule(module, rank) == pytest.approx(scaling, rel=1e-12), module


def test_anchored_pattern_is_for_the_whole_name_alone() -> None:
    rule = from_peft_config(PLAIN | {"alpha_pattern": {"^proj_out": 8, "blocks.1.to_q": 4}}, "x")
    assert rule("proj_out", 8) == 1.0
    assert rule("blocks.0.proj_out", 8) == 2.0
    assert rule("blocks.1.to_q", 8) == 0.5
    assert rule("blocks.11.to_q", 8) == 2.0
    assert rule("my_blocks.1.to_q", 8) == 2.0


def test_rslora_divides_by_the_root_of_the_rank() -> None:
    assert from_peft_config(PLAIN | {"use_rslora": True}, "x")("q", 8) == pytest.approx(16 / math.sqrt(8), rel=1e-15)


def test_alpha_and_unit_are_what_they_say() -> None:
    assert from_alpha(16)("q", 8) == 2.0
    assert unit("q", 8) == 1.0


def test_alpha_of_a_layer_without_a_rank_is_refused() -> None:
    with pytest.raises(CheckpointError, match="Nothing tells the rank of q"):
        from_alpha(16)("q", None)


def test_pattern_of_the_rank_divides_alpha() -> None:
    rule = from_peft_config(PLAIN | {"rank_pattern": {"q": 2}}, "x")
    assert (rule("q", 2), rule("k", 8)) == (8.0, 2.0)
    assert (rule("q", None), rule("k", None)) == (8.0, 2.0)
    root = from_peft_config(PLAIN | {"rank_pattern": {"q": 4}, "use_rslora": True}, "x")
    assert root("q", 4) == 8.0


def test_first_pattern_that_fits_counts() -> None:
    rule = from_peft_config(PLAIN | {"alpha_pattern": {"blocks.1.to_q": 4, "to_q": 32, "to_q|to_k": 64}}, "x")
    assert [rule(f"blocks.{module}", 8) for module in ("1.to_q", "2.to_q", "2.to_k")] == [0.5, 4.0, 8.0]


@pytest.mark.parametrize("module", ["to_q_proj", "to_q.inner", "into_q", "to_k2", "blocks.to_k.0"])
def test_pattern_is_the_end_of_a_name_at_a_dot(module: str) -> None:
    rule = from_peft_config(PLAIN | {"alpha_pattern": {"to_q|to_k": 4}}, "x")
    assert rule(module, 8) == 2.0
    assert rule("blocks.0.to_q", 8) == rule("to_k", 8) == 0.5


def test_scale_of_one_has_the_ranks_that_are_stated() -> None:
    rule = unit_of_rank({"r": 8, "rank_pattern": {"q": 2}}, "x")
    assert [rule("q", 2), rule("k", 8), rule("k", None)] == [1.0, 1.0, 1.0]
    for module, rank, said in (("q", 8, 2), ("k", 2, 8)):
        with pytest.raises(CheckpointError, match=f"has rank {rank} in the file, and x says {said}"):
            rule(module, rank)


@pytest.mark.parametrize("value", [1, 2**63 - 1])
def test_whole_number_is_one(value: int) -> None:
    assert whole_number({"n": value}, "n", "x", least=1) == value
    assert whole_number({"n": value - 1}, "n", "x") == value - 1


@pytest.mark.parametrize("value", [0, -1, True, 1.0, "1", None, 2**63, math.nan])
def test_what_is_no_whole_number_is_refused(value: Any) -> None:
    with pytest.raises(CheckpointError, match=r"no whole number n, .* at least 1"):
        whole_number({"n": value}, "n", "x", least=1)


def test_rank_of_the_file_and_of_the_configuration_are_the_same_or_refused() -> None:
    with pytest.raises(CheckpointError, match=r"q has rank 4 .* says 8"):
        from_peft_config(PLAIN, "x")("q", 4)
    with pytest.raises(CheckpointError, match="says 2"):
        from_peft_config(PLAIN | {"rank_pattern": {"q": 2}}, "x")("q", 8)


@pytest.mark.parametrize(
    "init", ["pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga", "mica", "anything", ["pissa"], {"a": 1}]
)
def test_initialisation_that_changes_the_base_is_refused(init: Any) -> None:
    with pytest.raises(CheckpointError, match="init_lora_weights"):
        from_peft_config(PLAIN | {"init_lora_weights": init}, "x")


@pytest.mark.parametrize("init", [True, False, None, "gaussian", "orthogonal", "eva"])
def test_initialisation_that_leaves_the_base_alone_is_read(init: Any) -> None:
    assert from_peft_config(PLAIN | {"init_lora_weights": init}, "x")("q", 8) == 2.0


@pytest.mark.parametrize("init", ["orthogonal", "gaussian", False])
def test_initialisations_that_are_read_do_leave_the_base_alone(init: Any) -> None:
    torch.manual_seed(0)
    net = Net()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    model = get_peft_model(net, LoraConfig(r=2, target_modules=TARGETS, init_lora_weights=init))
    after = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): tensor
        for name, tensor in model.state_dict().items()
        if "lora_" not in name
    }
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("modules_to_save", ["conv_in"]),
        ("bias", "all"),
        ("bias", "lora_only"),
        ("bias", None),
        ("use_qalora", True),
        ("alora_invocation_tokens", [1]),
        ("layer_replication", [[0, 2]]),
        ("trainable_token_indices", [3]),
        ("target_parameters", ["x"]),
        ("loftq_config", {"loftq_bits": 4}),
        ("corda_config", {"x": 1}),
        ("fan_in_fan_out", True),
        ("megatron_config", {"x": 1}),
        ("a_setting_of_next_year", 0.5),
        ("x" * 5000, "y" * 5000),
    ],
)
def test_setting_that_may_change_the_effect_is_refused_by_name(setting: str, value: Any) -> None:
    with pytest.raises(CheckpointError) as caught:
        from_peft_config(PLAIN | {setting: value}, "x")
    assert setting[:50] in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("task_type", "FEATURE_EXTRACTION"),
        ("auto_mapping", {"base_model_class": "UNet2DConditionModel"}),
        ("base_model_name_or_path", "org/base"),
        ("revision", "main"),
        ("exclude_modules", ["conv_in"]),
        ("layers_pattern", "blocks"),
        ("layers_to_transform", [1, 2]),
        ("inference_mode", True),
        ("use_dora", True),
        ("lora_bias", True),
        ("eva_config", {"rho": 2.0}),
        ("lora_dropout", 0.1),
        ("runtime_config", {"ephemeral_gpu_offload": True}),
        ("megatron_core", "megatron.core"),
        ("qalora_group_size", 32),
    ],
)
def test_setting_that_changes_no_effect_or_is_read_elsewhere_is_taken(setting: str, value: Any) -> None:
    assert from_peft_config(PLAIN | {setting: value}, "x")("q", 8) == 2.0


@pytest.mark.parametrize(
    ("setting", "value", "reason"),
    [
        ("bias", "all", "biases of the base itself were trained"),
        ("modules_to_save", ["conv_in"], "they were trained whole"),
    ],
)
def test_setting_that_trains_the_base_is_refused_with_the_reason(setting: str, value: Any, reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        from_peft_config(PLAIN | {setting: value}, "x")


@pytest.mark.parametrize("kind", ["LOHA", "LOKR", "ADALORA", "OFT", None, 3, "x" * 5000])
def test_other_type_is_refused_by_name(kind: Any) -> None:
    with pytest.raises(CheckpointError) as caught:
        from_peft_config(PLAIN | {"peft_type": kind}, "x")
    assert str(kind)[:40] in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_every_default_of_the_installed_peft_is_read() -> None:
    config, layers = pefts_own(r=4, lora_alpha=8)
    rule = from_peft_config(config, "x")
    assert all(rule(module, rank) == 2.0 for module, (rank, _) in layers.items())


@pytest.mark.parametrize("value", [None, "8", True, 0, -1, math.nan, math.inf, 10**400, [8]])
@pytest.mark.parametrize("name", ["r", "lora_alpha"])
def test_rank_or_alpha_that_is_no_number_is_refused(name: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match=f"number {name}"):
        from_peft_config(PLAIN | {name: value}, "x")


@pytest.mark.parametrize("name", ["rank_pattern", "alpha_pattern"])
@pytest.mark.parametrize(
    "patterns",
    [["q"], "q", 3, {"q": "4"}, {"q": None}, {"q": 0}, {"q": math.nan}, {"q": 10**400}]
    + [{"(": 4}, {"(?i)q": 4}, {"a{99999999999}": 4}, {"(" * 200 + ")" * 200 + "[": 4}, {"*": 4}],
)
def test_pattern_that_is_none_is_refused_before_it_is_used(name: str, patterns: Any) -> None:
    with pytest.raises(CheckpointError, match=name):
        from_peft_config(PLAIN | {name: patterns}, "x")


@pytest.mark.parametrize("pattern", [r".*\.\d+\..*to_q", "a*b*c*", "a" * 300])
def test_a_pattern_of_three_repetitions_is_read(pattern: str) -> None:
    assert from_peft_config(PLAIN | {"alpha_pattern": {pattern: 4}}, "x")("q", 8) == 2.0


@pytest.mark.parametrize("pattern", ["(a+)+b", "(a|a)*b", ".*.*.*.*x", "a" * 301])
def test_a_pattern_that_can_backtrack_without_end_is_refused(pattern: str) -> None:
    with pytest.raises(CheckpointError, match="for ever"):
        from_peft_config({"r": 4, "lora_alpha": 4, "rank_pattern": {pattern: 8}}, "adapter_config.json")
