"""Each check of what was loaded by itself: what it lets pass and what it finds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft.tuners.tuners_utils import BaseTunerLayer

from adapterline.deltas import Kronecker, LowRank
from adapterline.families.base import Base, read_base
from adapterline.families.skeleton import targets
from adapterline.validation.consumers.base import Loaded, LoadedLayer
from adapterline.validation.consumers.diffusers import ADAPTER_NAME, load_into_skeleton
from adapterline.validation.findings import Findings
from adapterline.validation.structure import check_loaded
from adapterline.values import Check
from tests.bases import peft_adapter
from tests.families.tiny import CASES
from tests.line import Exported, run_line

BaseOf = Callable[[str], Path]
QUERY = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "conv_in"


@pytest.fixture
def sd15(base: BaseOf) -> Base:
    return read_base(base("sd15"))


def layer(base: Base, module: str, component: str = "unet", **changes: Any) -> LoadedLayer:
    out, *tail = targets(base, component)[module].change
    delta = LowRank(torch.ones(2, *tail), torch.ones(out, 2, *[1] * (len(tail) - 1)), 1.0)
    return with_delta(replace(LoadedLayer(delta, True, False, ()), **changes))


def with_delta(layer: LoadedLayer, **changes: Any) -> LoadedLayer:
    """The same with parts of its change replaced, and with the tensors that peft then has."""
    delta = replace(layer.delta, **changes)
    assert isinstance(delta, LowRank)
    parts = (delta.a, delta.b, delta.magnitude, delta.bias)
    return replace(layer, delta=delta, parts=tuple(part for part in parts if part is not None))


def as_loaded(components: Mapping[str, Mapping[str, LoadedLayer]], written: Mapping[str, int] | None = None) -> Loaded:
    """With every tensor counted; `written`: what the files have, if that is not the same."""
    arrived = {name: sum(len(layer.parts) for layer in layers.values()) for name, layers in components.items()}
    return Loaded(components, arrived if written is None else written, arrived)


def failures(
    base: Base, components: Mapping[str, Mapping[str, LoadedLayer]], written: Mapping[str, int] | None = None
) -> list[Check]:
    findings = Findings()
    check_loaded(findings, as_loaded(components, written), base)
    return [check for check in findings.checks if not check.passed]


def one_failure(base: Base, components: Mapping[str, Mapping[str, LoadedLayer]], **more: Any) -> Check:
    (check,) = failures(base, components, **more)
    return check


def test_layers_of_the_model_pass(sd15: Base) -> None:
    findings = Findings()
    layers = {QUERY: layer(sd15, QUERY), CONV: layer(sd15, CONV)}
    check_loaded(findings, as_loaded({"unet": layers, "text_encoder": {}}, {"unet": 4}), sd15)
    assert all(check.passed for check in findings.checks)
    assert [check.name for check in findings.checks] == [
        "loads",
        "all tensors arrive",
        "has data (not on the meta device)",
        "finite",
        "active after loading",
        "shape of the model",
        "alive (some B is not zero)",
    ]
    assert {check.component for check in findings.checks} == {None, "unet"}


def test_what_the_loader_raised_is_the_only_finding(sd15: Base) -> None:
    findings = Findings()
    check_loaded(findings, Loaded(error="ValueError: Invalid LoRA checkpoint"), sd15)
    (check,) = findings.checks
    assert (check.name, check.passed, check.observed) == ("loads", False, "ValueError: Invalid LoRA checkpoint")


# --- all tensors arrive -----------------------------------------------------------------------------------------------


def test_tensors_that_did_not_arrive_are_counted(sd15: Base) -> None:
    check = one_failure(sd15, {"unet": {QUERY: layer(sd15, QUERY)}}, written={"unet": 6})
    assert (check.name, check.observed, check.limit, check.detail) == (
        "all tensors arrive",
        "2 of 6",
        "6",
        "unet: 2 of 6",
    )


def test_tensors_that_arrived_in_another_component_are_found(sd15: Base) -> None:
    """As many as were written, in all."""
    text = next(iter(targets(sd15, "text_encoder")))
    both = {"unet": {QUERY: layer(sd15, QUERY)}, "text_encoder": {text: layer(sd15, text, "text_encoder")}}
    assert failures(sd15, both, {"unet": 2, "text_encoder": 2}) == []
    check = one_failure(sd15, both, written={"unet": 4, "text_encoder": 0})
    assert (check.name, check.observed) == ("all tensors arrive", "4 of 4")
    assert check.detail == "text_encoder: 2 of 0, unet: 2 of 4"


def test_layers_are_compared_where_tensors_are_not_counted_one_to_one(sd15: Base) -> None:
    """As the keys of other layouts have them: with alphas, or fused."""

    def failed(meant: Mapping[str, set[str]]) -> list[str]:
        findings = Findings()
        loaded = as_loaded({"unet": {QUERY: layer(sd15, QUERY)}}, {"lora_unet_mid_block": 3})
        check_loaded(findings, loaded, sd15, lambda: meant)
        return [check.name for check in findings.checks if not check.passed]

    assert failed({"unet": {QUERY}}) == []
    for other in ({"unet": {QUERY, CONV}}, {"unet": {CONV}}, {"text_encoder": {QUERY}}, {}):
        assert failed(other) == ["all layers arrive"]


# --- one layer --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["a", "b", "magnitude", "bias"])
def test_any_tensor_on_the_meta_device_is_found(sd15: Base, part: str) -> None:
    good = layer(sd15, QUERY)
    meta = with_delta(good, **{part: torch.ones(32, 2, device="meta")})
    found = failures(sd15, {"unet": {CONV: layer(sd15, CONV), QUERY: replace(meta, delta=good.delta)}})
    assert [(check.name, check.modules) for check in found] == [("has data (not on the meta device)", (QUERY,))]


@pytest.mark.parametrize("part", ["a", "b", "magnitude", "bias"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_any_number_that_is_none_is_found(sd15: Base, part: str, value: float) -> None:
    good = layer(sd15, QUERY)
    out = good.delta.shape[0]
    good = with_delta(good, magnitude=torch.ones(out), bias=torch.ones(out))
    assert failures(sd15, {"unet": {QUERY: good}}) == []
    tensor = getattr(good.delta, part).clone()
    tensor.view(-1)[1] = value
    check = one_failure(sd15, {"unet": {CONV: layer(sd15, CONV), QUERY: with_delta(good, **{part: tensor})}})
    assert (check.name, check.modules, check.observed) == ("finite", (QUERY,), "1 of 2")


def test_layer_that_a_forward_would_skip_is_found(sd15: Base) -> None:
    check = one_failure(sd15, {"unet": {CONV: layer(sd15, CONV), QUERY: layer(sd15, QUERY, active=False)}})
    assert (check.name, check.modules) == ("active after loading", (QUERY,))


def test_layer_of_another_shape_is_found(sd15: Base) -> None:
    good = layer(sd15, QUERY)
    assert isinstance(good.delta, LowRank)
    own = list(good.delta.shape)
    for changes, shape in (
        ({"a": torch.ones(2, own[1] - 1)}, [own[0], own[1] - 1]),
        ({"b": torch.ones(own[0] + 1, 2)}, [own[0] + 1, own[1]]),
        ({"a": torch.ones(2, own[1], 1, 1), "b": torch.ones(own[0], 2, 1, 1)}, [*own, 1, 1]),
    ):
        check = one_failure(sd15, {"unet": {CONV: layer(sd15, CONV), QUERY: with_delta(good, **changes)}})
        assert (check.name, check.modules) == ("shape of the model", (QUERY,))
        assert check.detail == f"{QUERY}: is {shape}, in the model {tuple(own)}"


def test_layer_that_the_model_does_not_have_is_found(sd15: Base) -> None:
    check = one_failure(sd15, {"unet": {CONV: layer(sd15, CONV), "another": layer(sd15, QUERY)}})
    assert (check.name, check.modules) == ("shape of the model", ("another",))
    assert check.detail.endswith("in the model not there")


def test_grouped_convolution_is_compared_with_all_its_inputs(tmp_path: Path) -> None:
    base = read_base(CASES["sana"].write(tmp_path))
    module = "transformer_blocks.0.ff.conv_depth"
    channels = targets(base, "transformer")[module].shape[0]
    good = layer(base, module, "transformer")
    assert good.delta.shape == (channels, channels, 3, 3)
    assert failures(base, {"transformer": {module: good}}) == []
    own = with_delta(good, a=torch.ones(2, 1, 3, 3))
    assert one_failure(base, {"transformer": {module: own}}).name == "shape of the model"


# --- alive ------------------------------------------------------------------------------------------------------------


def test_component_is_alive_while_one_b_is_not_zero(sd15: Base) -> None:
    alive, dead = layer(sd15, CONV), layer(sd15, QUERY)
    assert isinstance(dead.delta, LowRank)
    dead = with_delta(dead, b=torch.zeros_like(dead.delta.b))
    assert failures(sd15, {"unet": {CONV: alive, QUERY: dead}}) == []
    check = one_failure(sd15, {"unet": {QUERY: dead}})
    assert (check.name, check.component, check.observed) == ("alive (some B is not zero)", "unet", "0 of 1")


def test_layer_is_alive_by_its_b_alone(sd15: Base) -> None:
    """A is random from the start: what tells that something was trained is B."""
    good = layer(sd15, QUERY)
    assert isinstance(good.delta, LowRank)
    assert failures(sd15, {"unet": {QUERY: with_delta(good, a=torch.zeros_like(good.delta.a))}}) == []


@pytest.mark.parametrize("zero", range(4))
def test_lokr_is_alive_if_none_of_its_factors_is_zero(sd15: Base, zero: int) -> None:
    out, inner = targets(sd15, "unet")[QUERY].shape
    factors = [torch.ones(2, 2), torch.ones(2, 2), torch.ones(2, inner // 2), torch.ones(out // 2, 2)]

    def lokr() -> LoadedLayer:
        return LoadedLayer(Kronecker(*factors, 1.0), True, False, tuple(factors))

    assert failures(sd15, {"unet": {QUERY: lokr()}}) == []
    factors[zero] = torch.zeros_like(factors[zero])
    assert one_failure(sd15, {"unet": {QUERY: lokr()}}).name == "alive (some B is not zero)"


# --- what peft says of a layer ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["factors", "magnitude", "bias", "meta"])
def test_only_a_layer_of_zeros_is_padding(sd15: Base, part: str) -> None:
    zero = layer(sd15, QUERY)
    assert isinstance(zero.delta, LowRank)
    zero = with_delta(zero, a=torch.zeros_like(zero.delta.a), b=torch.zeros_like(zero.delta.b))
    assert zero.is_zero
    a, b = torch.ones(2, 32), torch.ones(32, 2)
    other: dict[str, dict[str, torch.Tensor]] = {
        "factors": {"a": a, "b": b},
        "magnitude": {"magnitude": torch.ones(32)},
        "bias": {"bias": torch.ones(32)},
        "meta": {"a": torch.zeros(2, 32, device="meta")},
    }
    assert not with_delta(zero, **other[part]).is_zero
    assert with_delta(zero, a=a).is_zero, "an A alone changes nothing"
    made_up = with_delta(zero, a=a, magnitude=torch.zeros(32), bias=torch.zeros(32))
    assert made_up.is_zero, "as a loader makes them for a header that names a layer which the file lacks"


def disable(pipeline: Any) -> None:
    pipeline.disable_lora()


def merge(pipeline: Any) -> None:
    # Really merging writes into the base's weights, which a skeleton does not have.
    for module in pipeline.unet.modules():
        if isinstance(module, BaseTunerLayer):
            module.merged_adapters.append(ADAPTER_NAME)


def activate_another(pipeline: Any) -> None:
    (config,) = pipeline.unet.peft_config.values()
    pipeline.unet.add_adapter(config, "another")


@pytest.fixture(scope="module")
def exported(base: BaseOf, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("exported")
    return run_line(peft_adapter(base("sd15"), "unet", folder / "peft", 2, 4, ["to_q"]).folder, base("sd15"), folder)


@pytest.mark.parametrize("after", [None, disable, merge, activate_another])
@pytest.mark.filterwarnings("ignore:Already found a .peft_config.:UserWarning")
def test_layer_is_active_if_a_forward_would_use_it(
    exported: Exported, monkeypatch: pytest.MonkeyPatch, after: Callable[[Any], None] | None
) -> None:
    original = StableDiffusionPipeline.load_lora_weights

    def load(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if after:
            after(self)

    monkeypatch.setattr(StableDiffusionPipeline, "load_lora_weights", load)
    loaded = load_into_skeleton(exported.folder, exported.bundle.loads, exported.base, ("unet",), {})
    assert not loaded.error
    assert {layer.active for layer in loaded.components["unet"].values()} == {after is None}
    failed = {check.name for check in failures(exported.base, loaded.components)}
    assert failed == (set() if after is None else {"active after loading"})
