"""How far two adapters are from each other: norms of what they do to the weights, and the cosine between them.

Of changes dW = s B A and dW' = s' B' A' the inner product is s s' <B^T B', A A'^T>: two matrices of rank x rank,
whatever the layer's size, and dW itself is never made. In float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from adapterline.values.base import Value

if TYPE_CHECKING:
    from adapterline.deltas import Delta
    from adapterline.values import Adapter


class ModuleDrift(Value):
    """One adapted layer of two adapters. A norm is 0 where one of them leaves the layer alone."""

    norm: float = Field(description="Frobenius norm of the weight's change")
    before: float = Field(description="the same of the other adapter")
    cosine: float | None = Field(description="between both changes; null where one of them is nothing")


class ComponentDrift(ModuleDrift):
    """A component, as one long vector of all its layers' changes."""

    modules: dict[str, ModuleDrift] = Field(description="name of the layer -> its own")


class Drift(Value):
    """What one adapter does to the weights, beside what another one did."""

    components: dict[str, ComponentDrift]


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
    from pathlib import Path

    from adapterline.checkpoints import load_checkpoint
    from adapterline.checkpoints.extract import extract
    from adapterline.families.base import open_base
    from adapterline.values import ExportOptions

    with tempfile.TemporaryDirectory(prefix="adapterline-") as folder:
        work, options = Path(folder), ExportOptions()
        opened = open_base(base, work / "base")
        new, old = (
            extract(load_checkpoint(each, options, work / str(number)), opened, options)
            for number, each in enumerate((uri, before))
        )
        return drift(new, old)


def _component(new: Mapping[str, Delta], old: Mapping[str, Delta]) -> ComponentDrift:
    modules, squares = {}, [0.0, 0.0, 0.0]
    for name in dict.fromkeys((*new, *old)):
        one, other = new.get(name), old.get(name)
        found = (_inner(one, one), _inner(other, other), _inner(one, other))
        modules[name] = ModuleDrift(**_measured(*found))
        squares = [total + each for total, each in zip(squares, found, strict=True)]
    return ComponentDrift(**_measured(*squares), modules=modules)


def _measured(square: float, square_before: float, inner: float) -> dict[str, float | None]:
    norm, before = math.sqrt(max(square, 0.0)), math.sqrt(max(square_before, 0.0))
    cosine = max(-1.0, min(1.0, inner / norm / before)) if norm and before else None
    return {"norm": norm, "before": before, "cosine": cosine}


def _inner(one: Delta | None, other: Delta | None) -> float:
    """<dW, dW'>; 0 where there is none."""
    if one is None or other is None:
        return 0.0
    left, right = one.low_rank(), other.low_rank()
    (b, a), (b_, a_) = left.matrices(), right.matrices()
    return float(((b.T @ b_) * (a @ a_.T)).sum()) * left.scale * right.scale
