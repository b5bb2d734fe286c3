"""Every question that the index is asked. Reads; writes nothing.

A hundred thousand versions take milliseconds: what is filtered and sorted by has an index, and only the rows of a page
are described.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Text, and_, func, literal, or_, select, union, union_all

from adapterline.lineage import tables as t
from adapterline.lineage.answers import (
    AliasEntry,
    Choices,
    ComponentEntry,
    Count,
    Counts,
    DigestMatch,
    DriftEntry,
    FailureGroup,
    Failures,
    PlaceEntry,
    Relative,
    RunEntry,
    RunFilter,
    RunPage,
    Sort,
    SweepPage,
    VersionEntry,
    VersionFilter,
    VersionPage,
)
from adapterline.lineage.writing import PREVIOUS, RESUMED
from adapterline.values import LATEST, Manifest, SweepRecord

DIGITS = re.compile(r"[0-9a-f]{8,64}")
_V, _R, _F, _A, _E = t.versions.c, t.records.c, t.files.c, t.aliases.c, t.edges.c
_SORTS: dict[Sort, Any] = {"created": _V.created_at, "finished": _V.finished_at, "name": _V.name, "size": _V.size}
_MOST_BASES = 20
_MOST_CHOICES = 100
_BATCH = 500  # ids in one statement


def versions(
    connection: Connection,
    wanted: VersionFilter,
    *,
    sort: Sort = "created",
    descending: bool = True,
    limit: int = 50,
    offset: int = 0,
) -> VersionPage:
    """One page, in an order that is the same every time, and the number of all."""
    where = _where_versions(wanted)
    total = connection.execute(select(func.count()).select_from(t.versions).where(*where)).scalar_one()
    columns = [_SORTS[sort], *(each for each in (_V.created_at, _V.name, _V.digest) if each is not _SORTS[sort])]
    if sort == "created":
        columns = [_V.created_at, _V.name, _V.digest]
    order = [column.desc() if descending else column.asc() for column in columns]
    if sort == "finished":
        order[0] = order[0].nulls_last()  # those that do not say when it finished; others have no nulls, but an index
    rows = connection.execute(select(t.versions).where(*where).order_by(*order).limit(limit).offset(offset)).all()
    return VersionPage(versions=entries(connection, rows), total=total)


def runs(connection: Connection, wanted: RunFilter, *, limit: int = 50, offset: int = 0) -> RunPage:
    """One page, the newest first, and the number of all."""
    where = _where_runs(wanted)
    total = connection.execute(select(func.count()).select_from(t.records).where(*where)).scalar_one()
    order = (_R.started_at.desc(), _R.id.desc())
    ids = connection.execute(select(_R.id).where(*where).order_by(*order).limit(limit).offset(offset)).scalars().all()
    return RunPage(runs=_run_entries(connection, ids), total=total)


def sweeps(connection: Connection, *, limit: int = 50, offset: int = 0) -> SweepPage:
    """One page, the newest first, and the number of all."""
    s = t.sweeps.c
    total = connection.execute(select(func.count()).select_from(t.sweeps)).scalar_one()
    rows = select(s.body).order_by(s.started_at.desc(), s.id.desc()).limit(limit).offset(offset)
    found = tuple(SweepRecord.model_validate_json(body) for body in connection.execute(rows).scalars())
    return SweepPage(sweeps=found, total=total)


def counts(connection: Connection) -> Counts:
    """What is there, in numbers."""
    number, size = connection.execute(select(func.count(), func.coalesce(func.sum(_V.size), 0))).one()
    # Counted so, PostgreSQL hashes the names; count(DISTINCT) would sort them.
    names = connection.execute(select(func.count()).select_from(select(_V.name).distinct().subquery())).scalar_one()
    by_outcome = _counted(connection, _R.outcome)
    return Counts(
        versions=number,
        bytes=int(size),
        names=names,
        runs=sum(each.count for each in by_outcome),
        by_outcome=by_outcome,
        by_family=_counted(connection, _V.family),
        by_base=_counted(connection, _V.base_model)[:_MOST_BASES],
    )


def _counted(connection: Connection, column: Any) -> tuple[Count, ...]:
    number = func.count().label("number")
    rows = connection.execute(select(column, number).group_by(column).order_by(number.desc(), column))
    return tuple(Count(value=value, count=count) for value, count in rows)


# --- one of them ------------------------------------------------------------------------------------------------------


def by_digest(connection: Connection, digits: str) -> list[int]:
    """Versions whose bundle, a file of it, the tensors of a file, or the checkpoint's digest begin with `digits`."""
    return _ids(
        connection,
        union(
            select(_V.id).where(_begins(_V.digest, digits)),
            select(_F.version).where(_begins(_F.sha256, digits)),
            select(_F.version).where(_begins(_F.tensors_sha256, digits)),
            select(_V.id).where(_begins(_V.source_digest, digits)),
        ),
    )


def by_alias(connection: Connection, name: str, alias: str) -> list[int]:
    """What an alias of a name points to, anywhere; also a version by digits of its digest."""
    pointed = select(_A.digest).where(_A.name == name, _A.alias == alias)
    found = _ids(connection, select(_V.id).where(_V.name == name, _V.digest.in_(pointed)))
    if found or not DIGITS.fullmatch(alias):
        return found
    return _ids(connection, select(_V.id).where(_V.name == name, _begins(_V.digest, alias)))


def by_name(connection: Connection, name: str) -> list[int]:
    """What `latest` of the name points to, if that is one version everywhere; else the newest."""
    if len(latest := by_alias(connection, name, LATEST)) == 1:
        return latest
    newest = select(_V.id).where(_V.name == name).order_by(_V.created_at.desc(), _V.digest.desc()).limit(1)
    return list(connection.execute(newest).scalars())


def by_run(connection: Connection, run_id: str) -> list[int]:
    """What a training run was exported to."""
    return _ids(connection, select(_V.id).where(_V.run_id == run_id))


def by_record(connection: Connection, record: str) -> list[int]:
    """What a run of the line made."""
    made = and_(_R.name == _V.name, _R.digest == _V.digest)
    return _ids(connection, select(_V.id).join(t.records, made).where(_R.id == record))


def by_checkpoint(connection: Connection, checkpoint: str) -> list[int]:
    """What a checkpoint was exported to, by the URI that was given or by its name."""
    made = and_(_R.name == _V.name, _R.digest == _V.digest)
    given = select(_V.id).join(t.records, made).where(_R.checkpoint == checkpoint)
    return _ids(connection, union(given, select(_V.id).where(_V.source_name == checkpoint)))


def runs_of(connection: Connection, what: str) -> list[str]:
    """Runs of the line that made nothing: by their own id, else the newest of a name, a checkpoint or a run."""
    for column in (_R.id, _R.name, _R.checkpoint, _R.run_id):
        found = select(_R.id).where(column == what).order_by(_R.started_at.desc(), _R.id.desc()).limit(1)
        if ids := list(connection.execute(found).scalars()):
            return ids
    return []


def by_file(connection: Connection, *, sha256: Iterable[str] = (), tensors: Iterable[str] = ()) -> list[Row[Any]]:
    """The rows of files with one of these digests."""
    same = or_(_F.sha256.in_(list(sha256)), _F.tensors_sha256.in_(list(tensors)))
    found = select(t.files).join(t.versions, _V.id == _F.version).where(same)
    return list(connection.execute(found.order_by(_V.created_at, _V.name, _V.digest, _F.number)))


def rows_of(connection: Connection, ids: Sequence[int]) -> list[Row[Any]]:
    """Rows of versions, the oldest first."""
    found = select(t.versions).where(_V.id.in_(ids)).order_by(_V.created_at, _V.name, _V.digest)
    return list(connection.execute(found))


def manifest_of(connection: Connection, version: int) -> Manifest:
    """As the teller who counts has it."""
    body = select(t.manifests.c.body).where(t.manifests.c.version == version)
    return Manifest.model_validate_json(connection.execute(body).scalar_one())


def documents(connection: Connection, where: ColumnElement[bool]) -> tuple[dict[str, Any], ...]:
    """The records that fit, the newest first."""
    d = t.record_documents.c
    found = select(d.body).join(t.records, _R.id == d.record).where(where)
    bodies = connection.execute(found.order_by(_R.started_at.desc(), _R.id.desc())).scalars()
    return tuple(json.loads(body) for body in bodies)


def documents_of(connection: Connection, version: Row[Any]) -> tuple[dict[str, Any], ...]:
    """The records of a version."""
    return documents(connection, and_(_R.name == version.name, _R.digest == version.digest))


def document(connection: Connection, record: str) -> tuple[dict[str, Any], ...]:
    """One record."""
    return documents(connection, _R.id == record)


def previous_of(connection: Connection, name: str, digest: str) -> str | None:
    """The version of a name that was exported last, of those that are not this one."""
    others = (_R.name == name, _R.digest.is_not(None), _R.digest != digest, _R.outcome == "exported")
    newest = select(_R.digest).where(*others).order_by(_R.started_at.desc(), _R.id.desc()).limit(1)
    found: str | None = connection.execute(newest).scalar()
    return found


def drifts_of(connection: Connection, name: str, limit: int) -> tuple[DriftEntry, ...]:
    """Of the newest versions of a name, the oldest first."""
    newest = select(_V.id).where(_V.name == name).order_by(_V.created_at.desc(), _V.digest.desc()).limit(limit)
    found = select(_V.digest, _V.created_at, t.drifts).join(t.drifts, t.drifts.c.version == _V.id)
    rows = connection.execute(
        found.where(_V.id.in_(newest)).order_by(_V.created_at, _V.digest, t.drifts.c.number)
    ).mappings()
    return tuple(DriftEntry(**{each: row[each] for each in DriftEntry.model_fields}) for row in rows)


# --- the chain --------------------------------------------------------------------------------------------------------


def parents(connection: Connection, version: Row[Any]) -> tuple[Relative, ...]:
    """What it was made from, as far as the index knows that."""
    stated = select(_E.kind, _E.parent).where(_E.version == version.id).order_by(_E.kind, _E.parent)
    return tuple(
        relative
        for kind, parent in connection.execute(stated)
        for relative in _known(connection, version, kind, parent)
    )


def _known(connection: Connection, version: Row[Any], kind: Any, parent: str) -> Iterable[Relative]:
    if kind == PREVIOUS:
        found = _ids(connection, select(_V.id).where(_V.name == version.name, _V.digest == parent))
    else:
        digits = parent if DIGITS.fullmatch(parent) and len(parent) in (12, 64) else None
        found = by_run(connection, parent) or (by_digest(connection, digits) if digits else [])
    rows = [row for row in rows_of(connection, found) if row.id != version.id]
    if not rows:
        yield Relative(kind=kind, stated=parent, name=None, digest=None)
    for row in rows:
        yield Relative(kind=kind, stated=parent, name=row.name, digest=row.digest)


def children(connection: Connection, version: Row[Any]) -> tuple[Relative, ...]:
    """What was made from it: what states its run, or a digest of it, of its files or of its checkpoint."""
    sums = select(_F.sha256, _F.tensors_sha256).where(_F.version == version.id)
    digests = {version.digest, version.source_digest}
    digests |= {digest for row in connection.execute(sums) for digest in row if digest}
    stated = digests | {digest[:12] for digest in digests} | ({version.run_id} if version.run_id else set())
    resumed = and_(_E.kind == RESUMED, _E.parent.in_(stated))
    after = and_(_E.kind == PREVIOUS, _E.parent == version.digest, _V.name == version.name)
    found = select(_E.kind, _E.parent, _V.name, _V.digest).join(t.versions, _V.id == _E.version)
    rows = connection.execute(
        found.where(_V.id != version.id, or_(resumed, after)).order_by(_E.kind, _V.created_at, _V.name, _V.digest)
    )
    return tuple(Relative(kind=kind, stated=parent, name=name, digest=digest) for kind, parent, name, digest in rows)


# --- entries ----------------------------------------------------------------------------------------------------------


def entries(connection: Connection, rows: Sequence[Row[Any]]) -> tuple[VersionEntry, ...]:
    """Rows of versions with what belongs to each, in the same order."""
    ids = [row.id for row in rows]
    components = _grouped(connection, t.components, ids, t.components.c.number)
    places = _grouped(connection, t.places, ids, t.places.c.place)
    aliases: dict[tuple[str, str], list[AliasEntry]] = defaultdict(list)
    for batch in _batches(ids):
        pointed = select(t.aliases).join(t.versions, and_(_A.name == _V.name, _A.digest == _V.digest))
        for found in connection.execute(pointed.where(_V.id.in_(batch)).order_by(_A.alias, _A.place)):
            aliases[found.name, found.digest].append(AliasEntry(alias=found.alias, place=found.place))
    return tuple(
        VersionEntry(
            **{name: getattr(row, name) for name in _OF_ROW},
            components=tuple(map(_component, components[row.id])),
            places=tuple(map(_place, places[row.id])),
            aliases=tuple(aliases[row.name, row.digest]),
        )
        for row in rows
    )


_OF_ROW = tuple(name for name in VersionEntry.model_fields if name not in ("components", "places", "aliases"))


def _component(row: Row[Any]) -> ComponentEntry:
    return ComponentEntry(
        component=row.component,
        adapter_type=row.adapter_type,
        rank=json.loads(row.ranks),
        alpha=json.loads(row.alphas),
        dtype=json.loads(row.dtypes),
        modules=row.modules,
        parameters=row.parameters,
    )


def _place(row: Row[Any]) -> PlaceEntry:
    return PlaceEntry(**{name: getattr(row, name) for name in PlaceEntry.model_fields})


def _run_entries(connection: Connection, ids: Sequence[str]) -> tuple[RunEntry, ...]:
    found: dict[str, RunEntry] = {}
    columns = [column for column in t.records.c if column.name in RunEntry.model_fields]
    for batch in _batches(list(ids)):
        body = t.record_documents.c.body
        rows = select(*columns, body).join(t.record_documents, _R.id == t.record_documents.c.record)
        for row in connection.execute(rows.where(_R.id.in_(batch))).mappings():
            said = json.loads(row["body"])
            stored = {name: value for name, value in row.items() if name != "body"}
            found[row["id"]] = RunEntry(**stored, error=said["error"])
    return tuple(found[each] for each in ids)


def _grouped(connection: Connection, table: Any, ids: list[int], order: Any) -> dict[int, list[Row[Any]]]:
    found: dict[int, list[Row[Any]]] = defaultdict(list)
    for batch in _batches(ids):
        for row in connection.execute(select(table).where(table.c.version.in_(batch)).order_by(order)):
            found[row.version].append(row)
    return found


def _batches(items: list[Any]) -> Iterable[list[Any]]:
    return (items[first : first + _BATCH] for first in range(0, len(items), _BATCH))


def _ids(connection: Connection, found: Any) -> list[int]:
    return sorted(connection.execute(found).scalars())


# --- filters ----------------------------------------------------------------------------------------------------------


def _where_versions(wanted: VersionFilter) -> list[ColumnElement[bool]]:
    where = _matching(
        (_V.name, wanted.name), (_V.family, wanted.family), (_V.base_model, wanted.base), (_V.run_id, wanted.run_id)
    )
    where += _between(_V.created_at, wanted.since, wanted.until)
    if wanted.checkpoint is not None:
        where.append(_of_checkpoint(wanted.checkpoint))
    if wanted.alias is not None:
        pointed = and_(_A.name == _V.name, _A.digest == _V.digest, _like(_A.alias, wanted.alias))
        where.append(select(_A.alias).where(pointed).exists())
    if wanted.search:
        part = f"%{_escaped(wanted.search.casefold())}%"
        found = t.searches.c.text.like(part, escape="\\")
        where.append(_V.id.in_(select(t.searches.c.version).where(found)))
    return where


def _where_runs(wanted: RunFilter) -> list[ColumnElement[bool]]:
    where = _matching(
        (_R.outcome, wanted.outcome),
        (_R.name, wanted.name),
        (_R.family, wanted.family),
        (_R.base_model, wanted.base),
        (_R.run_id, wanted.run_id),
        (_R.checkpoint, wanted.checkpoint),
    )
    return where + _between(_R.started_at, wanted.since, wanted.until)


def _of_checkpoint(pattern: str) -> ColumnElement[bool]:
    # One query each, so that each has its index.
    made = and_(_R.name == _V.name, _R.digest == _V.digest)
    same = [
        select(_V.id).join(t.records, made).where(_like(_R.checkpoint, pattern)),
        select(_V.id).where(_like(_V.source_name, pattern)),
    ]
    if DIGITS.fullmatch(pattern):
        same.append(select(_V.id).where(_begins(_V.source_digest, pattern)))
    return _V.id.in_(union(*same))


def _matching(*wanted: tuple[Any, str | None]) -> list[ColumnElement[bool]]:
    return [_like(column, pattern) for column, pattern in wanted if pattern is not None]


def _between(column: Any, since: Any, until: Any) -> list[ColumnElement[bool]]:
    return [*([column >= since] if since else []), *([column < until] if until else [])]


def _like(column: Any, pattern: str) -> ColumnElement[bool]:
    """A pattern with * and ?. The range of what it begins with is what an index is good for."""
    beginning = re.split(r"[*?]", pattern, maxsplit=1)[0]
    if beginning == pattern:
        equal: ColumnElement[bool] = column == pattern
        return equal
    alike: ColumnElement[bool] = column.like(_escaped(pattern).replace("*", "%").replace("?", "_"), escape="\\")
    return and_(_begins(column, beginning), alike) if beginning else alike


def _begins(column: Any, beginning: str) -> ColumnElement[bool]:
    # No text has a character beyond the last one of Unicode.
    return and_(column >= beginning, column < f"{beginning}\U0010ffff")


def _escaped(text: str) -> str:
    return re.sub(r"([\\%_])", r"\\\1", text)


# --- for pages --------------------------------------------------------------------------------------------------------

#: The outcomes that have an error.
UNSUCCESSFUL = ("refused", "failed")


def choices(connection: Connection) -> Choices:
    """What may be chosen in a filter."""

    def values(column: Any) -> tuple[str, ...]:
        # From one value to the next by the index: DISTINCT would read every row of it.
        found = select(func.min(column).label("value")).cte(recursive=True)
        after = select(func.min(column)).where(column > found.c.value).scalar_subquery()
        found = found.union_all(select(after).where(found.c.value.is_not(None)))
        known = select(found.c.value).where(found.c.value.is_not(None)).limit(_MOST_CHOICES)
        return tuple(connection.execute(known).scalars())

    return Choices(families=values(_V.family), bases=values(_V.base_model), aliases=values(_A.alias))


def failures(connection: Connection, wanted: RunFilter, *, limit: int) -> Failures:
    """The newest refused and failed runs by what they ended with, the most frequent first."""
    where = [*_where_runs(wanted), _R.outcome.in_(UNSUCCESSFUL)]
    total = connection.execute(select(func.count()).select_from(t.records).where(*where)).scalar_one()
    newest = select(_R.id).where(*where).order_by(_R.started_at.desc(), _R.id.desc()).limit(limit)
    groups: dict[tuple[str, str | None], list[RunEntry]] = defaultdict(list)
    for run in _run_entries(connection, connection.execute(newest).scalars().all()):
        groups[run.outcome, run.error_type].append(run)
    by_size = sorted(groups.items(), key=lambda item: -len(item[1]))
    found = tuple(FailureGroup(outcome=o, error_type=kind, runs=tuple(runs)) for (o, kind), runs in by_size)
    return Failures(groups=found, total=total)


def digests(connection: Connection, digits: str, *, limit: int) -> tuple[DigestMatch, ...]:
    """What has a digest that begins with `digits`."""
    of_files = select(_F.version.label("version"), _F.path.label("path"))
    of_versions = select(_V.id.label("version"), literal(None, Text).label("path"))
    found = union_all(
        *(
            rows.add_columns(column.label("digest"), literal(what).label("what")).where(_begins(column, digits))
            for rows, column, what in (
                (of_versions, _V.digest, "bundle"),
                (of_files, _F.sha256, "file"),
                (of_files, _F.tensors_sha256, "tensors"),
                (of_versions, _V.source_digest, "checkpoint"),
            )
        )
    ).subquery()
    rows = connection.execute(select(found).order_by(found.c.what, found.c.version, found.c.path).limit(limit)).all()
    versions = {row.id: row for row in rows_of(connection, [row.version for row in rows])}
    described = dict(zip(versions, entries(connection, list(versions.values())), strict=True))
    return tuple(
        DigestMatch(what=row.what, digest=row.digest, path=row.path, version=described[row.version]) for row in rows
    )
