"""How the line fares, as charts over days."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from adapterline.dashboard.charts import LineChart, line_chart
from adapterline.lineage.health_answers import Day, Health


@dataclass(frozen=True)
class HealthView:
    """`days` are the newest first, for the table that says what the charts draw."""

    days: tuple[Day, ...]
    runs: LineChart
    durations: LineChart
    sizes: LineChart


def view_of(found: Health) -> HealthView:
    """Runs by how they ended, how long exports took, and what was published, day by day."""
    steps = [f"{day.day:%Y-%m-%d}" for day in found.days]

    def over(value: Callable[[Day], float | None]) -> list[float | None]:
        return [value(day) for day in found.days]

    runs = {
        "succeeded": over(lambda day: day.outcomes.succeeded),
        "refused": over(lambda day: day.outcomes.refused),
        "failed": over(lambda day: day.outcomes.failed),
    }
    durations = {
        "median": over(lambda day: day.durations.median if day.durations else None),
        "95 %": over(lambda day: day.durations.p95 if day.durations else None),
    }
    sizes = {"MB": over(lambda day: day.bytes / 1e6)}
    days = tuple(day for day in reversed(found.days) if day.outcomes.ended or day.bytes)
    return HealthView(days, line_chart(steps, runs), line_chart(steps, durations), line_chart(steps, sizes))
