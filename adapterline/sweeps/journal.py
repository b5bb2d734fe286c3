"""What a sweep has come to so far, so that one that breaks off leaves it too."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from adapterline.sweeps.summary import SweepItem, SweepSummary
from adapterline.values import FlowRun, SweepRecord


@dataclass
class SweepJournal:
    """Of one sweep. `found` counts what it met; `items` has those of which the outcome is known."""

    roots: tuple[str, ...]
    to: tuple[str, ...]
    steps: str
    deployment: str | None
    flow_run: FlowRun | None = None
    found: int = 0
    items: list[SweepItem] = field(default_factory=list)
    id: str = field(default_factory=lambda: secrets.token_hex(6))
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    def summary(self) -> SweepSummary:
        """Every checkpoint of which the outcome is known."""
        items = sorted(self.items, key=lambda item: (item.checkpoint, -1 if item.step is None else item.step))
        return SweepSummary(roots=self.roots, steps=self.steps, items=tuple(items))

    @contextlib.contextmanager
    def keeping(self, keep: Callable[[SweepRecord], Any]) -> Iterator[None]:
        """Has `keep` record the sweep, whole or broken off, by a signal too. A record that fails hides no error.

        Of a process that is killed outright nothing is left: then the newest sweep is one of another day.
        """
        try:
            yield
        except BaseException as error:
            with contextlib.suppress(Exception):
                keep(self.record(error))
            raise
        keep(self.record())

    def record(self, error: BaseException | None = None) -> SweepRecord:
        """Of the sweep as it is now; `error` broke it off."""
        return SweepRecord(
            id=self.id,
            started_at=self.started_at,
            ended_at=datetime.now(UTC),
            roots=self.roots,
            to=self.to,
            steps=self.steps,
            deployment=self.deployment,
            flow_run=self.flow_run,
            found=self.found,
            **self.summary().counts,
            told=sum(item.told for item in self.items if item.outcome == "refused"),
            error=str(error) if error else None,
            error_type=type(error).__name__ if error else None,
        )
