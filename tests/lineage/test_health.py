"""How the line fares, counted by the database as it would be counted by hand."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from adapterline.errors import UsageError
from adapterline.lineage import Index
from adapterline.lineage.database import Database
from adapterline.lineage.health_answers import Health, Outcomes
from adapterline.values import ComponentDrift, DriftFromLatest, Package
from tests.lineage.nights import NOW, OUTCOMES, Nights, fill
from tests.lineage.recorded import keep, publish, record_of, sweep_of
from tests.servers import postgresql


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'index.sqlite'}"


def _counted(records: list[dict[str, Any]]) -> Outcomes:
    found = Counter(record["outcome"] for record in records)
    return Outcomes(**{outcome.replace("already-exported", "already"): found[outcome] for outcome in OUTCOMES})


def _seconds(records: list[dict[str, Any]]) -> list[float]:
    exported = (record for record in records if record["outcome"] == "exported")
    return sorted((record["ended_at"] - record["started_at"]).total_seconds() for record in exported)


def _is_counted_by_hand(health: Health, nights: Nights, days: int) -> None:
    assert [day.day for day in health.days] == [(NOW - timedelta(days=back)).date() for back in range(days)][::-1]
    for day in health.days:
        of_day = [record for record in nights.records if record["ended_at"].date() == day.day]
        assert day.outcomes == _counted(of_day)
        sizes = [version["size"] for version in nights.versions if version["created_at"].date() == day.day]
        assert day.bytes == sum(sizes)
        taken = _seconds(of_day)
        assert day.durations is not None
        assert (day.durations.count, day.durations.longest) == (len(taken), pytest.approx(taken[-1]))
        assert day.durations.median == pytest.approx(statistics.median_low(taken))
        assert day.durations.p95 == pytest.approx(taken[math.ceil(0.95 * len(taken)) - 1])
    window = [record for record in nights.records if record["ended_at"] >= health.since]
    assert health.outcomes == _counted(window)
    told = Counter((record["outcome"], record["error_type"]) for record in window if record["error_type"])
    assert {(each.outcome, each.error_type): each.count for each in health.errors} == told
    assert [each.count for each in health.errors] == sorted(told.values(), reverse=True)
    last = max((r for r in nights.records if r["outcome"] == "exported"), key=lambda record: record["ended_at"])
    assert health.last_export is not None
    assert (health.last_export.record, health.last_export.ended_at) == (last["id"], last["ended_at"])
    assert [each.model_dump() for each in health.waiting] == _waiting(nights, health.since)


def _waiting(nights: Nights, since: datetime) -> list[dict[str, Any]]:
    """Checkpoint by checkpoint: the runs that left it after the last one that did not."""
    found: dict[str, list[dict[str, Any]]] = {}
    for record in sorted(nights.records, key=lambda record: record["started_at"]):
        if record["outcome"] != "waiting":
            found.pop(record["checkpoint"], None)
        elif record["ended_at"] >= since:
            found.setdefault(record["checkpoint"], []).append(record)
    rows = [
        {
            "checkpoint": checkpoint,
            "name": max(run["name"] for run in runs),
            "since": runs[0]["started_at"],
            "runs": len(runs),
        }
        for checkpoint, runs in found.items()
    ]
    return sorted(rows, key=lambda row: (row["since"], row["checkpoint"]))


def test_each_day_is_counted_as_by_hand(url: str) -> None:
    nights = fill(url, 4000)
    for days in (1, 30):
        _is_counted_by_hand(Index(url).health(days, NOW), nights, days)


def test_what_ended_later_is_not_counted(url: str) -> None:
    nights, then = fill(url, 2000), NOW - timedelta(days=10)
    health, measures = Index(url).health(5, then), Index(url).measures(then)
    assert health.outcomes == _counted([r for r in nights.records if health.since <= r["ended_at"] <= then])
    assert measures.recent == _counted([r for r in nights.records if then - timedelta(days=1) <= r["ended_at"] <= then])
    assert sum(each.count for each in health.errors) == sum(
        (health.outcomes.waiting, health.outcomes.refused, health.outcomes.failed)
    )


@pytest.mark.slow
def test_postgres_counts_as_sqlite_does(url: str) -> None:
    with postgresql() as address:
        other = f"postgresql://{address}"
        nights = fill(other, 4000)
        fill(url, 4000)
        _is_counted_by_hand(Index(other).health(30, NOW), nights, 30)
        assert Index(other).health(30, NOW) == Index(url).health(30, NOW)
        assert Index(other).measures(NOW) == Index(url).measures(NOW)


def test_nothing_is_known_of_an_empty_index(url: str) -> None:
    health = Index(url).health(7, NOW)
    assert [day.outcomes for day in health.days] == [Outcomes()] * 7
    assert {day.durations for day in health.days} == {None}
    assert (health.outcomes.success_ratio, health.outcomes.failure_ratio) == (None, None)
    assert (health.last_sweep, health.last_export, health.waiting, health.errors) == (None, None, (), ())


def test_who_waits_counts_in_no_ratio_and_a_refusal_is_no_failure() -> None:
    outcomes = Outcomes(exported=4, already=2, validated=1, waiting=90, refused=2, failed=1)
    assert (outcomes.success_ratio, outcomes.failure_ratio) == (0.7, 0.1)


@pytest.mark.parametrize("days", [0, -1, 3661])
def test_a_time_that_is_none_is_refused(url: str, days: int) -> None:
    with pytest.raises(UsageError, match=f"{days} days"):
        Index(url).health(days)


def test_what_a_run_left_is_in_it(records: Path, tmp_path: Path, make: Callable[..., Package]) -> None:
    """Through the line's own records: the last sweep, bytes, errors, what waits and what waits no more."""
    package, index = make(1), Index()
    drift = DriftFromLatest(
        before="0" * 64,
        destination="s3://adapters",
        components={"unet": ComponentDrift(norm=3, before=2, cosine=0.5, modules={})},
    )
    record = keep(record_of(package, *publish(package, str(tmp_path / "out")), day=1, drift=drift))
    waiting = {"outcome": "waiting", "error": "cut", "error_type": "CheckpointIncompleteError"}
    keep(record_of(None, day=2, checkpoint="s3://runs/a", **waiting))
    keep(record_of(None, day=3, checkpoint="s3://runs/a", **waiting))
    keep(record_of(None, id="b" * 12, day=2, checkpoint="s3://runs/b", **waiting))
    failed = {"outcome": "failed", "error": "No.", "error_type": "PublishError"}
    keep(record_of(None, id="c" * 12, day=3, checkpoint="s3://runs/b", **failed))
    for day in (2, 3):
        index.add_sweep(sweep_of(day, exported=day))
    now = datetime(2026, 5, 3, 12, tzinfo=UTC)
    health = index.health(3, now)
    assert health.last_sweep == sweep_of(3, exported=3)
    assert health.last_export is not None
    assert (health.last_export.name, health.last_export.ended_at) == ("tiny", record.ended_at)
    assert [(each.checkpoint, each.runs) for each in health.waiting] == [("s3://runs/a", 2)]
    assert [day.bytes for day in health.days] == [sum(file.size for file in package.manifest.files), 0, 0]
    assert {each.error_type: each.count for each in health.errors} == {
        "CheckpointIncompleteError": 3,
        "PublishError": 1,
    }
    measures = index.measures(now)
    assert [(each.name, each.component, each.cosine, each.norm_ratio) for each in measures.drifts] == [
        ("tiny", "unet", 0.5, 1.5)
    ]
    assert (measures.recent.failed, measures.recent.waiting) == (1, 1)
    assert (measures.names, measures.versions, measures.outcomes.exported) == (1, 1, 1)


def test_drift_is_told_of_the_newest_version_of_names_of_a_week(url: str) -> None:
    nights = fill(url, 4000, names=700)
    by_name: dict[str, dict[str, Any]] = {}
    for version in sorted(nights.versions, key=lambda version: version["created_at"]):
        by_name[version["name"]] = version
    recent = [each for each in by_name.values() if each["created_at"] >= NOW - timedelta(days=7)]
    cosines = {drift["version"]: drift["cosine"] for drift in nights.drifts}
    told = Index(url).measures(NOW).drifts
    assert {each.name: each.cosine for each in told} == {each["name"]: cosines[each["id"]] for each in recent}
    many = fill(f"{url}.many", 6000, days=6, names=2000)
    assert len({version["name"] for version in many.versions}) > 500
    assert len(Index(f"{url}.many").measures(NOW).drifts) == 500


# --- how fast ---------------------------------------------------------------------------------------------------------


def _plans(url: str, ask: Callable[[Index], object]) -> Iterator[str]:
    """How the database goes about each statement that the question needs."""
    index, seen = Index(url), []
    event.listen(index._database._engine, "before_cursor_execute", lambda *all_: seen.append(all_[2:4]))
    ask(index)
    database = Database(url)
    with database.reading() as connection:
        for statement, parameters in seen:
            if statement.startswith("SELECT") and "alembic_version" not in statement:
                rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
                yield "\n".join(str(row[-1]) for row in rows)
    database.close()


def test_no_row_is_read_of_what_is_counted_by_time(url: str) -> None:
    fill(url, 500)
    plans = list(_plans(url, lambda index: index.health(30, NOW)))
    by_time = [plan for plan in plans if "records_by_end" in plan]
    assert len(by_time) == 5
    covered = [plan for plan in by_time if "COVERING INDEX records_by_end (outcome=? AND ended_at>? AND" in plan]
    assert len(covered) == 3  # outcomes, durations, errors
    assert any("COVERING INDEX versions_by_outcome (outcome=? AND created_at>? AND" in plan for plan in plans)
    assert not [plan for plan in plans if "SCAN records" in plan or "SCAN versions" in plan]
