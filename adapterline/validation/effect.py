"""Does each module of the consumer change its weight as the trainer's did?

Two witnesses for each module whose factors map one to one. *Factors*: A and B must be, to the last bit, what the
source's factors give when a power of two moves from B to A and the rest of the scale is rounded once into B. *Effect*:
the change as a whole, by Frobenius norm, within the limit of what was done to it.

A layer that had to be written in another form (LoHa, LoKr, a difference of whole weights, a grouped convolution) has no
factors to compare: there the two changes act on the same random inputs, each by its own definition, and what comes out
is compared. Where the user asked for an approximation, its error must be the smallest that its rank allows.

Magnitude and bias are compared as stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from adapterline.deltas import (
    DTYPES,
    NAMES,
    Delta,
    Kronecker,
    LowRank,
    power_between,
    probed_error,
    relative_error,
    smallest_error,
)
from adapterline.parallel import each_value
from adapterline.validation import tolerances
from adapterline.validation.consumer import Loaded, LoadedLayer
from adapterline.validation.findings import Findings
from adapterline.values import Adapter, TensorInfo

if TYPE_CHECKING:
    import torch


def check_effect(
    findings: Findings,
    adapter: Adapter,
    loaded: Loaded,
    stored: Mapping[str, Mapping[str, TensorInfo]],
    requested: str | None,
    approximate: int | None = None,
) -> None:
    """Compares every module of `adapter` with what was loaded.

    `stored` tells by component and module how the file stores A. `requested` is the dtype that the user asked for, by
    its safetensors name, and `approximate` the rank, if any.
    """
    for component in sorted({*adapter.components, *loaded.components}):
        wanted, found = adapter.components.get(component, {}), loaded.components.get(component, {})
        missing, unexpected = set(wanted) - set(found), set(found) - set(wanted)
        findings.none_of("no module is missing", missing, component, len(wanted))
        findings.none_of("no module is unexpected", unexpected, component, len(found))
        both = sorted(set(wanted) & set(found))
        dtypes = {module: _dtype(stored, component, module, wanted[module]) for module in both}
        _check_dtypes(findings, component, wanted, dtypes, requested)
        same = {
            module: (delta, found[module], dtypes[module])
            for module in both
            if isinstance(delta := wanted[module], LowRank) and _as_stored(delta, found[module], approximate)
        }
        other = {module: (wanted[module], found[module], dtypes[module]) for module in both if module not in same}
        if same:
            _check_factors(findings, component, same)
            _check_change(findings, component, same, requested)
        if other:
            _check_extras(findings, component, other)
            _check_rewritten(findings, component, other, requested, approximate)


def check_norms(findings: Findings, adapter: Adapter, loaded: Loaded) -> None:
    """Norm weights that take the place of the base's are the source's, bit by bit, and no other norm was touched."""
    for component in sorted({*adapter.norms, *(name for name, weights in loaded.norms.items() if weights)}):
        wanted, found = adapter.norms.get(component, {}), loaded.norms.get(component, {})
        reasons = {
            name: _differing(found.get(name), wanted.get(name)) or ("" if name in wanted else "is not the source's")
            for name in {*wanted, *found}
        }
        wrong = {name: reason for name, reason in reasons.items() if reason}
        findings.none_of("weights of norms, bit by bit", wrong, component, len(reasons))


def _as_stored(delta: LowRank, layer: LoadedLayer, approximate: int | None) -> bool:
    """Do its factors go into the file as they are?"""
    within = approximate is None or delta.rank <= approximate
    return within and isinstance(layer.delta, LowRank) and layer.delta.groups == delta.groups


def _dtype(stored: Mapping[str, Mapping[str, TensorInfo]], component: str, module: str, wanted: Delta) -> str:
    info = stored.get(component, {}).get(module)
    return info.dtype if info and info.dtype in DTYPES else wanted.dtype


def _check_dtypes(
    findings: Findings, component: str, wanted: Mapping[str, Delta], dtypes: Mapping[str, str], requested: str | None
) -> None:
    """Stored in the dtype that was asked for, or else its own; fp32 where that cannot hold the scaled factors."""
    wrong = {
        module: f"stored as {dtype}"
        for module, dtype in dtypes.items()
        if dtype not in (requested or _own_dtype(wanted[module]), "F32")
    }
    findings.none_of("dtype", wrong, component, len(dtypes))


def _own_dtype(wanted: Delta) -> str:
    """What the source stores; products of LoHa's and of differences' factors are float32 (`low_rank`)."""
    factor = wanted.a1 if isinstance(wanted, Kronecker) else wanted.a if isinstance(wanted, LowRank) else None
    return "F32" if factor is None else NAMES[str(factor.dtype).removeprefix("torch.")]


def _check_factors(findings: Findings, component: str, rows: Mapping[str, tuple[LowRank, LoadedLayer, str]]) -> None:
    reasons = each_value(lambda row: _factors_differ(*row), rows)
    wrong = {module: reason for module, reason in reasons.items() if reason}
    findings.none_of("factors, bit by bit", wrong, component, len(rows))


def _factors_differ(wanted: LowRank, layer: LoadedLayer, dtype: str) -> str:
    """What differs from what the source's factors must have become; empty if nothing does."""
    import torch

    found = layer.delta
    if not isinstance(found, LowRank) or any(part.is_meta for part in layer.parts):
        return "no data"
    if wanted.a.shape != found.a.shape or wanted.b.shape != found.b.shape:
        shapes = [list(map(list, (delta.a.shape, delta.b.shape))) for delta in (found, wanted)]
        return f"A and B are {shapes[0]}, trained {shapes[1]}"
    if not found.scale or not math.isfinite(found.scale):
        return f"scaling is {found.scale}"
    if layer.use_dora != (wanted.magnitude is not None):
        return f"DoRA is {layer.use_dora}, trained {wanted.magnitude is not None}"
    rounded = wanted.stored(power_between(wanted.a, found.a), found.scale, getattr(torch, DTYPES[dtype]))
    for name, after, before in (
        ("A", found.a, rounded.a),
        ("B", found.b, rounded.b),
        ("magnitude", found.magnitude, rounded.magnitude),
        ("bias", found.bias, rounded.bias),
    ):
        if differing := _differing(after, before):
            return f"{name} differs {differing}"
    return ""


def _differing(after: torch.Tensor | None, before: torch.Tensor | None) -> str:
    import torch

    if before is None and after is not None and not bool(after.any()):
        return ""  # a bias of zeros, because peft builds one in every lora_B or in none
    if after is None or before is None:
        return "" if after is before else f"(there: {after is not None}, trained: {before is not None})"
    if after.numel() != before.numel():
        return f"({after.numel()} values, trained {before.numel()})"
    found, wanted = after.detach().flatten(), before.flatten().to(after.dtype)
    if torch.equal(found, wanted):
        return ""
    unequal = int((found != wanted).sum())  # NaN equals nothing, itself included
    return f"in {unequal} of {before.numel()} elements"


def _check_extras(findings: Findings, component: str, rows: Mapping[str, tuple[Delta, LoadedLayer, str]]) -> None:
    """Magnitude and bias of layers whose factors are others now."""
    reasons = {module: _extras_differ(*row) for module, row in rows.items()}
    wrong = {module: reason for module, reason in reasons.items() if reason}
    findings.none_of("magnitude and bias", wrong, component, len(rows))


def _extras_differ(wanted: Delta, layer: LoadedLayer, dtype: str) -> str:
    import torch

    found = layer.delta
    if not found.scale or not math.isfinite(found.scale):
        return f"scaling is {found.scale}"
    if layer.use_dora != (wanted.magnitude is not None):
        return f"DoRA is {layer.use_dora}, trained {wanted.magnitude is not None}"
    kind = getattr(torch, DTYPES[dtype])
    bias = None if wanted.bias is None else (wanted.bias.double() * (wanted.scale / found.scale)).to(kind)
    magnitude = None if wanted.magnitude is None else wanted.magnitude.to(kind)
    for name, after, before in (("magnitude", found.magnitude, magnitude), ("bias", found.bias, bias)):
        if differing := _differing(after, before):
            return f"{name} differs {differing}"
    return ""


def _check_change(
    findings: Findings,
    component: str,
    rows: Mapping[str, tuple[LowRank, LoadedLayer, str]],
    requested: str | None,
) -> None:
    """One check for each limit that occurs: modules that were promoted to fp32 have their own."""
    found_errors = each_value(lambda row: _error(row[1], row[0], relative_error), rows)
    by_limit: dict[float, dict[str, float]] = {}
    for module, (_, _, dtype) in rows.items():
        by_limit.setdefault(tolerances.limit(dtype, dtype == requested), {})[module] = found_errors[module]
    for limit, errors in sorted(by_limit.items()):
        _within(findings, "effect (relative change of the weight)", component, errors, limit)


def _check_rewritten(
    findings: Findings,
    component: str,
    rows: Mapping[str, tuple[Delta, LoadedLayer, str]],
    requested: str | None,
    approximate: int | None,
) -> None:
    """Whole-layer comparison; approximated layers against the best that their rank allows."""
    near = {
        module: row
        for module, row in rows.items()
        if approximate is not None and isinstance(row[1].delta, LowRank) and row[1].delta.rank < row[0].needed_rank
    }
    exact = {module: row for module, row in rows.items() if module not in near}
    limit = tolerances.CAST[requested] if requested else tolerances.REWRITTEN
    if exact:
        errors = each_value(lambda row: _error(row[1], row[0], probed_error), exact)
        _within(findings, "effect (on random inputs)", component, errors, max(limit, tolerances.REWRITTEN))
    if near:
        rank = int(approximate or 0)
        excess = each_value(partial(_above_the_best, rank=rank), near)
        _within(findings, f"effect of rank {rank} (error above the smallest possible)", component, excess, limit)


def _above_the_best(row: tuple[Delta, LoadedLayer, str], rank: int) -> float:
    """|carried - wanted| / |wanted| less the smallest that a change of this rank can have, by Frobenius norm.

    What rounding the factors adds is at most its own share of the norm, so the limits of `tolerances` apply.
    """
    import torch

    wanted, layer, _ = row
    found = layer.delta
    if not isinstance(found, LowRank) or found.rank > rank or found.a.is_meta:
        return math.inf
    exact = wanted.low_rank()
    b, a = exact.matrices()
    found_b, found_a = found.matrices()
    if a.shape[1] != found_a.shape[1] or b.shape[0] != found_b.shape[0]:
        return math.inf
    left = torch.linalg.qr(torch.cat([b * exact.scale, -found_b * found.scale], dim=1)).R
    right = torch.linalg.qr(torch.cat([a, found_a]).T).R
    size = float((torch.linalg.qr(b * exact.scale).R @ torch.linalg.qr(a.T).R.T).norm())
    error = float((left @ right.T).norm()) / size if size else math.inf
    return max(error - smallest_error(wanted, rank), 0.0)


def _within(findings: Findings, name: str, component: str, errors: Mapping[str, float], limit: float) -> None:
    findings.that(
        name,
        all(error <= limit for error in errors.values()),
        observed=max(errors.values()),
        limit=limit,
        component=component,
        modules=[module for module, error in errors.items() if not error <= limit],
    )


def _error(layer: LoadedLayer, wanted: Delta, measure: Callable[[Any, Any], float]) -> float:
    return math.inf if any(part.is_meta for part in layer.parts) else measure(layer.delta, wanted)
