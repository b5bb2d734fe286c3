"""The other forms, against dense arithmetic."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterline.deltas import (
    Delta,
    Full,
    Hadamard,
    Kronecker,
    LowRank,
    probed_error,
    reshaped,
    take_rows,
    tucker,
    whole,
)
from tests.deltas.drawn import KERNELS, SEEDS, SIZES, from_seed, normal


def check_all_forms(layer: Delta, weight: torch.Tensor) -> None:
    """`weight` [out, in, *kernel] is what `apply` and `low_rank` compute, with the rank that is claimed."""
    matrix = weight.double().flatten(1)
    assert layer.shape == tuple(weight.shape)
    assert torch.allclose(layer.apply(torch.eye(matrix.shape[1])), matrix, rtol=1e-12, atol=1e-12)
    exact = layer.low_rank()
    assert exact.rank == layer.needed_rank
    assert exact.rank <= min(matrix.shape)
    assert exact.shape == layer.shape
    b, a = exact.matrices()
    assert torch.allclose(b @ a * exact.scale, matrix, rtol=1e-5, atol=1e-5 * float(matrix.abs().max()))
    assert probed_error(exact, layer) < 1e-6


@settings(max_examples=60, deadline=None)
@given(
    seed=SEEDS,
    out=st.integers(1, 9),
    width=st.integers(1, 9),
    kernel=KERNELS,
    r1=st.integers(1, 3),
    r2=st.integers(1, 3),
    transposed=st.booleans(),
)
def test_hadamard_is_the_product_of_two_products(
    seed: int, out: int, width: int, kernel: tuple[int, ...], r1: int, r2: int, transposed: bool
) -> None:
    g = from_seed(seed)
    a1, a2 = normal(g, r1, width, *kernel), normal(g, r2, width, *kernel)
    b1, b2 = (normal(g, r, out).T if transposed else normal(g, out, r) for r in (r1, r2))
    first, second = torch.tensordot(b1.double(), a1.double(), 1), torch.tensordot(b2.double(), a2.double(), 1)
    check_all_forms(Hadamard(a1, b1, a2, b2, 0.75), first * second * 0.75)


@settings(max_examples=80, deadline=None)
@given(seed=SEEDS, p=SIZES, c=SIZES, q=SIZES, d=SIZES, kernel=KERNELS, r1=SIZES, r2=SIZES, transposed=st.booleans())
def test_kronecker_is_the_product_of_every_two_entries(
    seed: int, p: int, c: int, q: int, d: int, kernel: tuple[int, ...], r1: int, r2: int, transposed: bool
) -> None:
    g = from_seed(seed)
    a1, a2 = normal(g, r1, c), normal(g, r2, d, *kernel)
    b1, b2 = (normal(g, r, o).T if transposed else normal(g, o, r) for r, o in ((r1, p), (r2, q)))
    first, second = b1.double() @ a1.double(), torch.tensordot(b2.double(), a2.double(), 1)
    entries = torch.einsum("pc,qd...->pqcd...", first, second).reshape(p * q, c * d, *kernel)
    check_all_forms(Kronecker(a1, b1, a2, b2, 0.75), entries * 0.75)


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, out=SIZES, width=SIZES, kernel=KERNELS)
def test_full_and_whole_are_the_weight_itself(seed: int, out: int, width: int, kernel: tuple[int, ...]) -> None:
    weight = normal(from_seed(seed), out, width, *kernel)
    check_all_forms(Full(weight, 0.75), weight.double() * 0.75)
    a, b = whole(weight)
    assert torch.equal(torch.tensordot(b, a, 1), weight)
    assert a.shape[0] == min(out, weight.flatten(1).shape[1])


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, data=st.data())
def test_rows_are_those_rows_in_that_order(seed: int, data: st.DataObject) -> None:
    g = from_seed(seed)
    cuts = st.tuples(st.integers(0, 5), st.integers(1, 6)).map(lambda pair: (pair[0], min(pair[0] + pair[1], 6)))
    ranges = data.draw(st.lists(cuts, min_size=1, max_size=3))
    layers: list[LowRank | Hadamard | Full] = [
        LowRank(normal(g, 2, 4), normal(g, 6, 2), 0.75, normal(g, 6, 1), normal(g, 6)),
        Hadamard(normal(g, 2, 4), normal(g, 6, 2), normal(g, 2, 4), normal(g, 6, 2), 0.5, normal(g, 6), normal(g, 6)),
        Full(normal(g, 6, 4), 0.75, normal(g, 6), normal(g, 6)),
    ]
    for layer in layers:
        chosen = [row for start, stop in ranges for row in range(start, stop)]
        rows = take_rows(layer, ranges)
        weight = layer.apply(torch.eye(4))[chosen]
        assert rows.shape == (len(chosen), 4)
        assert torch.equal(rows.apply(torch.eye(4)), weight)
        assert torch.allclose(rows.low_rank().apply(torch.eye(4)), weight, rtol=1e-5, atol=1e-5)
        assert torch.equal(rows.magnitude, layer.magnitude.flatten()[chosen])
        assert torch.equal(rows.bias, layer.bias[chosen])


def test_rows_of_factors_that_were_put_side_by_side_are_the_factors_again() -> None:
    g = from_seed(0)
    a, b = normal(g, 6, 5), [normal(g, 4, 3), normal(g, 7, 3)]
    fused = LowRank(a, torch.block_diag(*b), 1.5)
    first, second = take_rows(fused, [(0, 4)]), take_rows(fused, [(4, 11)])
    assert isinstance(first, LowRank)
    assert isinstance(second, LowRank)
    assert torch.equal(first.a, a[:3])
    assert torch.equal(second.a, a[3:])
    assert torch.equal(first.b, b[0])
    assert torch.equal(second.b, b[1])


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, out=SIZES, width=SIZES, kernel=KERNELS, i=SIZES, j=SIZES)
def test_tucker_is_the_product_of_its_three_parts(
    seed: int, out: int, width: int, kernel: tuple[int, ...], i: int, j: int
) -> None:
    g = from_seed(seed)
    core, up, down = normal(g, i, j, *kernel), normal(g, out, i), normal(g, j, width)
    a, b = tucker(core, up, down)
    weight = torch.einsum("oi,ij...,jw->ow...", up.double(), core.double(), down.double())
    assert torch.allclose(torch.tensordot(b, a, 1), weight, rtol=1e-12, atol=1e-12)
    for wrong in (core[:0], torch.cat([core, core]), torch.cat([core, core], dim=1)):
        with pytest.raises(ValueError, match="ranks"):
            tucker(wrong, up, down)


def test_reshaped_is_the_same_change_with_its_kernel() -> None:
    g = from_seed(2)
    flat: list[Delta] = [
        LowRank(normal(g, 2, 36), normal(g, 5, 2), 0.5),
        Hadamard(normal(g, 2, 36), normal(g, 5, 2), normal(g, 2, 36), normal(g, 5, 2), 0.5),
        Kronecker(normal(g, 1, 2), normal(g, 3, 1), normal(g, 2, 18), normal(g, 2, 2), 0.5),
        Full(normal(g, 5, 36), 0.5),
    ]
    for layer in flat:
        shaped = reshaped(layer, (4, 3, 3))
        assert shaped.shape == (layer.shape[0], 4, 3, 3)
        assert torch.equal(shaped.apply(torch.eye(36)), layer.apply(torch.eye(36)))
        assert probed_error(shaped.low_rank(), shaped) < 1e-6
        assert reshaped(layer, (5, 3, 3)) is layer
        assert reshaped(shaped, (4, 3, 3)) is shaped
