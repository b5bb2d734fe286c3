"""Nights of runs, as rows of the index alone: many, and at once."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import insert

from adapterline.lineage import tables as t
from adapterline.lineage.database import Database

NOW = datetime(2026, 5, 20, 9, 30, tzinfo=UTC)
OUTCOMES = ("exported", "already-exported", "validated", "waiting", "refused", "failed")
ERRORS = {
    "waiting": ("CheckpointIncompleteError",),
    "refused": ("CheckpointError", "ConversionError", "ValidationFailedError"),
    "failed": ("MachineError", "PublishError", "OSError"),
}


@dataclass(frozen=True)
class Nights:
    """The rows, as they were inserted."""

    records: list[dict[str, Any]]
    versions: list[dict[str, Any]]
    drifts: list[dict[str, Any]]


def fill(url: str, runs: int, days: int = 40, names: int = 50, seed: int = 7) -> Nights:
    """So many runs that ended in the `days` before `NOW`, on names of which each exported run makes a version."""
    drawn = random.Random(seed)
    nights = Nights([], [], [])
    for number in range(runs):
        outcome = drawn.choices(OUTCOMES, (60, 15, 5, 5, 10, 5))[0]
        ended = NOW - timedelta(seconds=drawn.uniform(0, days * 86400))
        started = ended - timedelta(seconds=drawn.lognormvariate(4, 1))
        name = f"style-{drawn.randrange(names)}"
        digest = hashlib.sha256(f"{seed}/{number}".encode()).hexdigest()
        record = {
            "id": f"{number:012x}",
            "outcome": outcome,
            "started_at": started,
            "ended_at": ended,
            "checkpoint": f"s3://runs/{number % (runs // 2 or 1)}",
            "name": name,
            "digest": digest if outcome == "exported" else None,
            "error_type": drawn.choice(ERRORS[outcome]) if outcome in ERRORS else None,
        }
        nights.records.append(record)
        if outcome == "exported":
            nights.versions.append(_version(len(nights.versions) + 1, record, drawn.randrange(10**8)))
            nights.drifts.append(_drift(len(nights.versions), record, drawn))
    database = Database(url)
    with database.writing() as connection:
        for table, rows in ((t.records, nights.records), (t.versions, nights.versions), (t.drifts, nights.drifts)):
            if rows:
                connection.execute(insert(table), rows)
    database.close()
    return nights


def _version(number: int, record: dict[str, Any], size: int) -> dict[str, Any]:
    texts = ("family", "base_model", "base_revision", "pipeline", "source_name", "source_digest")
    return {
        **dict.fromkeys(texts, "-"),
        "id": number,
        "name": record["name"],
        "digest": record["digest"],
        "outcome": "exported",
        "created_at": record["ended_at"],
        "size": size,
        "told_at": record["started_at"],
        "told_by": record["id"],
        "recorded": 1,
    }


def _drift(number: int, record: dict[str, Any], drawn: random.Random) -> dict[str, Any]:
    return {
        "version": number,
        "number": 0,
        "component": "unet",
        "before": "0" * 64,
        "norm": drawn.uniform(1, 2),
        "norm_before": drawn.uniform(1, 2),
        "cosine": drawn.uniform(-1, 1),
        "told_at": record["started_at"],
        "told_by": record["id"],
    }
