from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterline.deltas import Full, LowRank, power_between, probed_error, relative_error
from tests.deltas.drawn import delta, from_seed, normal


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


def test_probed_error_is_near_that_of_the_products_and_sees_any_entry() -> None:
    g = from_seed(3)
    layer = Full(normal(g, 40, 60), 1.5)
    assert probed_error(layer, layer) == 0.0
    for size in (1e-9, 1e-4, 0.3):
        noise = normal(g, 40, 60) * size
        exact = float(noise.norm() / layer.weight.norm())
        noisy = Full(layer.weight.double() + noise, 1.5)
        assert exact / 2 < probed_error(noisy, layer) < exact * 2
    one = layer.weight.clone()
    one[17, 31] += 0.01
    exact = float((one - layer.weight).norm() / layer.weight.norm())
    assert exact / 2.5 < probed_error(Full(one, 1.5), layer) < exact * 2.5


def test_probed_error_is_infinite_where_nothing_can_be_compared() -> None:
    layer, zero = Full(torch.ones(3, 4), 1.0), Full(torch.zeros(3, 4), 1.0)
    assert probed_error(zero, zero) == 0.0
    assert probed_error(layer, zero) == math.inf
    assert probed_error(zero, layer) == pytest.approx(1.0)
    assert probed_error(Full(torch.ones(4, 3), 1.0), layer) == math.inf
    assert probed_error(Full(torch.full((3, 4), math.nan), 1.0), layer) == math.inf
