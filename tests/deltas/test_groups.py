from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterline.deltas import Delta, GroupedKernel, LowRank, Ungrouped, grouped, probed_error, spread
from tests.deltas.drawn import KERNELS, SEEDS, SIZES, from_seed, normal


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, width=SIZES, rank=SIZES, groups=st.integers(2, 4), each=st.integers(1, 4), kernel=KERNELS)
def test_grouped_is_the_same_change_with_a_grouped_b(
    seed: int, width: int, rank: int, groups: int, each: int, kernel: tuple[int, ...]
) -> None:
    g = from_seed(seed)
    ones = [1] * len(kernel)
    layer = LowRank(normal(g, rank, width, *kernel), normal(g, groups * each, rank, *ones), 0.75)
    found = grouped(layer, groups)
    assert found.groups == groups
    assert found.rank == found.b.shape[1] * groups
    assert found.rank <= groups * min(rank, each)
    assert probed_error(found, layer) < 1e-6
    eye = torch.eye(math.prod(layer.shape[1:]))
    assert torch.allclose(found.apply(eye), layer.apply(eye), rtol=1e-5, atol=1e-5)


def test_a_grouped_b_is_what_two_convolutions_compute() -> None:
    g = from_seed(1)
    layer = LowRank(normal(g, 6, 4, 3, 3), normal(g, 9, 2, 1, 1), 0.75, groups=3)
    image = torch.randn(1, 4, 8, 8, dtype=torch.float64)
    inner = torch.conv2d(image, layer.a.double(), padding=1)
    twice = torch.conv2d(inner, layer.b.double(), groups=3) * 0.75
    assert torch.allclose(layer.apply(torch.nn.functional.unfold(image, 3, padding=1)[0]), twice[0].flatten(1))
    with pytest.raises(ValueError, match="groups"):
        grouped(layer, 9)


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, groups=st.integers(1, 4), each=st.integers(1, 3), width=st.integers(1, 3))
def test_spread_is_the_grouped_convolution(seed: int, groups: int, each: int, width: int) -> None:
    kernel = normal(from_seed(seed), groups * each, width, 3, 3)
    a, b = spread(kernel, groups)
    layer = LowRank(a, b.reshape(*b.shape, 1, 1), 1.0, groups=groups)
    image = torch.randn(1, groups * width, 6, 6, dtype=torch.float64)
    wanted = torch.conv2d(image, kernel.double(), padding=1, groups=groups)[0].flatten(1)
    assert torch.allclose(layer.apply(torch.nn.functional.unfold(image, 3, padding=1)[0]), wanted)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, rank=SIZES, groups=st.integers(2, 4), each=st.integers(1, 4), kernel=KERNELS)
def test_a_grouped_layer_needs_the_rank_that_its_shapes_tell(
    seed: int, rank: int, groups: int, each: int, kernel: tuple[int, ...]
) -> None:
    g = from_seed(seed)
    out, width, ones = groups * each, groups * 2, [1] * len(kernel)
    layers: list[Delta] = [
        Ungrouped(LowRank(normal(g, rank, width, *kernel), normal(g, out, rank, *ones), 0.75), groups),
        GroupedKernel(normal(g, out, 2, *kernel), 0.75, groups),
    ]
    for layer in layers:
        exact = layer.low_rank()
        assert (exact.rank, exact.groups) == (layer.needed_rank, groups)
        assert exact.shape == layer.shape == (out, width, *kernel)
        assert probed_error(exact, layer) < 1e-6
