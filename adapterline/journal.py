"""The account of one run as it goes on; whatever ends it, a record says so."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from adapterline.errors import AdapterlineError, RefusedError, UsageError, ValidationFailedError
from adapterline.lineage.records import NO_KEY
from adapterline.values import (
    DriftFromLatest,
    ExportOptions,
    FlowRun,
    Gallery,
    LineageRecord,
    Manifest,
    Publication,
    RenderedImage,
    TrainingRun,
    ValidationReport,
)

Outcome = Literal["exported", "already-exported", "validated", "waiting", "refused", "failed"]


@dataclass
class Journal:
    """What is known so far of one run."""

    checkpoint: str
    name: str | None
    to: tuple[str, ...]
    run: TrainingRun | None
    options: ExportOptions
    flow_run: FlowRun | None = None
    key: str = NO_KEY
    manifest: Manifest | None = None
    report: ValidationReport | None = None
    images: tuple[RenderedImage, ...] = ()
    drift: DriftFromLatest | None = None
    stated_run: TrainingRun | None = None
    publications: list[Publication] = field(default_factory=list)
    id: str = field(default_factory=lambda: secrets.token_hex(6))
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    def named(self, name: str) -> str:
        """Notes the name that was decided, and gives it."""
        self.name = name
        return name

    def proven(self, report: ValidationReport, gallery: Gallery | None) -> None:
        """Notes the proof, and what was rendered."""
        self.report, self.images = report, gallery.images if gallery else ()

    def exported(self) -> LineageRecord:
        """The record of an export that is published."""
        return self._record("exported")

    def validated(self) -> LineageRecord:
        """The record of a dry run."""
        return self._record("validated")

    def already(self, earlier: LineageRecord) -> LineageRecord:
        """The record of a run that found its work done."""
        return self._record(
            "already-exported",
            manifest=earlier.manifest,
            publications=earlier.publications,
            earlier=earlier.id,
        )

    def waiting(self, error: AdapterlineError) -> LineageRecord:
        """The record of a run that leaves its work to a later one."""
        return self._record("waiting", error=str(error), error_type=type(error).__name__)

    @contextlib.contextmanager
    def keeping(self, keep: Callable[[LineageRecord], Any]) -> Iterator[None]:
        """Whatever is raised inside is recorded by `keep`, and raised on. A record that fails hides nothing."""
        try:
            yield
        except Exception as error:
            with contextlib.suppress(Exception):
                keep(self._failed(error))
            raise

    def _failed(self, error: Exception) -> LineageRecord:
        refused = isinstance(error, RefusedError | UsageError)
        return self._record(
            "refused" if refused else "failed",
            error=str(error),
            error_type=type(error).__name__,
            exit_code=error.exit_code if isinstance(error, AdapterlineError) else 1,
            report=error.report if isinstance(error, ValidationFailedError) else self._more_than_manifest(),
        )

    def _record(self, outcome: Outcome, **more: Any) -> LineageRecord:
        fields: dict[str, Any] = {
            "id": self.id,
            "key": self.key,
            "outcome": outcome,
            "started_at": self.started_at,
            "ended_at": datetime.now(UTC),
            "checkpoint": self.checkpoint,
            "name": self.name,
            "to": self.to,
            "options": self.options,
            "run": self.run,
            "stated_run": self.stated_run,
            "flow_run": self.flow_run,
            "manifest": self.manifest,
            "publications": tuple(self.publications),
            "report": self._more_than_manifest(),
            "images": self.images,
            "drift": self.drift,
        }
        return LineageRecord(**(fields | more))

    def _more_than_manifest(self) -> ValidationReport | None:
        """The report, where it has what no manifest may say: what hangs on weights, and on the machine."""
        return self.report if self.report and self.report != self.report.of_every_machine() else None
