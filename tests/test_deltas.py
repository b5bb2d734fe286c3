from __future__ import annotations

import math

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
    approximate,
    grouped,
    power_between,
    probed_error,
    relative_error,
    reshaped,
    smallest_error,
    spread,
    take_rows,
    times,
    tucker,
    whole,
)

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


# --- the other forms, against dense arithmetic ------------------------------------------------------------------------

KERNELS = st.sampled_from([(), (3,), (3, 3), (1, 2, 2)])
SIZES = st.integers(1, 5)
SEEDS = st.integers(0, 10**6)


def normal(generator: torch.Generator, *shape: int) -> torch.Tensor:
    """float32, as trainers store it."""
    return torch.randn(shape, generator=generator)


def from_seed(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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


# --- approximations, and errors of changes without common factors -----------------------------------------------------


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
