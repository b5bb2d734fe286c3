"""How far two adapters are from each other: norms of what they do to the weights, and the cosine between them.

Of changes dW = s B A and dW' = s' B' A' the inner product is s s' <B^T B', A A'^T>: two matrices of rank x rank,
whatever the layer's size, and dW itself is never made. Where a trainer's form is the whole weight already, it is used
as that. In float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from adapterline.errors import AdapterlineError
from adapterline.values.drift import ComponentDrift, Drift, DriftFromLatest, ModuleDrift

if TYPE_CHECKING:
    import torch

    from adapterline.deltas import Delta
    from adapterline.families.base import Base
    from adapterline.settings import Settings
    from adapterline.values import Adapter, Version


def drift(adapter: Adapter, before: Adapter) -> Drift:
    """Both adapters have to be placed on the same base. Of DoRA the additive part counts, and no magnitude."""
    names = dict.fromkeys((*adapter.components, *before.components))
    return Drift(
        components={
            name: _component(adapter.components.get(name, {}), before.components.get(name, {})) for name in names
        }
    )


def compare(uri: str, before: str, base: str) -> Drift:
    """The same of what lies at two places: checkpoints, or what was exported, as paths, `s3://` or `hf://`.

    `base` is what both were trained on: a pipeline folder, a Hub id or an alias. Raises as an export does for what
    cannot be read, or does not fit the base.
    """
    import tempfile

    from adapterline.families.base import open_base

    with tempfile.TemporaryDirectory(prefix="adapterline-") as folder:
        work = Path(folder)
        opened = open_base(base, work / "base")
        new, old = (_read(each, opened, work / str(number)) for number, each in enumerate((uri, before)))
        return drift(new, old)


def latest_of(name: str, to: tuple[str, ...], digest: str) -> Version | None:
    """What `latest` of a name points to at the first of these destinations that has one.

    None if there is none, and if it is the version `digest` already. PublishError for what cannot be read.
    """
    from adapterline.destinations import open_destination
    from adapterline.values import LATEST

    for uri in to:
        destination = open_destination(uri, name)
        if pointer := destination.aliases().get(LATEST):
            return None if pointer.digest == digest else next(iter(destination.versions(pointer.digest)), None)
    return None


def drift_from_latest(adapter: Adapter, latest: Version, base: Base, work: Path, settings: Settings) -> DriftFromLatest:
    """How far an adapter is from what was published before it; what that hinders is told in the answer.

    The version before is fetched to `work`, and placed on the same base.
    """
    told = {"before": latest.digest, "destination": latest.receipt.destination}
    try:
        found = drift(adapter, _read(latest.receipt.location, base, work))
    except AdapterlineError as error:
        return DriftFromLatest(components={}, not_measured=str(error), **told)
    return DriftFromLatest(components=found.components, beyond=_beyond(found, settings), **told)


def _read(uri: str, base: Base, work: Path) -> Adapter:
    from adapterline.checkpoints import load_checkpoint
    from adapterline.checkpoints.extract import extract
    from adapterline.values import ExportOptions

    options = ExportOptions()
    return extract(load_checkpoint(uri, options, work), base, options)


def _beyond(found: Drift, settings: Settings) -> tuple[str, ...]:
    return tuple(why for name, component in found.components.items() for why in _far(name, component, settings))


def _far(name: str, found: ComponentDrift, settings: Settings) -> list[str]:
    if found.cosine is None:
        did = "it is adapted, and was not before" if found.norm else "it was adapted, and is not any more"
        return [f"{name}: {did}"] if found.norm or found.before else []
    far = []
    if found.cosine < settings.drift_cosine:
        far.append(f"{name}: cosine {found.cosine:.3f}, expected {settings.drift_cosine:g} or more")
    ratio = found.norm / found.before
    most = settings.drift_ratio
    if not 1 / most <= ratio <= most:
        far.append(f"{name}: {ratio:.3g} times the norm, expected {1 / most:.2g} to {most:g} times")
    return far


# --- arithmetic -------------------------------------------------------------------------------------------------------


class _Form(NamedTuple):
    """scale * b @ a, in float64; without b, scale * a."""

    a: torch.Tensor
    b: torch.Tensor | None
    scale: float


def _component(new: Mapping[str, Delta], old: Mapping[str, Delta]) -> ComponentDrift:
    modules, squares = {}, [0.0, 0.0, 0.0]
    for name in dict.fromkeys((*new, *old)):
        one, other = _form(new.get(name)), _form(old.get(name))
        found = (_inner(one, one), _inner(other, other), _inner(one, other))
        modules[name] = ModuleDrift(**_measured(*found))
        squares = [total + each for total, each in zip(squares, found, strict=True)]
    return ComponentDrift(**_measured(*squares), modules=modules)


def _measured(square: float, square_before: float, inner: float) -> dict[str, float | None]:
    norm, before = math.sqrt(max(square, 0.0)), math.sqrt(max(square_before, 0.0))
    cosine = max(-1.0, min(1.0, inner / norm / before)) if norm and before else None
    return {"norm": norm, "before": before, "cosine": cosine}


def _form(delta: Delta | None) -> _Form | None:
    import torch

    if delta is None:
        return None
    factors = delta.low_rank()
    b, a = factors.matrices()
    # A whole weight has an identity for its other factor: multiplied by it, it costs the cube of the layer's width.
    for whole, other in ((a, b), (b, a)):
        rank = other.shape[0]
        if other.shape[0] == other.shape[1] and torch.equal(other, torch.eye(rank, dtype=other.dtype)):
            return _Form(whole, None, factors.scale)
    return _Form(a, b, factors.scale)


def _inner(one: _Form | None, other: _Form | None) -> float:
    """<dW, dW'>; 0 where there is none."""
    if one is None or other is None:
        return 0.0
    if one.b is None and other.b is not None:
        one, other = other, one
    if one.b is None:
        product = one.a * other.a
    elif other.b is None:
        product = (one.b.T @ other.a) * one.a
    else:
        product = (one.b.T @ other.b) * (one.a @ other.a.T)
    return float(product.sum()) * one.scale * other.scale
