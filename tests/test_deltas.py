from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterline.deltas import LowRank, power_between, relative_error, times
from adapterline.errors import ConversionError

SHAPES = [((4, 6), (5, 4)), ((4, 6, 3, 3), (5, 4, 1, 1)), ((2, 3, 3), (7, 2, 1))]


def delta(seed: int = 0, scale: float = 1.5, shapes: tuple[tuple[int, ...], tuple[int, ...]] = SHAPES[0]) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    return LowRank(torch.randn(shapes[0], generator=generator), torch.randn(shapes[1], generator=generator), scale)


@pytest.mark.parametrize("shapes", SHAPES)
def test_apply_is_the_scaled_product_of_the_factors(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    layer = delta(shapes=shapes)
    out, *inner = layer.shape
    weight = 1.5 * layer.b.double().flatten(1) @ layer.a.double().flatten(1)
    assert weight.shape == (out, math.prod(inner))
    assert torch.allclose(layer.apply(torch.eye(math.prod(inner))), weight)
    assert layer.rank == layer.needed_rank == shapes[0][0]


def test_convolution_is_what_two_convolutions_compute() -> None:
    layer = delta(shapes=SHAPES[1])
    image = torch.randn(1, 6, 9, 9, dtype=torch.float64)
    twice = torch.conv2d(torch.conv2d(image, layer.a.double(), padding=1), layer.b.double()) * layer.scale
    unfolded = torch.nn.functional.unfold(image, 3, padding=1)[0]
    assert torch.allclose(layer.apply(unfolded), twice[0].flatten(1))


def test_low_rank_is_itself_or_refused() -> None:
    assert delta().low_rank() is not None
    assert delta().low_rank(4).rank == 4
    with pytest.raises(ConversionError, match="4"):
        delta().low_rank(3)


@settings(max_examples=80, deadline=None)
@given(shift=st.integers(-12, 12), scale=st.sampled_from([1.0, 0.5, 4.0, 1.5, 1 / 3]), left=st.sampled_from([1.0, 1.5]))
def test_stored_is_the_same_change(shift: int, scale: float, left: float) -> None:
    layer = delta(scale=scale)
    layer = LowRank(layer.a, layer.b, scale, torch.rand(5), torch.rand(5))
    stored = layer.stored(shift, left)
    assert stored.scale == left
    assert stored.a.dtype == torch.float32
    assert torch.equal(stored.a, layer.a * 2.0**shift)
    assert torch.equal(stored.magnitude, layer.magnitude)
    assert torch.allclose(stored.bias * left, layer.bias * scale)
    assert relative_error(stored, layer) < 1e-7


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1000), size=st.sampled_from([0.0, 1e-12, 1e-6, 1e-3, 0.5]), shift=st.integers(-20, 20))
def test_relative_error_is_that_of_the_products(seed: int, size: float, shift: int) -> None:
    """Against the products themselves, exactly enough: 1e-12 is lost to neither cancellation nor rounding."""
    wanted = delta(seed)
    a, b = wanted.a.double(), wanted.b.double()
    wrong = LowRank(a * 2.0**shift, (b + size * torch.randn_like(b)) * 2.0**-shift * 1.5, 1.0)
    exact = torch.linalg.norm((wrong.b * 2.0**shift - b * 1.5) @ a) / torch.linalg.norm(b @ a * 1.5)
    found = relative_error(wrong, LowRank(a, b, 1.5))
    assert found == pytest.approx(float(exact), rel=1e-6, abs=1e-15)


def test_relative_error_sees_what_is_not_there() -> None:
    layer = delta()
    zero = LowRank(layer.a, torch.zeros_like(layer.b), 1.0)
    assert relative_error(zero, zero) == 0.0
    assert relative_error(layer, zero) == math.inf
    assert relative_error(zero, layer) == pytest.approx(1.0)
    assert relative_error(LowRank(layer.a, layer.b, 3.0), layer) == pytest.approx(1.0)
    nan = LowRank(layer.a, torch.full_like(layer.b, math.nan), 1.5)
    assert relative_error(nan, layer) == math.inf
    infinite = LowRank(layer.a, torch.full_like(layer.b, math.inf), 1.5)
    assert relative_error(infinite, layer) == math.inf
    assert relative_error(LowRank(layer.a[:2], layer.b[:, :2], 1.5), layer) == math.inf


def test_power_between_is_read_off_the_largest_element() -> None:
    tensor = torch.randn(5, 5)
    assert power_between(tensor, tensor * 8) == 3
    assert power_between(tensor, tensor * 0.25) == -2
    assert power_between(torch.zeros(3), torch.zeros(3)) == 0
    assert power_between(torch.ones(2), torch.ones(3)) == 0
    assert power_between(torch.ones(0), torch.ones(0)) == 0


def test_times_rounds_once() -> None:
    tensor = torch.tensor([1.0009765625, 3.0], dtype=torch.float16)
    assert times(tensor, 1.0) is tensor
    assert times(tensor, 1.0, torch.float32).dtype == torch.float32
    # In two roundings, to fp16 and then to bf16, the first would be a tie and go the other way.
    exact = (tensor.double() * (1 / 3)).to(torch.bfloat16)
    assert torch.equal(times(tensor, 1 / 3, torch.bfloat16), exact)
