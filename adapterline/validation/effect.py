"""Does each module of the consumer change its weight as the trainer's did?

Two witnesses for each module that is a LoRA on both sides. *Exact*: its change must be, in float64, the one that the
source's factors give when a power of two moves from B to A and the rest of the scale is rounded once into B; factors
that are so to the last bit need no arithmetic, and others may be arranged otherwise (signs, order, more rows of zeros).
*Effect*: the change as a whole, by Frobenius norm, within the limit of what was done to it.

A layer that had to be written in another form (LoHa, LoKr, a difference of whole weights, a grouped convolution) has no
factors to compare: there the two changes act on the same random inputs, each by its own definition, and what comes out
is compared. Where the user asked for an approximation, its error must be the smallest that its rank allows.

Magnitude and bias are compared as stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from adapterline.deltas import (
    DTYPES,
    NAMES,
    Delta,
    Kronecker,
    LowRank,
    exact_error,
    power_between,
    probed_error,
    relative_error,
    smallest_error,
)
from adapterline.parallel import each_value
from adapterline.validation import tolerances
from adapterline.validation.consumers.base import Loaded, LoadedLayer
from adapterline.validation.findings import Findings
from adapterline.values import Adapter

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Allowed:
    """What may have been done to the factors.

    `dtype` is what the user asked them to be rounded to, by safetensors' name, and `approximate` the rank, if any.
    `own`: the file is this tool's, which rounds in one way alone; another's may fold a scale as it likes, within the
    same limit.
    """

    dtype: str | None = None
    approximate: int | None = None
    own: bool = True


def check_effect(findings: Findings, adapter: Adapter, loaded: Loaded, allowed: Allowed) -> None:
    """Compares every module of `adapter` with what was loaded."""
    for component in sorted({*adapter.components, *loaded.components}):
        wanted, found = adapter.components.get(component, {}), loaded.components.get(component, {})
        missing = set(wanted) - set(found)
        unexpected = {module for module in set(found) - set(wanted) if not found[module].is_filler}
        findings.none_of("no module is missing", missing, component, len(wanted))
        findings.none_of("no module is unexpected", unexpected, component, len(found))
        rows = {module: (wanted[module], found[module]) for module in sorted(set(wanted) & set(found))}
        _check_dtypes(findings, component, rows, allowed)
        same = {
            module: (delta, layer)
            for module, (delta, layer) in rows.items()
            if isinstance(delta, LowRank) and _is_low_rank_too(delta, layer, allowed.approximate)
        }
        other = {module: row for module, row in rows.items() if module not in same}
        if same:
            _check_exactly(findings, component, same, allowed)
            _check_change(findings, component, same, allowed.dtype)
        if other:
            _check_extras(findings, component, other)
            _check_rewritten(findings, component, other, allowed)


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


def _is_low_rank_too(delta: LowRank, layer: LoadedLayer, approximate: int | None) -> bool:
    """Are both a LoRA of the same kind, and neither an approximation?"""
    within = approximate is None or delta.rank <= approximate
    return within and isinstance(layer.delta, LowRank) and layer.delta.groups == delta.groups


def _dtype(wanted: Delta, layer: LoadedLayer) -> str:
    return layer.dtype if layer.dtype in DTYPES else wanted.dtype


def _check_dtypes(
    findings: Findings, component: str, rows: Mapping[str, tuple[Delta, LoadedLayer]], allowed: Allowed
) -> None:
    """Stored in the dtype that was asked for, or else its own; fp32 where that cannot hold the scaled factors."""
    dtypes = {module: (_dtype(*row), allowed.dtype or _own_dtype(row[0])) for module, row in rows.items()}
    wrong = {module: f"stored as {dtype}" for module, (dtype, own) in dtypes.items() if dtype not in (own, "F32")}
    findings.none_of("dtype", wrong, component, len(rows))


def _own_dtype(wanted: Delta) -> str:
    """What the source stores; products of LoHa's and of differences' factors are float32 (`low_rank`)."""
    factor = wanted.a1 if isinstance(wanted, Kronecker) else wanted.a if isinstance(wanted, LowRank) else None
    return "F32" if factor is None else NAMES[str(factor.dtype).removeprefix("torch.")]


def _check_exactly(
    findings: Findings, component: str, rows: Mapping[str, tuple[LowRank, LoadedLayer]], allowed: Allowed
) -> None:
    reasons = each_value(lambda row: _differs(*row, allowed), rows)
    wrong = {module: reason for module, reason in reasons.items() if reason}
    findings.none_of("effect, exact", wrong, component, len(rows))


def _differs(wanted: LowRank, layer: LoadedLayer, allowed: Allowed) -> str:
    """What differs from what the source's factors must have become; empty if nothing does."""
    import torch

    found = layer.delta
    if not isinstance(found, LowRank) or any(part.is_meta for part in layer.parts):
        return "no data"
    if wanted.shape != found.shape:
        return f"changes a weight of {list(found.shape)}, trained {list(wanted.shape)}"
    if not found.scale or not math.isfinite(found.scale):
        return f"scaling is {found.scale}"
    if layer.use_dora != (wanted.magnitude is not None):
        return f"DoRA is {layer.use_dora}, trained {wanted.magnitude is not None}"
    kind = getattr(torch, DTYPES[_dtype(wanted, layer)])
    rounded = wanted.stored(power_between(wanted.a, found.a), found.scale, kind)
    for name, after, before in (
        ("magnitude", found.magnitude, rounded.magnitude),
        ("bias", found.bias, rounded.bias),
    ):
        if differing := _differing(after, before):
            return f"{name} differs {differing}"
    factors = [
        f"{name} differs {how}"
        for name, after, before in (("A", found.a, rounded.a), ("B", found.b, rounded.b))
        if (how := _differing(after, before))
    ]
    if not factors:
        return ""
    rounded = wanted.stored(_power_of_norms(wanted.a, found.a), found.scale, kind)
    error = exact_error(found, rounded)
    if error <= tolerances.EXACT:
        return ""
    limit = tolerances.limit(_dtype(wanted, layer), allowed.dtype is not None)
    if not allowed.own and not _is_power_of_two(wanted.scale / found.scale) and exact_error(found, wanted) <= limit:
        return ""  # a scale that no dtype folds exactly, rounded in another's way
    return f"{' and '.join(factors)}, and so does the change as a whole, by {error:.1e}"


def _power_of_norms(before: torch.Tensor, after: torch.Tensor) -> int:
    """The power of two between factors whose rows may be in another order, or have zeros among them."""
    old, new = float(before.double().norm()), float(after.double().norm())
    return round(math.log2(new / old)) if old and new and math.isfinite(old) and math.isfinite(new) else 0


def _is_power_of_two(factor: float) -> bool:
    return math.frexp(factor)[0] == 0.5


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


def _check_extras(findings: Findings, component: str, rows: Mapping[str, tuple[Delta, LoadedLayer]]) -> None:
    """Magnitude and bias of layers whose factors are others now."""
    reasons = {module: _extras_differ(*row) for module, row in rows.items()}
    wrong = {module: reason for module, reason in reasons.items() if reason}
    findings.none_of("magnitude and bias", wrong, component, len(rows))


def _extras_differ(wanted: Delta, layer: LoadedLayer) -> str:
    import torch

    found = layer.delta
    if not found.scale or not math.isfinite(found.scale):
        return f"scaling is {found.scale}"
    if layer.use_dora != (wanted.magnitude is not None):
        return f"DoRA is {layer.use_dora}, trained {wanted.magnitude is not None}"
    kind = getattr(torch, DTYPES[_dtype(wanted, layer)])
    bias = None if wanted.bias is None else (wanted.bias.double() * (wanted.scale / found.scale)).to(kind)
    magnitude = None if wanted.magnitude is None else wanted.magnitude.to(kind)
    for name, after, before in (("magnitude", found.magnitude, magnitude), ("bias", found.bias, bias)):
        if differing := _differing(after, before):
            return f"{name} differs {differing}"
    return ""


def _check_change(
    findings: Findings, component: str, rows: Mapping[str, tuple[LowRank, LoadedLayer]], requested: str | None
) -> None:
    """One check for each limit that occurs: modules that were promoted to fp32 have their own."""
    by_limit: dict[float, dict[str, tuple[LowRank, LoadedLayer]]] = {}
    for module, (wanted, layer) in rows.items():
        dtype = _dtype(wanted, layer)
        by_limit.setdefault(tolerances.limit(dtype, dtype == requested), {})[module] = wanted, layer
    for limit, some in sorted(by_limit.items()):
        errors = each_value(partial(_row_error, measure=partial(_change_error, limit=limit)), some)
        _within(findings, "effect (relative change of the weight)", component, errors, limit)


def _change_error(carried: LowRank, wanted: LowRank, limit: float) -> float:
    """By the factors where they correspond, which is much quicker."""
    error = relative_error(carried, wanted)
    return error if error <= limit else exact_error(carried, wanted)


def _check_rewritten(
    findings: Findings, component: str, rows: Mapping[str, tuple[Delta, LoadedLayer]], allowed: Allowed
) -> None:
    """Whole-layer comparison; approximated layers against the best that their rank allows."""
    rank = allowed.approximate
    near = {
        module: (wanted, layer)
        for module, (wanted, layer) in rows.items()
        if rank is not None and isinstance(layer.delta, LowRank) and layer.delta.rank < wanted.needed_rank
    }
    exact = {module: row for module, row in rows.items() if module not in near}
    limit = tolerances.CAST[allowed.dtype] if allowed.dtype else tolerances.REWRITTEN
    if exact:
        errors = each_value(partial(_row_error, measure=probed_error), exact)
        _within(findings, "effect (on random inputs)", component, errors, max(limit, tolerances.REWRITTEN))
    if near:
        excess = each_value(partial(_above_the_best, rank=int(rank or 0)), near)
        _within(findings, f"effect of rank {rank} (error above the smallest possible)", component, excess, limit)


def _above_the_best(row: tuple[Delta, LoadedLayer], rank: int) -> float:
    """|carried - wanted| / |wanted| less the smallest that a change of this rank can have, by Frobenius norm.

    What rounding the factors adds is at most its own share of the norm, so the limits of `tolerances` apply.
    """
    import torch

    wanted, layer = row
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


def _row_error(row: tuple[Any, LoadedLayer], measure: Callable[[Any, Any], float]) -> float:
    wanted, layer = row
    return math.inf if any(part.is_meta for part in layer.parts) else measure(layer.delta, wanted)
