"""How the versions of a name moved: what each does to the weights, and how alike it is to the one before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from adapterline.dashboard.charts import LineChart, line_chart
from adapterline.lineage.answers import DriftEntry
from adapterline.values.drift import ComponentDrift


@dataclass(frozen=True)
class DriftView:
    """`entries` are the newest first, for the table that says what the charts draw."""

    entries: tuple[DriftEntry, ...]
    norm: LineChart
    cosine: LineChart


def drift_of(entries: Sequence[DriftEntry]) -> DriftView | None:
    """Of the entries of a name, the oldest first; None if no version of it was ever compared."""
    if not entries:
        return None
    digests = list(dict.fromkeys(entry.digest for entry in entries))
    steps = [digest[:12] for digest in digests]
    norm = line_chart(steps, _lines(entries, digests, lambda entry: entry.norm))
    cosine = line_chart(steps, _lines(entries, digests, lambda entry: entry.cosine), high=1.0)
    return DriftView(tuple(reversed(entries)), norm, cosine)


def farthest(component: ComponentDrift) -> list[tuple[str, float]]:
    """The three layers that turned the most, and their cosines."""
    turned = [(layer, each.cosine) for layer, each in component.modules.items() if each.cosine is not None]
    return sorted(turned, key=lambda each: (each[1], each[0]))[:3]


def _lines(
    entries: Sequence[DriftEntry], digests: Sequence[str], value: Callable[[DriftEntry], float | None]
) -> dict[str, list[float | None]]:
    """Component -> a value for every version, None where it was not compared."""
    told = {(entry.component, entry.digest): value(entry) for entry in entries}
    return {name: [told.get((name, digest)) for digest in digests] for name in sorted({name for name, _ in told})}
