"""What the index answers of how the line fares: see `Index.health` and `Index.measures`."""

from __future__ import annotations

from datetime import date

from pydantic import AwareDatetime, Field

from adapterline.values import SweepRecord
from adapterline.values.base import Value


class Outcomes(Value):
    """How many runs of the line ended how."""

    exported: int = 0
    already: int = Field(0, description="already-exported: found done, and whole")
    validated: int = 0
    waiting: int = Field(0, description="left to a later run, which has an end of its own")
    refused: int = 0
    failed: int = 0

    @property
    def ended(self) -> int:
        """All but those that wait."""
        return self.succeeded + self.refused + self.failed

    @property
    def succeeded(self) -> int:
        """Those that did what they were asked for."""
        return self.exported + self.already + self.validated

    @property
    def success_ratio(self) -> float | None:
        """Between 0 and 1; of those that ended. None where none did."""
        return self.succeeded / self.ended if self.ended else None

    @property
    def failure_ratio(self) -> float | None:
        """The same of failures. A refusal is none: it is an answer."""
        return self.failed / self.ended if self.ended else None


class Durations(Value):
    """How long the runs that exported something took, in seconds, by the clock of their workers."""

    count: int
    median: float
    p95: float = Field(description="nineteen of twenty took no longer")
    longest: float


class Day(Value):
    """One day in UTC, by when runs ended."""

    day: date
    outcomes: Outcomes
    durations: Durations | None = Field(description="null: nothing was exported")
    bytes: int = Field(description="of versions that were published first on this day")


class ErrorCount(Value):
    """How many runs ended with this error."""

    outcome: str = Field(description="waiting, refused or failed")
    error_type: str = Field(description="its class in adapterline.errors")
    count: int


class LastExport(Value):
    """The export that ended last."""

    record: str = Field(description="its id")
    name: str
    digest: str
    ended_at: AwareDatetime


class WaitingEntry(Value):
    """A checkpoint that was not whole yet when it was looked at last."""

    checkpoint: str
    name: str | None
    since: AwareDatetime = Field(description="the begin of the first run that left it")
    runs: int = Field(description="how often it was left since")


class Health(Value):
    """How the line fares: over a time, and now."""

    since: AwareDatetime = Field(description="midnight in UTC")
    until: AwareDatetime
    outcomes: Outcomes = Field(description="of the whole time")
    days: tuple[Day, ...] = Field(description="each day, also one without a run; the oldest first")
    errors: tuple[ErrorCount, ...] = Field(description="of the whole time, the most frequent first")
    last_sweep: SweepRecord | None = Field(description="whenever it was")
    last_export: LastExport | None = Field(description="whenever it was")
    waiting: tuple[WaitingEntry, ...] = Field(description="since a time in the window; the longest first")


class DriftGauge(Value):
    """How far a component of a name's newest version is from what `latest` was before it."""

    name: str
    component: str
    cosine: float | None = Field(description="null where one of both is nothing")
    norm_ratio: float | None = Field(description="its norm by the norm of the one before; null where that was nothing")


class Measures(Value):
    """What is worth measuring every minute."""

    at: AwareDatetime
    names: int
    versions: int
    bytes: int = Field(description="of all versions")
    outcomes: Outcomes = Field(description="of every run")
    recent: Outcomes = Field(description="of the last 24 hours")
    errors: tuple[ErrorCount, ...] = Field(description="of the last 24 hours")
    durations: Durations | None = Field(description="of the last 24 hours")
    last_sweep: SweepRecord | None
    last_export: LastExport | None
    waiting: tuple[WaitingEntry, ...] = Field(description="since a time in the last 30 days")
    drifts: tuple[DriftGauge, ...] = Field(
        description="of the names that were exported last, at most 500, and none longer than 7 days ago"
    )
