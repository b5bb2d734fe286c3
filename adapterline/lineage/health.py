"""How the line fares: what its runs came to, day by day and now.

What is counted of a time lies in two indexes (`records_by_end`, `versions_by_outcome`), and is counted by the database.
Of durations it gives every one: neither SQLite nor an index has percentiles, and sorting integers here is faster.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime, time, timedelta
from typing import Any, Final

from sqlalchemy import BigInteger, ColumnElement, Connection, and_, exists, func, literal, select, type_coerce

from adapterline.errors import UsageError
from adapterline.lineage import tables as t
from adapterline.lineage.health_answers import (
    Day,
    DriftGauge,
    Durations,
    ErrorCount,
    Health,
    LastExport,
    Measures,
    Outcomes,
    WaitingEntry,
)
from adapterline.lineage.queries import sweeps

_R, _V, _D = t.records.c, t.versions.c, t.drifts.c
#: The outcome of a record -> its field of `Outcomes`.
FIELDS: Final = {
    "exported": "exported",
    "already-exported": "already",
    "validated": "validated",
    "waiting": "waiting",
    "refused": "refused",
    "failed": "failed",
}
_TOLD: Final = ("waiting", "refused", "failed")  # the outcomes with an error
_DAY = timedelta(days=1)
_MICROSECOND = timedelta(microseconds=1)
_MOST_DAYS: Final = 3660
_MOST_DRIFTS: Final = 500
_DRIFTS_FOR = timedelta(days=7)
_WAITING_FOR = timedelta(days=30)


def health(connection: Connection, days: int, now: datetime) -> Health:
    """See `Index.health`."""
    if not 1 <= days <= _MOST_DAYS:
        raise UsageError(f"{days} days were asked for.", expected=f"1 to {_MOST_DAYS}")
    first = now.astimezone(UTC).date() - (days - 1) * _DAY
    since = datetime.combine(first, time(), UTC)
    outcomes = _outcomes_by_day(connection, since, now)
    durations = _durations_by_day(connection, since, now)
    sizes = _bytes_by_day(connection, since, now)
    return Health(
        since=since,
        until=now,
        outcomes=_outcomes(_summed(outcomes.values())),
        days=tuple(
            Day(
                day=first + number * _DAY,
                outcomes=_outcomes(outcomes[number]),
                durations=_summary(durations[number]),
                bytes=sizes.get(number, 0),
            )
            for number in range(days)
        ),
        errors=_errors(connection, since, now),
        last_sweep=next(iter(sweeps(connection, limit=1).sweeps), None),
        last_export=_last_export(connection),
        waiting=_waiting(connection, since),
    )


def measures(connection: Connection, now: datetime) -> Measures:
    """See `Index.measures`."""
    yesterday = now - _DAY
    ever = connection.execute(select(_R.outcome, func.count()).group_by(_R.outcome))
    ended = select(_R.outcome, func.count()).where(*_ended(yesterday, now)).group_by(_R.outcome)
    taken = select(_microseconds(_R.ended_at) - _microseconds(_R.started_at))
    exported = taken.where(*_ended(yesterday, now, ("exported",)))
    names = select(_V.name).distinct().subquery()
    number, size = connection.execute(select(func.count(), func.coalesce(func.sum(_V.size), 0))).one()
    return Measures(
        at=now,
        names=connection.execute(select(func.count()).select_from(names)).scalar_one(),
        versions=number,
        bytes=int(size),
        outcomes=_outcomes({outcome: count for outcome, count in ever}),
        recent=_outcomes({outcome: count for outcome, count in connection.execute(ended)}),
        errors=_errors(connection, yesterday, now),
        durations=_summary(list(connection.execute(exported).scalars())),
        last_sweep=next(iter(sweeps(connection, limit=1).sweeps), None),
        last_export=_last_export(connection),
        waiting=_waiting(connection, now - _WAITING_FOR),
        drifts=_drifts(connection, now),
    )


# --- by day -----------------------------------------------------------------------------------------------------------


def _outcomes_by_day(connection: Connection, since: datetime, until: datetime) -> dict[int, dict[str, int]]:
    day = _day_of(_R.ended_at, since).label("day")
    found: dict[int, dict[str, int]] = defaultdict(dict)
    asked = select(_R.outcome, day, func.count()).where(*_ended(since, until)).group_by(_R.outcome, day)
    for outcome, number, count in connection.execute(asked):
        found[number][outcome] = count
    return found


def _durations_by_day(connection: Connection, since: datetime, until: datetime) -> dict[int, list[int]]:
    taken = _microseconds(_R.ended_at) - _microseconds(_R.started_at)
    found: dict[int, list[int]] = defaultdict(list)
    asked = select(_day_of(_R.ended_at, since), taken).where(*_ended(since, until, ("exported",)))
    for number, duration in connection.execute(asked):
        found[number].append(duration)
    return found


def _bytes_by_day(connection: Connection, since: datetime, until: datetime) -> dict[int, int]:
    day = _day_of(_V.created_at, since).label("day")
    made = and_(_V.outcome == "exported", _V.created_at >= since, _V.created_at <= until)
    asked = select(day, func.sum(_V.size)).where(made).group_by(day)
    return {number: int(size) for number, size in connection.execute(asked)}


def _ended(since: datetime, until: datetime, outcomes: Iterable[str] = FIELDS) -> tuple[ColumnElement[bool], ...]:
    # All outcomes are named, because the index begins with them.
    return (_R.outcome.in_(list(outcomes)), _R.ended_at >= since, _R.ended_at <= until)


def _day_of(moment: Any, since: datetime) -> ColumnElement[int]:
    first = (since - datetime(1970, 1, 1, tzinfo=UTC)) // _MICROSECOND
    return (_microseconds(moment) - literal(first, BigInteger)) // literal(_DAY // _MICROSECOND, BigInteger)


def _microseconds(moment: Any) -> ColumnElement[int]:
    return type_coerce(moment, BigInteger)


def _summed(days: Iterable[dict[str, int]]) -> dict[str, int]:
    total: dict[str, int] = defaultdict(int)
    for day in days:
        for outcome, count in day.items():
            total[outcome] += count
    return total


def _outcomes(counts: dict[str, int]) -> Outcomes:
    return Outcomes(**{field: counts.get(outcome, 0) for outcome, field in FIELDS.items()})


def _summary(taken: list[int]) -> Durations | None:
    """Of microseconds. A percentile is one of them: the smallest that so many do not exceed (nearest rank)."""
    if not taken:
        return None
    taken.sort()
    median, p95 = (taken[math.ceil(share * len(taken)) - 1] / 1e6 for share in (0.5, 0.95))
    return Durations(count=len(taken), median=median, p95=p95, longest=taken[-1] / 1e6)


# --- now --------------------------------------------------------------------------------------------------------------


def _errors(connection: Connection, since: datetime, until: datetime) -> tuple[ErrorCount, ...]:
    number = func.count().label("number")
    asked = select(_R.outcome, _R.error_type, number).where(*_ended(since, until, _TOLD), _R.error_type.is_not(None))
    rows = connection.execute(
        asked.group_by(_R.outcome, _R.error_type).order_by(number.desc(), _R.error_type, _R.outcome)
    )
    return tuple(ErrorCount(outcome=outcome, error_type=error, count=count) for outcome, error, count in rows)


def _last_export(connection: Connection) -> LastExport | None:
    newest = select(_R.id, _R.name, _R.digest, _R.ended_at).where(_R.outcome == "exported")
    row = connection.execute(newest.order_by(_R.ended_at.desc()).limit(1)).first()
    return LastExport(record=row.id, name=row.name, digest=row.digest, ended_at=row.ended_at) if row else None


def _waiting(connection: Connection, since: datetime) -> tuple[WaitingEntry, ...]:
    """A checkpoint whose newest run left it. Its earlier ones count back to the last that ended otherwise."""
    later = t.records.alias("later")
    ended = exists().where(
        later.c.checkpoint == _R.checkpoint, later.c.outcome != "waiting", later.c.started_at >= _R.started_at
    )
    first = func.min(_R.started_at).label("since")
    asked = (
        select(_R.checkpoint, func.max(_R.name).label("name"), first, func.count().label("runs"))
        .where(_R.outcome == "waiting", _R.ended_at >= since, ~ended)
        .group_by(_R.checkpoint)
        .order_by(first, _R.checkpoint)
    )
    return tuple(
        WaitingEntry(checkpoint=checkpoint, name=name, since=since_, runs=runs)
        for checkpoint, name, since_, runs in connection.execute(asked)
    )


def _drifts(connection: Connection, now: datetime) -> tuple[DriftGauge, ...]:
    made = func.max(_V.created_at).label("made")
    recent = select(_V.name, made).where(_V.outcome == "exported", _V.created_at >= now - _DRIFTS_FOR)
    newest = recent.group_by(_V.name).order_by(made.desc(), _V.name).limit(_MOST_DRIFTS).subquery()
    rows = connection.execute(
        select(_V.name, _D.component, _D.norm, _D.norm_before, _D.cosine)
        .join(newest, and_(newest.c.name == _V.name, newest.c.made == _V.created_at))
        .join(t.drifts, _D.version == _V.id)
        .where(_V.outcome == "exported")  # so that the join has an index: what it is joined with is exported anyway
        .order_by(_V.name, _D.component, _V.digest)
    )
    # Two versions of one microsecond are one gauge.
    found = {(name, component): (norm, before, cosine) for name, component, norm, before, cosine in rows}
    return tuple(
        DriftGauge(name=name, component=component, cosine=cosine, norm_ratio=norm / before if before else None)
        for (name, component), (norm, before, cosine) in found.items()
    )
