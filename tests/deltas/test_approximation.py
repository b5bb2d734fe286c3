from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterline.deltas import Full, approximate, smallest_error
from tests.deltas.drawn import SEEDS, from_seed, normal


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, out=st.integers(2, 8), width=st.integers(2, 8), rank=st.integers(1, 8))
def test_approximate_is_the_closest_of_its_rank(seed: int, out: int, width: int, rank: int) -> None:
    weight = normal(from_seed(seed), out, width)
    layer = Full(weight, 0.75)
    near, error = approximate(layer, rank)
    singular = torch.linalg.svdvals(weight.double())
    smallest = float(singular[rank:].norm() / singular.norm())
    assert near.rank == min(rank, out, width)
    assert error == pytest.approx(smallest, abs=1e-12)
    assert smallest_error(layer, rank) == pytest.approx(smallest, abs=1e-7)
    exact = weight.double() * 0.75
    assert float((near.apply(torch.eye(width)) - exact).norm() / exact.norm()) == pytest.approx(smallest, abs=1e-6)
