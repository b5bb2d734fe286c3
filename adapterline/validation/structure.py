"""Does the file load whole, onto the right modules, and is it alive? True of any file, whoever wrote it."""

from __future__ import annotations

from collections.abc import Mapping

from adapterline.deltas import LowRank
from adapterline.families.base import Base
from adapterline.families.control import layers_for
from adapterline.parallel import each, each_value
from adapterline.validation.consumer import Loaded, LoadedLayer
from adapterline.validation.findings import Findings


def check_loaded(findings: Findings, loaded: Loaded, written: Mapping[str, int], base: Base) -> None:
    """Every tensor of the files arrived on a real module: finite, active, with its shape, and some B is not zero.

    `written` counts the tensors that the files have for each component.
    """
    if not findings.that(
        "loads",
        not loaded.error,
        observed=loaded.error or "no exception",
        limit="no exception",
        detail=loaded.error[:500],
    ):
        return
    arrived, total = loaded.tensors, sum(written.values())
    # Keys of other layouts do not tell their component.
    told = set(written) <= set(arrived)
    elsewhere = sorted(name for name in arrived if told and written.get(name, 0) != arrived[name])
    findings.that(
        "all tensors arrive",
        sum(arrived.values()) == total and not elsewhere,
        observed=f"{sum(arrived.values())} of {total}",
        limit=f"{total}",
        detail=", ".join(f"{name}: {arrived[name]} of {written.get(name, 0)}" for name in elsewhere),
    )
    for component, layers in loaded.components.items():
        if layers:
            _check_component(findings, component, layers, base)


def _check_component(findings: Findings, component: str, layers: Mapping[str, LoadedLayer], base: Base) -> None:
    known, _ = layers_for(base, component, {module: layer.delta.shape[1] for module, layer in layers.items()})
    tensors = {module: layer.parts for module, layer in layers.items()}
    total = len(layers)
    on_meta = {module for module, found in tensors.items() if any(tensor.is_meta for tensor in found)}
    findings.none_of("has data (not on the meta device)", on_meta, component, total)
    real = {module: found for module, found in tensors.items() if module not in on_meta}
    finite = each_value(lambda found: all(bool(tensor.isfinite().all()) for tensor in found), real)
    findings.none_of("finite", {module for module, passed in finite.items() if not passed}, component, total)
    findings.none_of("active after loading", {m for m, layer in layers.items() if not layer.active}, component, total)
    wrong = {
        module: f"is {list(layer.delta.shape)}, in the model {known[module].change if module in known else 'not there'}"
        for module, layer in layers.items()
        if module not in known or layer.delta.shape != known[module].change
    }
    findings.none_of("shape of the model", wrong, component, total)
    alive = sum(each(lambda module: _is_alive(layers[module]), real))
    findings.that(
        "alive (some B is not zero)", alive > 0, observed=f"{alive} of {total}", limit="at least 1", component=component
    )


def _is_alive(layer: LoadedLayer) -> bool:
    return bool(layer.delta.b.any()) if isinstance(layer.delta, LowRank) else all(bool(p.any()) for p in layer.parts)
