"""Adapters of other types as the LoRA that they are: the rank, the refusal above it, the approximation on request."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from adapterline.deltas import Delta, Full, GroupedKernel, Hadamard, Kronecker, LowRank, Rows, Ungrouped, smallest_error
from adapterline.errors import ConversionError
from adapterline.families import family_named
from adapterline.layouts.exact import as_written
from adapterline.values import Adapter, ExportOptions

BaseOf = Callable[[str], Path]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def lora(rank: int = 3) -> LowRank:
    return LowRank(random(rank, 12), random(16, rank), 0.75)


def loha(rank: int = 3) -> Hadamard:
    a, b = random(rank, 12), random(16, rank)
    return Hadamard(a, b, random(rank, 12, seed=1), random(16, rank, seed=1), 0.5)


def lokr() -> Kronecker:
    return Kronecker(random(2, 3), random(4, 2), random(2, 4), random(4, 2, seed=9), 2.0)


def full() -> Full:
    return Full(random(16, 12), 1.0)


def lowered(*deltas: Delta, **options: object) -> tuple[dict[str, LowRank], list[object]]:
    adapter = Adapter("sd15", {"unet": {f"layer{n}": delta for n, delta in enumerate(deltas)}})
    components, transforms = as_written(adapter, family_named("sd15"), ExportOptions.model_validate(options))
    layers = {name: layer for name, layer in components["unet"].items() if isinstance(layer, LowRank)}
    assert len(layers) == len(deltas)
    return layers, list(transforms)


def dense(delta: Delta) -> torch.Tensor:
    return delta.apply(torch.eye(math.prod(delta.shape[1:]), dtype=torch.float64))


@pytest.mark.parametrize("make", [lora, loha, lokr, full, lambda: Rows(lokr(), ((8, 16), (0, 4)))])
def test_change_stays_what_it_was(make: Callable[[], Delta]) -> None:
    delta = make()
    layers, _ = lowered(delta)
    assert torch.allclose(dense(layers["layer0"]), dense(delta), rtol=1e-5, atol=1e-5)
    assert layers["layer0"].rank <= delta.needed_rank


def test_lora_is_left_alone() -> None:
    delta = lora()
    layers, transforms = lowered(delta, max_rank=1)
    assert layers["layer0"] is delta
    assert transforms == []


def test_rank_that_is_needed_is_the_product_of_the_ranks() -> None:
    assert lowered(loha(2))[0]["layer0"].rank == 4
    assert lowered(lokr())[0]["layer0"].rank == 4


def test_no_more_rank_is_taken_than_a_matrix_can_have() -> None:
    delta = loha(5)
    assert delta.needed_rank == lowered(delta)[0]["layer0"].rank == 12


def test_rank_above_the_limit_is_refused_with_the_rank_that_would_do() -> None:
    with pytest.raises(ConversionError) as caught:
        lowered(lora(9), loha(3), full(), lokr(), max_rank=8)
    assert "2 layers of unet need a rank of up to 12 to be LoRA exactly (layer2: full difference)" in str(caught.value)
    assert "--max-rank 12" in str(caught.value)
    assert lowered(lora(9), loha(3), full(), max_rank=12)[0]["layer2"].rank == 12


def test_rank_at_the_limit_is_exact_and_one_above_it_is_refused() -> None:
    assert lowered(loha(3), max_rank=9)[0]["layer0"].rank == 9
    with pytest.raises(ConversionError, match=r"1 layers .* up to 9"):
        lowered(loha(3), max_rank=8)


def test_whoever_asks_for_an_approximation_is_not_refused_a_rank() -> None:
    layers, _ = lowered(full(), loha(3), max_rank=1, approximate=9)
    assert {layer.rank for layer in layers.values()} == {9}


@pytest.mark.parametrize("make", [lambda: lora(4), lambda: loha(2), lokr])
def test_approximation_leaves_a_layer_of_just_that_rank_exact(make: Callable[[], Delta]) -> None:
    delta = make()
    layers, transforms = lowered(delta, approximate=4)
    exact = delta.low_rank()
    assert torch.equal(layers["layer0"].a, exact.a)
    assert torch.equal(layers["layer0"].b, exact.b)
    assert "approximate" not in {transform.kind for transform in transforms}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "make",
    [
        lambda: GroupedKernel(random(4, 1, 3, 3), 0.5, 4),
        lambda: Ungrouped(LowRank(random(2, 4, 3, 3), random(4, 2, 1, 1), 0.5), 4),
        lambda: LowRank(random(4, 4, 3, 3), random(4, 1, 1, 1), 0.5, groups=4),
    ],
)
def test_approximation_leaves_a_grouped_convolution_exact(make: Callable[[], Delta]) -> None:
    """Its B has a block for each group, which a singular value decomposition would fill."""
    delta = make()
    layers, transforms = lowered(delta, full(), approximate=1)
    assert layers["layer0"].groups == 4
    assert torch.allclose(dense(layers["layer0"]), dense(delta), rtol=1e-5, atol=1e-6)
    assert [t.modules for t in transforms if t.kind == "approximate"] == [("layer1",)]  # type: ignore[attr-defined]


def test_approximation_is_the_best_of_its_rank_and_says_its_error() -> None:
    delta = full()
    layers, (transform,) = lowered(delta, lora(2), approximate=4)
    error = float((dense(layers["layer0"]) - dense(delta)).norm() / dense(delta).norm())
    assert layers["layer0"].rank == 4
    assert error == pytest.approx(smallest_error(delta, 4), rel=1e-5)
    assert transform.errors == {"layer0": float(f"{error:.1e}")}  # type: ignore[attr-defined]
    assert transform.modules == ("layer0",)  # type: ignore[attr-defined]
    assert layers["layer1"].rank == 2, "what is within the rank is exact"


def test_approximation_keeps_the_scale_and_what_dora_and_bias_add() -> None:
    delta = Full(random(16, 12), 0.5, magnitude=torch.ones(16), bias=random(16))
    layers, _ = lowered(delta, approximate=3)
    assert layers["layer0"].scale == 0.5
    assert torch.equal(layers["layer0"].magnitude, torch.ones(16))  # type: ignore[arg-type]
    assert torch.equal(layers["layer0"].bias, delta.bias)  # type: ignore[arg-type]


def test_transforms_say_which_layers_were_rewritten() -> None:
    _, transforms = lowered(lora(), loha(2), full())
    assert {(t.kind, t.modules) for t in transforms} == {("to-lora", ("layer1",)), ("to-lora", ("layer2",))}  # type: ignore[attr-defined]
    assert any("LoHa" in t.detail and "rank 4" in t.detail for t in transforms)  # type: ignore[attr-defined]


def test_transform_of_all_layers_names_none_and_says_the_highest_rank() -> None:
    _, (transform,) = lowered(loha(2), loha(3))
    assert (transform.kind, transform.component, transform.modules) == ("to-lora", "unet", ())  # type: ignore[attr-defined]
    assert "of rank 9 at most" in transform.detail  # type: ignore[attr-defined]


def test_rows_of_a_fused_layer_are_called_what_the_layer_is() -> None:
    _, (transform,) = lowered(Rows(lokr(), ((8, 16), (0, 4))))
    assert transform.detail.startswith("LoKr written as")  # type: ignore[attr-defined]


def test_layer_without_a_bias_gets_zeros_where_others_have_one() -> None:
    layers, _ = lowered(Full(random(16, 12), 1.0, bias=random(16)), lora())
    assert torch.equal(layers["layer0"].bias, random(16))  # type: ignore[arg-type]
    assert torch.equal(layers["layer1"].bias, torch.zeros(16))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_products_of_16_bit_factors_are_exact(dtype: torch.dtype) -> None:
    pairs = [random(3, 12).to(dtype), random(16, 3).to(dtype), random(3, 12, seed=2).to(dtype), random(16, 3, seed=2)]
    delta = Hadamard(pairs[0], pairs[1], pairs[2], pairs[3].to(dtype), 1.0)
    layer = lowered(delta)[0]["layer0"]
    expected = (pairs[0].double().unsqueeze(1) * pairs[2].double().unsqueeze(0)).flatten(0, 1)
    assert torch.equal(layer.a.double(), expected)
