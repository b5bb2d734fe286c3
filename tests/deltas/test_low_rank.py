from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterline.deltas import LowRank, relative_error, times
from tests.deltas.drawn import SHAPES, delta


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


def test_low_rank_of_a_low_rank_is_itself() -> None:
    layer = delta()
    assert layer.low_rank() is layer
    assert (layer.needed_rank, layer.shape, layer.dtype) == (4, (5, 6), "F32")


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


def test_times_rounds_once() -> None:
    tensor = torch.tensor([1.0009765625, 3.0], dtype=torch.float16)
    assert times(tensor, 1.0) is tensor
    assert times(tensor, 1.0, torch.float32).dtype == torch.float32
    # In two roundings, to fp16 and then to bf16, the first would be a tie and go the other way.
    exact = (tensor.double() * (1 / 3)).to(torch.bfloat16)
    assert torch.equal(times(tensor, 1 / 3, torch.bfloat16), exact)
