from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterline.deltas import LowRank, relative_error
from adapterline.errors import ConversionError
from adapterline.families.base import read_base
from adapterline.families.skeleton import targets
from adapterline.layouts import convert
from adapterline.layouts.scale import Fold, fold, keep, torch_dtype
from adapterline.validation import tolerances
from adapterline.values import Adapter, ExportOptions, Plan

HALVES = [torch.float16, torch.bfloat16]
DTYPES = [*HALVES, torch.float32]


def delta(
    scale: float, dtype: torch.dtype = torch.float32, rank: int = 4, sigma_a: float = 0.02, sigma_b: float = 0.01
) -> LowRank:
    generator = torch.Generator().manual_seed(rank)
    a = torch.randn(rank, 320, generator=generator) * sigma_a
    b = torch.randn(320, rank, generator=generator) * sigma_b
    return LowRank(a.to(dtype), b.to(dtype), scale)


def folded(layer: LowRank, requested: str | None = None) -> LowRank:
    """The layer as it would be written: a consumer that knows no scale computes B @ A."""
    done = fold(layer, requested)
    assert done.scale == 1.0
    return layer.stored(done.shift, done.scale, torch_dtype(done.dtype))


@settings(max_examples=60, deadline=None)
@given(exponent=st.integers(-6, 6), dtype=st.sampled_from(DTYPES), rank=st.integers(1, 40))
def test_power_of_two_is_exact(exponent: int, dtype: torch.dtype, rank: int) -> None:
    layer = delta(2.0**exponent, dtype, rank, 0.5, 0.5)
    layer = LowRank(layer.a.sign() * 0.25 + layer.a, layer.b.sign() * 0.25 + layer.b, layer.scale)
    written = folded(layer)
    assert written.a.dtype == written.b.dtype == dtype
    exact = layer.b.double() @ layer.a.double() * layer.scale
    assert torch.equal(written.b.double() @ written.a.double(), exact)


@pytest.mark.parametrize("dtype", DTYPES)
def test_scale_one_leaves_every_bit(dtype: torch.dtype) -> None:
    layer = delta(1.0, dtype, sigma_b=1e-9)
    written = folded(layer)
    assert written.a is layer.a
    assert written.b is layer.b


@settings(max_examples=100, deadline=None)
@given(
    alpha=st.floats(0.01, 512),
    rank=st.sampled_from([1, 4, 16, 64, 128]),
    sigma_a=st.sampled_from([1.0, 1e-2, 1e-4]),
    sigma_b=st.sampled_from([1.0, 1e-3, 1e-4, 1e-6]),
    dtype=st.sampled_from(DTYPES),
)
def test_folded_change_is_within_the_limit_or_is_stored_in_fp32(
    alpha: float, rank: int, sigma_a: float, sigma_b: float, dtype: torch.dtype
) -> None:
    layer = delta(alpha / rank, dtype, rank, sigma_a, sigma_b)
    done, written = fold(layer, None), folded(layer)
    exact = layer.b.double() @ layer.a.double() * layer.scale
    error = torch.linalg.norm(written.b.double() @ written.a.double() - exact) / torch.linalg.norm(exact)
    assert float(error) <= (1e-6 if done.promoted else tolerances.FOLD)
    assert written.a.dtype == written.b.dtype == (torch.float32 if done.promoted else dtype)


@pytest.mark.parametrize("rank", [64, 128])
@pytest.mark.parametrize("sigma_b", [1e-3, 1e-4])
def test_fp16_with_alpha_one_does_not_sink_into_subnormals(rank: int, sigma_b: float) -> None:
    layer = delta(1 / rank, torch.float16, rank, sigma_b=sigma_b)
    into_b = LowRank(layer.a, (layer.b.double() * layer.scale).half(), 1.0)
    assert relative_error(into_b, layer) > tolerances.FOLD, "the plain way would fail here"
    assert relative_error(folded(layer), layer) <= tolerances.FOLD
    assert folded(layer).a.dtype == torch.float16, "because the power of two is split between A and B"


@pytest.mark.parametrize("scale", [2.5, 1 / 3])
def test_bf16_is_promoted_where_its_eight_bits_cannot_hold_the_scale(scale: float) -> None:
    layer = delta(scale, torch.bfloat16)
    assert fold(layer, None).promoted
    assert folded(layer).b.dtype == torch.float32
    assert relative_error(folded(layer), layer) < 1e-6
    assert not fold(delta(scale, torch.float16, sigma_b=1.0), None).promoted
    assert not fold(delta(scale, torch.float32), None).promoted


def test_overflow_is_promoted() -> None:
    layer = delta(1e6, torch.float16, sigma_a=1e3, sigma_b=1e3)
    assert fold(layer, None).promoted
    assert relative_error(folded(layer), layer) < 1e-6
    wide = delta(1.0, torch.float32, sigma_b=1e6)
    assert fold(wide, "F16").promoted
    assert relative_error(folded(wide, "F16"), wide) < 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [2.5, 1e-3, 4.0])
def test_zero_b_stays_zero(dtype: torch.dtype, scale: float) -> None:
    layer = delta(scale, dtype)
    layer = LowRank(layer.a, torch.zeros_like(layer.b), scale)
    written = folded(layer)
    assert not written.b.any()
    assert written.a.dtype == dtype


def test_bias_is_scaled_with_its_factor_and_magnitude_is_not() -> None:
    layer = delta(2.5)
    layer = LowRank(layer.a, layer.b, 2.5, magnitude=torch.rand(320), bias=torch.rand(320))
    written = folded(layer)
    assert torch.equal(written.magnitude, layer.magnitude)
    assert torch.allclose(written.bias, layer.bias * 2.5)


@pytest.mark.parametrize("requested", ["F32", "F16", "BF16"])
def test_requested_dtype_is_given_within_its_own_limit(requested: str) -> None:
    layer = delta(2.5, torch.float32, sigma_b=0.1)
    written = folded(layer, requested)
    assert written.a.dtype == written.b.dtype == torch_dtype(requested)
    assert relative_error(written, layer) <= tolerances.CAST[requested]


@pytest.mark.parametrize("requested", [None, "F16", "BF16"])
def test_kept_scale_is_left_to_the_header(requested: str | None) -> None:
    layer = delta(2.5, torch.float32, sigma_b=0.1)
    done = keep(layer, requested)
    written = layer.stored(done.shift, done.scale, torch_dtype(done.dtype))
    assert (done.scale, done.shift, done.promoted) == (2.5, 0, False)
    assert relative_error(written, layer) <= (tolerances.CAST[requested] if requested else 0.0)
    if requested is None:
        assert torch.equal(written.a, layer.a)
        assert torch.equal(written.b, layer.b)
    assert keep(delta(2.5, torch.float32, sigma_b=1e6), "F16").promoted


def test_choice_is_the_same_with_any_number_of_threads() -> None:
    layers = [
        delta(alpha / 64, dtype, 64, sigma_b=sigma)
        for alpha in (1, 5, 96)
        for dtype in DTYPES
        for sigma in (1e-2, 1e-4)
    ]
    before = torch.get_num_threads()
    choices = []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            choices.append([(fold(layer, None), folded(layer).b.view(torch.uint8).sum().item()) for layer in layers])
    finally:
        torch.set_num_threads(before)
    assert choices[0] == choices[1] == choices[2]


# --- what is said of it -----------------------------------------------------------------------------------------------


def planned(base_folder: Path, own: torch.dtype, scales: tuple[float, float], **options: str) -> tuple[Plan, list[str]]:
    """The plan for two layers of a real base, and their names."""
    base = read_base(base_folder)
    names = sorted(name for name, target in targets(base, "unet").items() if len(target.shape) == 2)[:2]
    deltas = {}
    for name, scale in zip(names, scales, strict=True):
        out, inner = targets(base, "unet")[name].shape
        deltas[name] = LowRank(torch.randn(4, inner).to(own), torch.randn(out, 4).to(own), scale)
    return convert(Adapter("sd15", {"unet": deltas}), base, ExportOptions.model_validate(options)), names


def test_choice_is_recorded(base: Callable[[str], Path]) -> None:
    plan, (first, second) = planned(base("sd15"), torch.bfloat16, (2.5, 2.0))
    said = {transform.kind: transform for transform in plan.transforms}
    assert set(said) == {"fold-scale", "store-fp32"}
    assert said["store-fp32"].modules == (first,)
    folds = [(t.detail, t.modules) for t in plan.transforms if t.kind == "fold-scale"]
    assert folds == [
        ("scale 2 folded into the factors", (second,)),
        ("scale 2.5 folded into the factors", (first,)),
    ]
    assert all(transform.component == "unet" for transform in plan.transforms)
    dtypes = {key: tensor.dtype for key, tensor in plan.files[0].tensors.items()}
    assert {dtypes[f"unet.{first}.lora_{part}.weight"] for part in "AB"} == {"F32"}
    assert {dtypes[f"unet.{second}.lora_{part}.weight"] for part in "AB"} == {"BF16"}


def test_nothing_is_recorded_where_nothing_was_done(base: Callable[[str], Path]) -> None:
    assert planned(base("sd15"), torch.bfloat16, (1.0, 1.0))[0].transforms == ()
    assert planned(base("sd15"), torch.bfloat16, (2.5, 2.5), scale="header")[0].transforms == ()
    cast = planned(base("sd15"), torch.float32, (1.0, 1.0), dtype="float16")[0].transforms
    assert [(transform.kind, transform.modules) for transform in cast] == [("cast", ())]


def test_every_layer_with_one_scale_is_said_once(base: Callable[[str], Path]) -> None:
    (said,) = planned(base("sd15"), torch.float32, (1 / 3, 1 / 3))[0].transforms
    assert (said.kind, said.modules) == ("fold-scale", ())
    assert math.isclose(float(said.detail.split()[1]), 1 / 3, rel_tol=1e-11)


def test_the_power_of_two_goes_where_it_costs_no_bit() -> None:
    # In fp16 B is just above the smallest normal number, and A far above: only A can take 2**-4 without a loss.
    layer = LowRank(torch.full((4, 8), 0.5).half(), torch.full((8, 4), 7e-5).half(), 2.0**-4)
    done = fold(layer, None)
    assert (done.shift, done.dtype) == (-4, None)
    assert relative_error(folded(layer), layer) == 0.0


def test_a_scale_that_no_float32_can_take_is_refused() -> None:
    with pytest.raises(ConversionError, match="out of the range of float32"):
        fold(delta(1e300), None)


# --- single numbers, in float16: the smallest normal one is 2**-14, the smallest of all 2**-24 ------------------------


def halves(a: list[float], b: list[float], scale: float) -> LowRank:
    """Rank 1, and every number is one of float16."""
    layer = LowRank(torch.tensor([a]).half(), torch.tensor(b)[:, None].half(), scale)
    assert layer.a.flatten().tolist() == a
    assert layer.b.flatten().tolist() == b
    return layer


def test_scale_one_leaves_what_is_subnormal_already() -> None:
    layer = halves([1.0], [2.0**-17], 1.0)
    assert fold(layer, None) == Fold(0, 1.0, None)


@pytest.mark.parametrize(
    ("a", "b", "scale", "shift"),
    [
        ([1.0], [40000.0], 2.0**4, 4),  # B would overflow
        ([40000.0], [1.0], 2.0**4, 0),  # A would overflow
        ([1.0], [2.0**-14], 2.0**-4, -4),  # B would sink
        ([2.0**-14], [1.0], 2.0**-4, 0),  # A would sink
        ([2.0**-12], [2.0**-12], 2.0**-4, -2),  # each can take half of it
        ([2.0**-14] * 3, [1.0, 2.0**-14], 2.0**-4, 0),  # one sinks with B, three with A
        ([1.0, 2.0**-14], [2.0**-14] * 3, 2.0**-4, -4),  # and the other way round
        ([1.0], [1.0, 2.0**-17], 4.0, 0),  # what is subnormal already costs no bit more
        ([1.0], [1.0, 0.0], 2.0**-4, 0),  # nor does a zero
    ],
)
def test_the_power_of_two_is_split_where_the_fewest_numbers_leave_the_normal_range(
    a: list[float], b: list[float], scale: float, shift: int
) -> None:
    layer = halves(a, b, scale)
    assert fold(layer, None) == Fold(shift, 1.0, None)
    assert relative_error(folded(layer), layer) == 0.0


def test_a_moves_no_further_than_it_helps() -> None:
    # 1e-12 is lost in float16 whatever is done.
    layer = LowRank(torch.ones(1, 4), torch.tensor([[1.0], [1e-12]]), 2.0**-4)
    assert fold(layer, "F16") == Fold(0, 1.0, "F16")


def test_factor_that_sinks_as_a_whole_is_promoted_though_no_bit_is_lost() -> None:
    # A processor may flush subnormal numbers to zero.
    assert fold(halves([2.0**-13], [2.0**-13], 2.0**-10), None) == Fold(0, 1.0, "F32", promoted=True)
    low = LowRank(torch.ones(1, 4), torch.full((4, 1), 2.0**-17), 2.5)
    assert keep(low, "F16") == Fold(0, 2.5, "F32", promoted=True)
    high = LowRank(torch.full((1, 4), 2.0**-17), torch.ones(4, 1), 2.5)
    assert keep(high, "F16") == Fold(0, 2.5, "F32", promoted=True)


def test_bias_that_overflows_or_sinks_is_promoted() -> None:
    layer = halves([1.0], [1.0], 2.0)
    assert fold(replace(layer, bias=torch.tensor([40000.0]).half()), None).promoted
    assert fold(replace(layer, scale=0.5, bias=torch.tensor([2.0**-14]).half()), None).promoted
    assert not fold(replace(layer, scale=0.5, bias=torch.tensor([0.0]).half()), None).promoted
    assert not fold(replace(layer, scale=0.5, bias=torch.tensor([2.0**-13]).half()), None).promoted


def test_what_is_not_finite_already_is_not_blamed_on_the_scale() -> None:
    """Whoever proves the file finds it."""
    layer = halves([1.0], [1.0, 1.0], 2.0)
    assert fold(replace(layer, b=layer.b * torch.inf), None) == Fold(0, 1.0, "F32", promoted=True)


def test_promoted_factors_keep_a() -> None:
    layer = LowRank(torch.full((1, 4), 2.0**-10).half(), torch.full((4, 1), 2.0**-14).half(), 2.0**-12 / 3)
    done = fold(layer, None)
    assert done == Fold(0, 1.0, "F32", promoted=True)
    assert torch.equal(folded(layer).a, layer.a.float())


def test_kept_scale_is_promoted_by_the_limit_of_the_cast() -> None:
    """Most numbers of B lie 0.4 of a step beside the next one, in the middle of the subnormal range."""
    b = torch.full((10000, 1), 100.4 * 2.0**-24)
    b[0] = 2.0**-14
    layer = LowRank(torch.ones(1, 8), b, 2.5)
    error = relative_error(layer.stored(0, 2.5, torch.float16), layer)
    assert tolerances.CAST["F16"] < error < 10 * tolerances.CAST["F16"]
    assert keep(layer, "F16") == Fold(0, 2.5, "F32", promoted=True)
    assert keep(replace(layer, b=torch.full((10000, 1), 2.0**-14)), "F16") == Fold(0, 2.5, "F16")
