"""Norms and cosines from the factors are those of the whole weights, whatever the form."""

from __future__ import annotations

import math
import time

import pytest
import torch

from adapterline.deltas import Delta, Full, Hadamard, Kronecker, LowRank
from adapterline.lineage.drift import drift
from adapterline.values import Adapter

OUT, IN = 12, 8


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def lora(seed: int, rank: int = 3, scale: float = 1.5, kernel: tuple[int, ...] = ()) -> LowRank:
    g = drawn(seed)
    ones = [1] * len(kernel)
    return LowRank(torch.randn(rank, IN, *kernel, generator=g), torch.randn(OUT, rank, *ones, generator=g), scale)


def forms(seed: int) -> dict[str, Delta]:
    g = drawn(seed)

    def r(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g)

    return {
        "lora": lora(seed),
        "loha": Hadamard(a1=r(2, IN), b1=r(OUT, 2), a2=r(3, IN), b2=r(OUT, 3), scale=0.5),
        "lokr": Kronecker(a1=r(2, 2), b1=torch.eye(2), a2=r(2, IN // 2), b2=r(OUT // 2, 2), scale=0.7),
        "full": Full(r(OUT, IN), scale=1.0),
    }


def dense(delta: Delta) -> torch.Tensor:
    """The change, column by column."""
    width = math.prod(delta.shape[1:])
    return delta.apply(torch.eye(width, dtype=torch.float64))


def adapter(**components: dict[str, Delta]) -> Adapter:
    return Adapter(family="sd15", components=components)


@pytest.mark.parametrize("new", ["lora", "loha", "lokr", "full"])
@pytest.mark.parametrize("old", ["lora", "loha", "lokr", "full"])
def test_two_forms_are_compared_as_the_weights_that_they_change(new: str, old: str) -> None:
    one, other = forms(1)[new], forms(2)[old]
    found = drift(adapter(unet={"a": one}), adapter(unet={"a": other})).components["unet"].modules["a"]
    x, y = dense(one), dense(other)
    assert found.norm == pytest.approx(float(x.norm()))
    assert found.before == pytest.approx(float(y.norm()))
    assert found.cosine == pytest.approx(float((x * y).sum() / x.norm() / y.norm()), abs=1e-6)


def test_a_component_is_one_long_vector_of_its_layers() -> None:
    new: dict[str, Delta] = {"a": lora(1), "b": lora(2, kernel=(3, 3))}
    old: dict[str, Delta] = {"a": lora(3, rank=5), "b": lora(4, kernel=(3, 3))}
    found = drift(adapter(unet=new), adapter(unet=old)).components["unet"]
    x, y = (torch.cat([dense(each).flatten() for each in deltas.values()]) for deltas in (new, old))
    assert found.norm == pytest.approx(float(x.norm()))
    assert found.cosine == pytest.approx(float((x * y).sum() / x.norm() / y.norm()))


def test_the_same_adapter_has_not_drifted_and_twice_of_it_has_the_same_direction() -> None:
    same = drift(adapter(unet={"a": lora(1)}), adapter(unet={"a": lora(1)})).components["unet"]
    assert (same.cosine, same.norm) == (pytest.approx(1.0), same.before)
    twice = drift(adapter(unet={"a": lora(1, scale=3.0)}), adapter(unet={"a": lora(1)})).components["unet"]
    assert (twice.cosine, twice.norm / twice.before) == (pytest.approx(1.0), pytest.approx(2.0))
    turned = drift(adapter(unet={"a": lora(1, scale=-1.5)}), adapter(unet={"a": lora(1)})).components["unet"]
    assert turned.cosine == pytest.approx(-1.0)


def test_what_only_one_of_them_changes_counts_on_its_side() -> None:
    found = drift(adapter(unet={"a": lora(1)}), adapter(unet={"a": lora(1), "b": lora(2)}, text_encoder={"c": lora(3)}))
    unet, encoder = found.components["unet"], found.components["text_encoder"]
    assert (unet.modules["b"].norm, unet.modules["b"].cosine) == (0.0, None)
    assert unet.cosine is not None
    assert 0 < unet.cosine < 1
    assert (encoder.norm, encoder.cosine) == (0.0, None)
    assert encoder.before > 0


def test_no_weight_of_the_layers_size_is_made() -> None:
    """A layer of 2**20 x 2**20: 8 TB, if somebody did."""
    side = 1 << 20
    wide = LowRank(torch.ones(1, 1).expand(1, side), torch.ones(1, 1).expand(side, 1), 1.0)
    found = drift(adapter(unet={"a": wide}), adapter(unet={"a": wide})).components["unet"]
    assert found.norm == pytest.approx(side)


@pytest.mark.slow
def test_a_whole_weight_is_multiplied_by_no_identity() -> None:
    """Of two weights of 6144 x 6144 the cube is 2.3e11 multiplications, and there are hundreds of such layers."""
    wide = Full(torch.ones(6144, 6144), 0.5)
    low = LowRank(torch.ones(2, 6144), torch.ones(6144, 2), 1.0)
    start = time.process_time()
    found = drift(adapter(unet={"a": wide, "b": wide}), adapter(unet={"a": wide, "b": low})).components["unet"]
    assert time.process_time() - start < 20
    assert (found.modules["a"].norm, found.modules["a"].cosine) == (pytest.approx(6144 / 2), pytest.approx(1.0))
    assert (found.modules["b"].before, found.modules["b"].cosine) == (pytest.approx(6144 * 2), pytest.approx(1.0))
