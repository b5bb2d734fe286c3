"""Runs of the line without the line: what they leave in the record store, in the index, and at places."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from adapterline.destinations import open_destination
from adapterline.lineage import Index
from adapterline.lineage.index import with_previous
from adapterline.lineage.records import open_records
from adapterline.settings import Settings
from adapterline.values import ExportOptions, LineageRecord, Package, Publication, SweepRecord, TrainingRun
from tests.packages import order_of

DAY = datetime(2026, 5, 1, tzinfo=UTC)


def record_of(package: Package | None, *publications: Publication, day: int = 1, **more: Any) -> LineageRecord:
    """A run on that day of May, with a manifest or without."""
    manifest = package.manifest if package else None
    fields: dict[str, Any] = {
        "id": f"{day:012x}",
        "key": f"{day:064x}",
        "outcome": "exported" if publications else "validated" if package else "refused",
        "started_at": DAY + timedelta(days=day - 1),
        "ended_at": DAY + timedelta(days=day - 1, minutes=3),
        "checkpoint": f"s3://runs/checkpoint-{day}",
        "name": manifest.name if manifest else None,
        "to": tuple(each.receipt.destination for each in publications),
        "options": ExportOptions(),
        "run": manifest.training_run if manifest else None,
        "manifest": manifest,
        "publications": publications,
    }
    return LineageRecord(**(fields | more))


def publish(package: Package, *places: str, day: int = 1) -> tuple[Publication, ...]:
    """At every place, as the line does it."""
    published = []
    for uri in places:
        place = open_destination(uri, package.name)
        published.append(place.release(package, place.stage(package), order_of(day)))
    return tuple(published)


def keep(record: LineageRecord) -> LineageRecord:
    """What the step `record` does."""
    record = with_previous(record)
    open_records(Settings().records).append(record)
    Index().add(record)
    return record


def export(package: Package, *places: str, day: int = 1, **more: Any) -> LineageRecord:
    """Published, recorded and indexed."""
    return keep(record_of(package, *publish(package, *places, day=day), day=day, **more))


def run(run_id: str, **more: Any) -> TrainingRun:
    return TrainingRun(run_id=run_id, finished_at=DAY, **more)


def index_file(records: Path) -> Path:
    """Where the fixture `records` has the index."""
    return records.parent / "index.sqlite"


def sweep_of(day: int = 1, **more: Any) -> SweepRecord:
    """A sweep on that day of May, at three o'clock."""
    at = DAY + timedelta(days=day - 1, hours=3)
    counts = {outcome: more.get(outcome, 0) for outcome in ("exported", "skipped", "unfinished", "refused", "failed")}
    fields: dict[str, Any] = {
        "id": f"{day:012x}",
        "started_at": at,
        "ended_at": at + timedelta(minutes=5),
        "roots": ("s3://runs",),
        "to": ("s3://adapters",),
        "steps": "final",
        "found": sum(counts.values()),
        "told": 0,
    }
    return SweepRecord(**(fields | counts | more))
