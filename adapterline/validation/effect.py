"""Does each module of the consumer change its weight as the trainer's did?

Two witnesses for each module. *Factors*: A and B must be, to the last bit, what the source's factors give when a power
of two moves from B to A and the rest of the scale is rounded once into B. *Effect*: the change as a whole, by Frobenius
norm, within the limit of what was done to it. Magnitude and bias are compared as stored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from adapterline.deltas import DTYPES, NAMES, LowRank, power_between, relative_error
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
) -> None:
    """Compares every module of `adapter` with what was loaded.

    `stored` tells by component and module how the file stores A. `requested` is the dtype that the user asked for, by
    its safetensors name.
    """
    for component in sorted({*adapter.components, *loaded.components}):
        wanted, found = adapter.components.get(component, {}), loaded.components.get(component, {})
        missing, unexpected = set(wanted) - set(found), set(found) - set(wanted)
        findings.none_of("no module is missing", missing, component, len(wanted))
        findings.none_of("no module is unexpected", unexpected, component, len(found))
        both = sorted(set(wanted) & set(found))
        dtypes = {module: _dtype(stored, component, module, wanted[module]) for module in both}
        _check_dtypes(findings, component, wanted, dtypes, requested)
        _check_factors(findings, component, wanted, found, dtypes)
        _check_change(findings, component, wanted, found, dtypes, requested)


def _dtype(stored: Mapping[str, Mapping[str, TensorInfo]], component: str, module: str, wanted: LowRank) -> str:
    info = stored.get(component, {}).get(module)
    return info.dtype if info and info.dtype in DTYPES else _own_dtype(wanted)


def _own_dtype(delta: LowRank) -> str:
    return NAMES[str(delta.a.dtype).removeprefix("torch.")]


def _check_dtypes(
    findings: Findings, component: str, wanted: Mapping[str, LowRank], dtypes: Mapping[str, str], requested: str | None
) -> None:
    """Stored in the dtype that was asked for, or else its own; fp32 where that cannot hold the scaled factors."""
    wrong = {
        module: f"stored as {dtype}"
        for module, dtype in dtypes.items()
        if dtype not in (requested or _own_dtype(wanted[module]), "F32")
    }
    findings.none_of("dtype", wrong, component, len(dtypes))


def _check_factors(
    findings: Findings,
    component: str,
    wanted: Mapping[str, LowRank],
    found: Mapping[str, LoadedLayer],
    dtypes: Mapping[str, str],
) -> None:
    rows = {module: (wanted[module], found[module], dtype) for module, dtype in dtypes.items()}
    reasons = each_value(lambda row: _factors_differ(*row), rows)
    wrong = {module: reason for module, reason in reasons.items() if reason}
    findings.none_of("factors, bit by bit", wrong, component, len(dtypes))


def _factors_differ(wanted: LowRank, layer: LoadedLayer, dtype: str) -> str:
    """What differs from what the source's factors must have become; empty if nothing does."""
    import torch

    found = layer.delta
    if found.a.is_meta or found.b.is_meta:
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

    if after is None or before is None:
        return "" if after is before else f"(there: {after is not None}, trained: {before is not None})"
    if after.numel() != before.numel():
        return f"({after.numel()} values, trained {before.numel()})"
    found, wanted = after.detach().flatten(), before.flatten().to(after.dtype)
    if torch.equal(found, wanted):
        return ""
    unequal = int((found != wanted).sum())  # NaN equals nothing, itself included
    return f"in {unequal} of {before.numel()} elements"


def _check_change(
    findings: Findings,
    component: str,
    wanted: Mapping[str, LowRank],
    found: Mapping[str, LoadedLayer],
    dtypes: Mapping[str, str],
    requested: str | None,
) -> None:
    """One check for each limit that occurs: modules that were promoted to fp32 have their own."""
    found_errors = each_value(lambda row: _error(*row), {module: (found[module], wanted[module]) for module in dtypes})
    by_limit: dict[float, dict[str, float]] = {}
    for module, dtype in dtypes.items():
        by_limit.setdefault(tolerances.limit(dtype, dtype == requested), {})[module] = found_errors[module]
    for limit, errors in sorted(by_limit.items()):
        findings.that(
            "effect (relative change of the weight)",
            all(error <= limit for error in errors.values()),
            observed=max(errors.values()),
            limit=limit,
            component=component,
            modules=[module for module, error in errors.items() if not error <= limit],
        )


def _error(layer: LoadedLayer, wanted: LowRank) -> float:
    on_meta = layer.delta.a.is_meta or layer.delta.b.is_meta
    return math.inf if on_meta else relative_error(layer.delta, wanted)
