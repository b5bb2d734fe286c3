"""Each check of the effect by itself: what it lets pass, what it finds, and where its limit lies."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch

from adapterline.deltas import DTYPES, Delta, Full, Hadamard, Kronecker, LowRank, approximate
from adapterline.layouts.scale import fold, torch_dtype
from adapterline.validation import tolerances
from adapterline.validation.consumers.base import Loaded, LoadedLayer
from adapterline.validation.effect import Allowed, check_effect, check_norms
from adapterline.validation.findings import Findings
from adapterline.values import Adapter, Check

FACTORS, EXTRAS, DTYPE = "effect, exact", "magnitude and bias", "dtype"
CHANGE, INPUTS = "effect (relative change of the weight)", "effect (on random inputs)"
NORMS = "weights of norms, bit by bit"


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def lora(scale: float = 1.0, dtype: torch.dtype = torch.float32, **extras: torch.Tensor) -> LowRank:
    return LowRank(random(3, 12).to(dtype), random(16, 3).to(dtype), scale, **extras)


def full(**extras: torch.Tensor) -> Full:
    return Full(random(16, 12), 1.0, **extras)


def loha() -> Hadamard:
    return Hadamard(random(2, 12), random(16, 2), random(2, 12, seed=1), random(16, 2, seed=1), 0.5)


def lokr(dtype: torch.dtype = torch.float32) -> Kronecker:
    factors = random(2, 3), random(4, 2), random(2, 4), random(4, 2, seed=9)
    return Kronecker(*(factor.to(dtype) for factor in factors), 2.0)


def layer(delta: LowRank | Kronecker, **changes: object) -> LoadedLayer:
    """A layer as it is after loading."""
    parts = [delta.a, delta.b] if isinstance(delta, LowRank) else [delta.a1, delta.b1, delta.a2, delta.b2]
    found = tuple(part for part in (*parts, delta.magnitude, delta.bias) if part is not None)
    return replace(LoadedLayer(delta, True, delta.magnitude is not None, found), **changes)  # type: ignore[arg-type]


def checks(
    wanted: Mapping[str, Delta],
    found: Mapping[str, LoadedLayer],
    stored: str = "F32",
    requested: str | None = None,
    rank: int | None = None,
) -> list[Check]:
    """All checks of one component, whose file stores every A as `stored`."""
    findings = Findings()
    layers = {module: replace(layer, dtype=stored) for module, layer in found.items()}
    check_effect(findings, Adapter("sd15", {"unet": wanted}), Loaded({"unet": layers}), Allowed(requested, rank))
    return findings.checks


def failures(
    wanted: Delta, found: LoadedLayer, stored: str = "F32", requested: str | None = None, rank: int | None = None
) -> dict[str, str]:
    """What fails for one layer, with what was wrong."""
    made = checks({"layer": wanted}, {"layer": found}, stored, requested, rank)
    failed = [check for check in made if not check.passed]
    assert all((check.component, check.modules) == ("unet", ("layer",)) for check in failed)
    return {check.name: check.detail for check in failed}


def off(delta: LowRank, error: float) -> LowRank:
    """The same with a change that is off by `error` of itself."""
    return replace(delta, b=delta.b * (1 + error))


# --- what passes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lora,
        lambda: lora(magnitude=torch.rand(16)),
        lambda: lora(bias=random(16)),
        lambda: LowRank(random(4, 4, 3, 3), random(4, 1, 1, 1), 1.0, groups=4),
        full,
        lambda: full(magnitude=torch.rand(16), bias=random(16)),
        loha,
        lokr,
    ],
)
def test_what_was_trained_passes(make: Callable[[], Delta]) -> None:
    wanted = make()
    assert failures(wanted, layer(wanted.low_rank())) == {}


def test_lokr_as_lokr_passes() -> None:
    assert failures(lokr(), layer(lokr())) == {}


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
@pytest.mark.parametrize("requested", [False, True])
def test_what_a_file_stores_in_16_bits_passes_after_a_model_in_float32_took_it(dtype: str, requested: bool) -> None:
    kind = getattr(torch, DTYPES[dtype])
    wanted = lora(2.0, torch.float32 if requested else kind, magnitude=torch.rand(16), bias=random(16))
    stored = wanted.stored(0, 1.0, kind)
    assert stored.bias is not None
    assert stored.magnitude is not None
    found = LowRank(stored.a.float(), stored.b.float(), 1.0, stored.magnitude.float(), stored.bias.float())
    assert failures(wanted, layer(found), dtype, dtype if requested else None) == {}


# --- modules ----------------------------------------------------------------------------------------------------------


def test_module_and_component_that_did_not_arrive_are_missing() -> None:
    findings = Findings()
    adapter = Adapter("sd15", {"unet": {"a": lora(), "b": lora()}, "text_encoder": {"c": lora()}})
    check_effect(findings, adapter, Loaded({"unet": {"a": layer(lora())}}), Allowed())
    failed = [(check.name, check.component, check.modules) for check in findings.checks if not check.passed]
    assert failed == [("no module is missing", "text_encoder", ("c",)), ("no module is missing", "unet", ("b",))]


def test_module_and_component_that_nobody_trained_are_unexpected() -> None:
    findings = Findings()
    loaded = Loaded({"unet": {"a": layer(lora()), "b": layer(lora())}, "text_encoder": {"c": layer(lora())}})
    check_effect(findings, Adapter("sd15", {"unet": {"a": lora()}}), loaded, Allowed())
    failed = [(check.name, check.component, check.modules) for check in findings.checks if not check.passed]
    assert failed == [("no module is unexpected", "text_encoder", ("c",)), ("no module is unexpected", "unet", ("b",))]


# --- dtypes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "stored", "requested", "passes"),
    [
        (lora, "F32", None, True),
        (lora, "F16", None, False),
        (lambda: lora(dtype=torch.float16), "F16", None, True),
        (lambda: lora(dtype=torch.float16), "F32", None, True),
        (lambda: lora(dtype=torch.float16), "BF16", None, False),
        (lambda: lora(dtype=torch.bfloat16), "F16", "F16", True),
        (lambda: lora(dtype=torch.bfloat16), "F32", "F16", True),
        (lambda: lora(dtype=torch.bfloat16), "BF16", "F16", False),
        (full, "F32", None, True),
        (full, "F16", None, False),
        (full, "F16", "F16", True),
        (lokr, "F16", None, False),
        (lambda: lokr(torch.float16), "F16", None, True),
    ],
)
def test_dtype_is_the_requested_one_or_its_own_or_float32(
    make: Callable[[], Delta], stored: str, requested: str | None, passes: bool
) -> None:
    found = failures(make(), layer(make().low_rank()), stored, requested)
    assert found.get(DTYPE) == (None if passes else f"layer: stored as {stored}")


def test_dtype_that_the_file_does_not_tell_is_taken_for_its_own() -> None:
    findings = Findings()
    wanted, found = {"layer": lora(dtype=torch.float16)}, {"layer": layer(lora(dtype=torch.float16))}
    check_effect(findings, Adapter("sd15", {"unet": wanted}), Loaded({"unet": found}), Allowed())
    assert all(check.passed for check in findings.checks)


# --- factors ----------------------------------------------------------------------------------------------------------


def changed(tensor: torch.Tensor) -> torch.Tensor:
    """With one element to the next number."""
    tensor = tensor.clone()
    tensor.view(-1)[2] = torch.nextafter(tensor.view(-1)[2], torch.tensor(torch.inf))
    return tensor


@pytest.mark.parametrize(("part", "said"), [("a", "A"), ("b", "B"), ("magnitude", "magnitude"), ("bias", "bias")])
def test_one_number_of_any_part_is_found(part: str, said: str) -> None:
    wanted = lora(magnitude=torch.rand(16), bias=random(16))
    found = replace(wanted, **{part: changed(getattr(wanted, part))})
    values = getattr(wanted, part).numel()
    failed = failures(wanted, layer(found))
    assert set(failed) == {FACTORS}
    assert failed[FACTORS].startswith(f"layer: {said} differs in 1 of {values} elements")


@pytest.mark.parametrize(("part", "said"), [("magnitude", "magnitude"), ("bias", "bias")])
def test_part_of_a_layer_that_is_missing_surplus_or_of_another_size_is_found(part: str, said: str) -> None:
    values = random(16)
    without, with_it = lora(), lora(**{part: values})
    dora = {"use_dora": False} if part == "magnitude" else {}  # else that is what is said
    found = failures(without, layer(with_it, **dora))
    assert found == {FACTORS: f"layer: {said} differs (there: True, trained: False)"}
    dora = {"use_dora": True} if part == "magnitude" else {}
    found = failures(with_it, layer(without, **dora))
    assert found == {FACTORS: f"layer: {said} differs (there: False, trained: True)"}
    found = failures(with_it, layer(replace(with_it, **{part: values[:8]})))
    assert found == {FACTORS: f"layer: {said} differs (8 values, trained 16)"}


def test_bias_of_zeros_is_no_finding() -> None:
    assert failures(lora(), layer(lora(bias=torch.zeros(16)))) == {}


@pytest.mark.parametrize("wanted", [lora(magnitude=torch.rand(16)), full(magnitude=torch.rand(16))])
def test_magnitude_that_peft_does_not_use_is_found(wanted: Delta) -> None:
    found = failures(wanted, layer(wanted.low_rank(), use_dora=False))
    assert list(found.values()) == ["layer: DoRA is False, trained True"]


@pytest.mark.parametrize("wanted", [lora(), full()])
def test_dora_that_was_not_trained_is_found(wanted: Delta) -> None:
    found = failures(wanted, layer(wanted.low_rank(), use_dora=True))
    assert list(found.values()) == ["layer: DoRA is True, trained False"]


@pytest.mark.parametrize("scale", [0.0, math.nan, math.inf])
@pytest.mark.parametrize("make", [lora, full])
def test_scale_that_is_none_is_found(make: Callable[[], Delta], scale: float) -> None:
    found = failures(make(), layer(replace(make().low_rank(), scale=scale)))
    assert f"layer: scaling is {scale}" in found.values()
    assert {CHANGE, INPUTS} & set(found)


def test_factors_of_another_rank_are_found() -> None:
    wanted = lora()
    found = LowRank(random(4, 12), random(16, 4), 1.0)
    failed = failures(wanted, layer(found))
    assert set(failed) == {FACTORS, CHANGE}
    assert failed[FACTORS].startswith("layer: A differs (48 values, trained 36) and B differs (64 values, trained 48)")


def arrangements(delta: LowRank) -> dict[str, LowRank]:
    """The same change by other factors."""
    order, signs = torch.tensor([2, 0, 1]), torch.tensor([1.0, -1.0, 1.0])
    rows = torch.cat([delta.a, torch.zeros(2, 12)]), torch.cat([delta.b, torch.zeros(16, 2)], dim=1)
    return {
        "rows in another order": replace(delta, a=delta.a[order], b=delta.b[:, order]),
        "signs": replace(delta, a=delta.a * signs[:, None], b=delta.b * signs),
        "A doubled, B halved": replace(delta, a=delta.a * 2, b=delta.b / 2),
        "rows of zeros": replace(delta, a=rows[0], b=rows[1]),
    }


@pytest.mark.parametrize("how", arrangements(lora()))
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_the_same_change_passes_however_its_factors_are_arranged(how: str, scale: float) -> None:
    wanted = lora(scale)
    found = arrangements(wanted.stored(0, 1.0))[how]
    assert failures(wanted, layer(found)) == {}
    broken = replace(found, b=changed(found.b))
    assert set(failures(wanted, layer(broken))) == {FACTORS}


def test_another_tool_may_round_a_folded_scale_elsewhere_and_no_more() -> None:
    wanted = lora(0.3)
    elsewhere = replace(wanted, a=wanted.a * 0.3, scale=1.0)
    assert set(failures(wanted, layer(elsewhere))) == {FACTORS}

    def failed(delta: LowRank, found: LowRank) -> set[str]:
        findings = Findings()
        loaded = Loaded({"unet": {"layer": replace(layer(found), dtype="F32")}})
        check_effect(findings, Adapter("sd15", {"unet": {"layer": delta}}), loaded, Allowed(own=False))
        return {check.name for check in findings.checks if not check.passed}

    assert failed(wanted, elsewhere) == set()
    assert failed(wanted, off(elsewhere, 6e-4)) == {FACTORS, CHANGE}
    # Where nothing had to be rounded, nothing may be.
    exact = lora(0.5)
    assert failed(exact, replace(exact, a=changed(exact.a * 0.5), scale=1.0)) == {FACTORS}


@pytest.mark.parametrize("wanted", [lora(), full()])
def test_layer_on_the_meta_device_is_found(wanted: Delta) -> None:
    exact = wanted.low_rank()
    found = failures(wanted, layer(replace(exact, a=exact.a.to("meta"), b=exact.b.to("meta"))))
    assert set(found) == ({FACTORS, CHANGE} if isinstance(wanted, LowRank) else {INPUTS})
    assert found.get(FACTORS) in (None, "layer: no data")


def test_layer_of_another_form_is_compared_as_a_whole() -> None:
    # LoRA that a loader took for LoKr, LoKr for LoRA, and a grouped convolution for another.
    assert set(failures(lokr().low_rank(), layer(lokr()))) <= {INPUTS}
    other = replace(lokr(), scale=2.001)
    assert set(failures(lokr().low_rank(), layer(other))) == {INPUTS}
    own = LowRank(random(4, 4, 3, 3), random(4, 1, 1, 1), 1.0, groups=4)
    assert set(failures(own, layer(replace(own, groups=1, b=random(4, 4, 1, 1))))) == {INPUTS}


# --- magnitude and bias of rewritten layers ---------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["magnitude", "bias"])
def test_one_number_beside_a_rewritten_layer_is_found(part: str) -> None:
    wanted = full(magnitude=torch.rand(16), bias=random(16))
    exact = wanted.low_rank()
    found = replace(exact, **{part: changed(getattr(exact, part))})
    assert failures(wanted, layer(found)) == {EXTRAS: f"layer: {part} differs in 1 of 16 elements"}


def test_bias_of_a_rewritten_layer_is_scaled_as_the_factors_are() -> None:
    wanted = replace(loha(), bias=random(16))
    exact = wanted.low_rank()
    folded = replace(exact, b=exact.b * 0.5, bias=random(16) * 0.5, scale=1.0)
    assert failures(wanted, layer(folded)) == {}
    unscaled = failures(wanted, layer(replace(folded, bias=random(16))))
    assert set(unscaled) == {EXTRAS}


# --- limits -----------------------------------------------------------------------------------------------------------


def passed(name: str, made: list[Check]) -> bool:
    (check,) = (check for check in made if check.name == name)
    return check.passed


@pytest.mark.parametrize(
    ("stored", "requested", "limit"),
    [
        ("F32", None, 5e-4),
        ("F16", None, 5e-4),
        ("BF16", None, 5e-4),
        ("F64", None, 5e-4),
        ("F64", "F64", 1e-12),
        ("F32", "F32", 1e-6),
        ("F16", "F16", 1e-3),
        ("BF16", "BF16", 8e-3),
        ("F32", "F16", 5e-4),  # promoted
    ],
)
def test_limit_of_the_effect_is_that_of_what_was_done(stored: str, requested: str | None, limit: float) -> None:
    wanted = lora(dtype=torch.float64)

    def within(error: float) -> bool:
        return passed(CHANGE, checks({"x": wanted}, {"x": layer(off(wanted, error))}, stored, requested))

    assert within(limit * 0.9)
    assert not within(limit * 1.1)


@pytest.mark.parametrize(
    ("requested", "limit"), [(None, 2e-6), ("F64", 2e-6), ("F32", 2e-6), ("F16", 1e-3), ("BF16", 8e-3)]
)
def test_limit_of_a_rewritten_layer_is_that_of_what_was_asked_for(requested: str | None, limit: float) -> None:
    wanted = Full(random(16, 12).double(), 1.0)
    exact = LowRank(torch.eye(12, dtype=torch.float64), random(16, 12).double(), 1.0)

    def within(error: float) -> bool:
        return passed(INPUTS, checks({"x": wanted}, {"x": layer(off(exact, error))}, "F32", requested))

    assert within(limit * 0.9)
    assert not within(limit * 1.1)


@pytest.mark.parametrize(("requested", "limit"), [(None, 2e-6), ("F32", 1e-6), ("F16", 1e-3), ("BF16", 8e-3)])
def test_limit_of_an_approximation_is_above_the_smallest_possible_error(requested: str | None, limit: float) -> None:
    wanted = Full(random(16, 12).double(), 1.0)
    u, s, v = torch.linalg.svd(wanted.weight, full_matrices=False)
    best = LowRank(v[:4], u[:, :4] * s[:4], 1.0)
    least = float(s[4:].norm() / s.norm())

    def within(excess: float) -> bool:
        """Of the singular value that was dropped and is orthogonal to the rest, so that errors add by their squares."""
        error = math.sqrt((least + excess) ** 2 - least**2) * float(s.norm() / s[:4].norm())
        made = checks({"x": wanted}, {"x": layer(off(best, error))}, "F32", requested, 4)
        assert passed(DTYPE, made)
        return passed("effect of rank 4 (error above the smallest possible)", made)

    assert within(0.0)
    assert within(limit * 0.9)
    assert not within(limit * 1.1)


@pytest.mark.parametrize("dtype", tolerances.CAST)
def test_cast_of_both_factors_is_within_the_limit(dtype: str) -> None:
    a, b = (torch.randn(shape, dtype=torch.float64) for shape in ((16, 256), (256, 16)))
    cast = b.to(torch_dtype(dtype)).double() @ a.to(torch_dtype(dtype)).double()
    assert float((cast - b @ a).norm() / (b @ a).norm()) <= tolerances.CAST[dtype]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_effect_that_is_no_number_is_not_within_any_limit(value: float) -> None:
    wanted = lora()
    broken = wanted.b.clone()
    broken[0, 0] = value
    assert {FACTORS, CHANGE} <= set(failures(wanted, layer(replace(wanted, b=broken))))
    exact = full().low_rank()
    broken = exact.b.clone()
    broken[0, 0] = value
    assert failures(full(), layer(replace(exact, b=broken))) == {INPUTS: ""}
    assert INPUTS not in failures(full(), layer(exact))


def test_modules_above_the_limit_are_named_with_the_largest_error() -> None:
    wanted = {name: lora() for name in "abc"}
    found = {"a": layer(lora()), "b": layer(off(lora(), 0.5)), "c": layer(off(lora(), 0.25))}
    (check,) = (check for check in checks(wanted, found) if check.name == CHANGE)
    assert (check.modules, check.observed, check.limit) == (("b", "c"), 0.5, 5e-4)


def test_layer_without_an_effect_has_no_other() -> None:
    zero = replace(lora(), b=torch.zeros(16, 3))
    assert failures(zero, layer(zero)) == {}
    assert CHANGE in failures(zero, layer(lora()))


def test_folded_scale_passes_with_the_bits_that_folding_gives() -> None:
    wanted = lora(2.5, torch.float16, bias=random(16).half())
    done = fold(wanted, None)
    assert failures(wanted, layer(wanted.stored(done.shift, 1.0, torch_dtype(done.dtype))), done.dtype or "F16") == {}


# --- approximations ---------------------------------------------------------------------------------------------------


def test_approximation_passes_where_it_was_asked_for_alone() -> None:
    near, error = approximate(full(), 4)
    assert error > 0.1
    assert failures(full(), layer(near), rank=4) == {}
    assert set(failures(full(), layer(near))) == {INPUTS}
    low, _ = approximate(lora(), 2)
    assert failures(lora(), layer(low), rank=2) == {}
    assert {FACTORS, CHANGE} == set(failures(lora(), layer(low)))


def test_layer_within_the_rank_is_exact_whatever_rank_was_asked_for() -> None:
    assert failures(lora(), layer(lora()), rank=3) == {}
    assert set(failures(lora(), layer(off(lora(), 1e-5)), rank=3)) == {FACTORS}
    assert failures(loha(), layer(loha().low_rank()), rank=4) == {}
    assert set(failures(loha(), layer(off(loha().low_rank(), 1e-5)), rank=4)) == {INPUTS}


def test_approximation_of_a_higher_or_lower_rank_than_asked_for_is_found() -> None:
    check = "effect of rank 4 (error above the smallest possible)"
    higher, _ = approximate(full(), 5)
    assert set(failures(full(), layer(higher), rank=4)) == {check}
    lower, _ = approximate(full(), 3)
    assert set(failures(full(), layer(lower), rank=4)) == {check}


def test_approximation_of_another_size_or_without_data_is_found() -> None:
    check = "effect of rank 4 (error above the smallest possible)"
    near, _ = approximate(full(), 4)
    for found in (
        replace(near, a=random(4, 11)),
        replace(near, b=random(15, 4)),
        replace(near, a=near.a.to("meta"), b=near.b.to("meta")),
    ):
        assert check in failures(full(), layer(found), rank=4)


def test_change_where_nothing_was_trained_is_above_any_error() -> None:
    nothing = Full(torch.zeros(16, 12), 1.0)
    found = LowRank(random(4, 12), random(16, 4), 1.0)
    assert "effect of rank 4 (error above the smallest possible)" in failures(nothing, layer(found), rank=4)


# --- norms ------------------------------------------------------------------------------------------------------------


def norm_failures(
    wanted: dict[str, dict[str, torch.Tensor]], found: dict[str, dict[str, torch.Tensor]]
) -> list[tuple[str | None, str]]:
    findings = Findings()
    check_norms(findings, Adapter("flux", {}, norms=wanted), Loaded({}, norms=found))
    assert {check.name for check in findings.checks} <= {NORMS}
    return [(check.component, check.detail) for check in findings.checks if not check.passed]


def test_norms_of_the_source_pass() -> None:
    findings = Findings()
    norms = {"transformer": {"norm_q.weight": random(8), "norm_k.weight": random(8, seed=1)}}
    check_norms(findings, Adapter("flux", {}, norms=norms), Loaded({}, norms=norms))
    (check,) = findings.checks
    assert (check.name, check.passed, check.observed) == (NORMS, True, "0 of 2")
    assert norm_failures({}, {"transformer": {}}) == []


def test_norm_that_differs_is_missing_or_is_not_the_sources_is_found() -> None:
    weights = random(8)
    own = {"transformer": {"norm_q.weight": weights}}
    assert norm_failures(own, {"transformer": {"norm_q.weight": changed(weights)}}) == [
        ("transformer", "norm_q.weight: in 1 of 8 elements")
    ]
    missing = "norm_q.weight: (there: False, trained: True)"
    assert norm_failures(own, {"transformer": {}}) == [("transformer", missing)]
    assert norm_failures(own, {}) == [("transformer", missing)]
    surplus = {"transformer": {**own["transformer"], "norm_k.weight": weights}}
    assert norm_failures(own, surplus) == [("transformer", "norm_k.weight: (there: True, trained: False)")]
    zeros = {"transformer": {**own["transformer"], "norm_k.weight": torch.zeros(8)}}
    assert norm_failures(own, zeros) == [("transformer", "norm_k.weight: is not the source's")]
    assert norm_failures({}, own) == [("transformer", "norm_q.weight: (there: True, trained: False)")]
