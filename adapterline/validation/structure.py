"""Does the file load whole, onto the right modules, and is it alive? True of any file, whoever wrote it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from adapterline.deltas import LowRank
from adapterline.errors import AdapterlineError
from adapterline.families.base import Base
from adapterline.families.control import layers_for
from adapterline.parallel import each, each_value
from adapterline.validation.consumers.base import Loaded, LoadedLayer
from adapterline.validation.findings import Findings

#: The layers of a file by component, as a reader of its keys finds them. AdapterlineError if it cannot read them.
Meant = Callable[[], Mapping[str, Collection[str]]]
#: The layers of a file that do not fit the model, as `component.module`, with the reason.
Misfits = Callable[[], Mapping[str, str]]


def check_loaded(
    findings: Findings, loaded: Loaded, base: Base, meant: Meant | None = None, misfits: Misfits = dict
) -> None:
    """Every tensor of the files arrived on a real module: finite, active, with its shape, and some B is not zero.

    In files of other layouts tensors are not counted one to one (fused layers, alphas): there the layers that are
    `meant` must be those that were loaded. `misfits` are asked for once something did not arrive.
    """
    unfit = misfits() if loaded.error else {}
    if not findings.that(
        "loads",
        not loaded.error,
        observed=loaded.error or "no exception",
        limit="no exception",
        modules=unfit,
        detail=_first(unfit),
    ):
        return
    _check_arrived(findings, loaded, meant, misfits)
    for component, layers in loaded.components.items():
        if layers:
            _check_component(findings, component, layers, base)
    for component, weights in loaded.norms.items():
        if weights:
            wrong = [name for name, weight in weights.items() if not bool(weight.isfinite().all())]
            findings.none_of("finite (whole weights)", wrong, component, len(weights))


def _check_arrived(findings: Findings, loaded: Loaded, meant: Meant | None, misfits: Misfits) -> None:
    arrived, written = loaded.arrived, loaded.written
    total = sum(written.values())
    elsewhere = sorted(name for name in {*arrived, *written} if written.get(name, 0) != arrived.get(name, 0))
    if elsewhere and meant:
        _check_meant(findings, loaded, meant)
        return
    unfit = misfits() if elsewhere else {}
    counts = [f"{name}: {arrived.get(name, 0)} of {written.get(name, 0)}" for name in elsewhere]
    findings.that(
        "all tensors arrive",
        total > 0 and not elsewhere,
        observed=f"{sum(arrived.values())} of {total}",
        limit=f"{total}",
        modules=unfit,
        detail="; ".join(filter(None, (", ".join(counts), _first(unfit)))),
    )


def _first(unfit: Mapping[str, str]) -> str:
    return ": ".join(min(unfit.items(), default=()))


def _check_meant(findings: Findings, loaded: Loaded, meant: Meant) -> None:
    try:
        wanted = {f"{name}.{module}" for name, modules in meant().items() for module in modules}
        refused = ""
    except AdapterlineError as error:
        wanted, refused = set(), str(error)
    found = {
        f"{name}.{module}"
        for name, layers in loaded.components.items()
        for module, layer in layers.items()
        if f"{name}.{module}" in wanted or not layer.is_filler
    }
    findings.that(
        "all layers arrive",
        bool(wanted) and wanted == found,
        observed=f"{len(found & wanted)} of {len(wanted)}, and {len(found - wanted)} others",
        limit=f"{len(wanted)}, and no others",
        modules=wanted ^ found if wanted else (),
        detail=refused,
    )


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
