"""Facts become rows. Of a place and of an alias counts what was told last: records are told in the order of their runs.

Of a version the order makes no difference. Its manifest is that of the earliest record that has one, and its time the
end of that run: what a record tells counts before what a place tells. Without a record it is the manifest that was
published first.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, Table, and_, delete, exists, func, insert, select, text, update

from adapterline.lineage import tables as t
from adapterline.lineage.places import Shelf, place_named, place_of
from adapterline.values import (
    LATEST,
    LineageRecord,
    Manifest,
    Promotion,
    Pruning,
    Publication,
    SweepRecord,
    Value,
    Version,
    canonical_json,
)

RESUMED, PREVIOUS = "resumed-from", "previous"
PUBLISHED, PROPOSED = "published", "proposed"


@dataclass(frozen=True)
class _Telling:
    """Who tells of a version."""

    at: datetime
    by: str
    created_at: datetime
    recorded: bool
    outcome: str


def clear(connection: Connection) -> None:
    """Deletes every row."""
    for table in reversed(t.metadata.sorted_tables):
        connection.execute(delete(table))


def analyze(connection: Connection) -> None:
    """Has the database look at what it has: right after so many new rows, it would plan for few."""
    connection.execute(text("ANALYZE"))


def add_record(connection: Connection, record: LineageRecord) -> bool:
    """Adds what one record tells. False, and nothing happens, if it is there already."""
    if connection.execute(select(t.records.c.id).where(t.records.c.id == record.id)).first():
        return False
    manifest, run = record.manifest, record.run
    made = manifest is not None and makes_version(record)
    connection.execute(
        insert(t.records).values(
            id=record.id,
            outcome=record.outcome,
            started_at=record.started_at,
            ended_at=record.ended_at,
            checkpoint=record.checkpoint,
            name=manifest.name if manifest else record.name,
            digest=manifest.digest if manifest and made else None,
            family=manifest.family if manifest else None,
            base_model=manifest.base.model if manifest else run.base_model if run else None,
            run_id=run.run_id if run else None,
            error_type=record.error_type,
        )
    )
    body = _body(record.model_copy(update={"manifest": None} if made else {}))
    connection.execute(insert(t.record_documents).values(record=record.id, body=body))
    if manifest is not None and made:
        _add_version_of(connection, record, manifest)
    return True


def add_sweep(connection: Connection, sweep: SweepRecord) -> bool:
    """Adds one sweep. False, and nothing happens, if it is there already."""
    if connection.execute(select(t.sweeps.c.id).where(t.sweeps.c.id == sweep.id)).first():
        return False
    row = {"id": sweep.id, "started_at": sweep.started_at, "ended_at": sweep.ended_at, "body": _body(sweep)}
    connection.execute(insert(t.sweeps).values(**row))
    return True


def makes_version(record: LineageRecord) -> bool:
    """Was something proven, or published, that has a manifest? A failed run may have published to its first place."""
    proven = record.outcome in ("exported", "already-exported", "validated")
    return record.manifest is not None and (proven or bool(record.publications))


def _add_version_of(connection: Connection, record: LineageRecord, manifest: Manifest) -> None:
    outcome = "validated" if record.outcome == "validated" else "exported"
    telling = _Telling(record.started_at, record.id, record.ended_at, True, outcome)
    version = _tell(connection, manifest, telling)
    if record.previous and record.previous != manifest.digest:
        _add_edges(connection, version, PREVIOUS, [record.previous])
    _add_drift(connection, version, record)
    for publication in record.publications:
        _publish(connection, version, publication, record.ended_at)
        # What was there already has moved nothing now. What moved another branch of the Hub than main is not told.
        if record.outcome != "already-exported" and publication.latest == "moved" and not publication.revision:
            point(connection, place_of(publication.receipt), manifest.name, LATEST, manifest.digest)


def _add_drift(connection: Connection, version: int, record: LineageRecord) -> None:
    if record.drift is None or not record.drift.components:
        return
    d = t.drifts.c
    told = connection.execute(select(d.told_at, d.told_by).where(d.version == version).limit(1)).first()
    if told is not None and (told.told_at, told.told_by) <= (record.started_at, record.id):
        return
    connection.execute(delete(t.drifts).where(d.version == version))
    rows = [
        {
            "version": version,
            "number": number,
            "component": name,
            "before": record.drift.before,
            "norm": component.norm,
            "norm_before": component.before,
            "cosine": component.cosine,
            "told_at": record.started_at,
            "told_by": record.id,
        }
        for number, (name, component) in enumerate(sorted(record.drift.components.items()))
    ]
    _insert(connection, t.drifts, rows)


def _publish(connection: Connection, version: int, publication: Publication, at: datetime) -> None:
    place = place_of(publication.receipt)
    found = _place(connection, version, place)
    _put_place(
        connection,
        version,
        place,
        found,
        state=PROPOSED if publication.latest == "proposed" else PUBLISHED,
        location=publication.receipt.location,
        manifest_sha256=publication.receipt.manifest_sha256,
        published_at=min(at, found.published_at) if found and found.recorded else at,
        recorded=1,
    )


# --- what lies at places ----------------------------------------------------------------------------------------------


def add_shelf(connection: Connection, shelf: Shelf) -> None:
    """What a place has of a name takes the place of what records say of it, but for when it was published."""
    v, p = t.versions.c, t.places.c
    told = select(v.id).where(v.name == shelf.name)
    ids = [_add_published(connection, shelf.place, version) for version in shelf.versions]
    gone = and_(p.place == shelf.place, p.version.in_(told), p.state == PUBLISHED)
    for row in connection.execute(select(p.version).where(gone)).scalars().all():
        if row not in ids:
            _unpublish(connection, row, shelf.place)
    a = t.aliases.c
    connection.execute(delete(t.aliases).where(and_(a.place == shelf.place, a.name == shelf.name)))
    for alias, pointer in (shelf.aliases or {}).items():
        point(connection, shelf.place, shelf.name, alias, pointer.digest)


def _add_published(connection: Connection, place: str, found: Version) -> int:
    at = found.published_at
    version = _tell(connection, found.manifest, _Telling(at, place, at, False, "exported"))
    before = _place(connection, version, place)
    recorded = bool(before and before.recorded)
    _put_place(
        connection,
        version,
        place,
        before,
        state=PUBLISHED,
        location=found.receipt.location,
        manifest_sha256=found.receipt.manifest_sha256,
        published_at=before.published_at if before and recorded else at,
        recorded=int(recorded),
    )
    return version


def point(connection: Connection, place: str, name: str, alias: str, digest: str) -> None:
    """An alias points there now."""
    a = t.aliases.c
    connection.execute(delete(t.aliases).where(and_(a.place == place, a.name == name, a.alias == alias)))
    connection.execute(insert(t.aliases).values(place=place, name=name, alias=alias, digest=digest))


def add_promotion(connection: Connection, promotion: Promotion) -> None:
    """Aliases that were moved."""
    for move in promotion.moves:
        place = place_named(move.destination, promotion.name)
        point(connection, place, promotion.name, promotion.alias, promotion.digest)


def add_pruning(connection: Connection, pruning: Pruning) -> None:
    """Versions that were deleted."""
    v = t.versions.c
    for each in pruning.destinations:
        place = place_named(each.destination, pruning.name)
        for fate in each.versions:
            wanted = and_(v.name == pruning.name, v.digest == fate.digest)
            version = connection.execute(select(v.id).where(wanted)).scalar()
            if fate.fate == "removed" and version is not None:
                _unpublish(connection, version, place)


def _unpublish(connection: Connection, version: int, place: str) -> None:
    """What no record and no place tells of any more is no version."""
    p, v = t.places.c, t.versions.c
    connection.execute(delete(t.places).where(and_(p.version == version, p.place == place)))
    elsewhere = exists().where(p.version == v.id)
    connection.execute(delete(t.versions).where(and_(v.id == version, v.recorded == 0, ~elsewhere)))


def _place(connection: Connection, version: int, place: str) -> Row[Any] | None:
    p = t.places.c
    return connection.execute(select(t.places).where(and_(p.version == version, p.place == place))).first()


def _put_place(connection: Connection, version: int, place: str, found: Row[Any] | None, **values: Any) -> None:
    p = t.places.c
    if found:
        connection.execute(update(t.places).where(and_(p.version == version, p.place == place)).values(**values))
    else:
        connection.execute(insert(t.places).values(version=version, place=place, **values))


# --- versions ---------------------------------------------------------------------------------------------------------


def _tell(connection: Connection, manifest: Manifest, telling: _Telling) -> int:
    """The row of a version, with what the teller who counts says of it; gives its id."""
    v = t.versions.c
    wanted = and_(v.name == manifest.name, v.digest == manifest.digest)
    found = connection.execute(select(v.id, v.told_at, v.told_by, v.created_at, v.recorded, v.outcome).where(wanted))
    if (row := found.first()) is None:
        values = {**_columns(manifest, telling), "created_at": telling.created_at, "outcome": telling.outcome}
        added = connection.execute(insert(t.versions).values(**values).returning(v.id)).scalar_one()
        _describe(connection, added, manifest)
        return int(added)
    values = {"outcome": "exported" if "exported" in (row.outcome, telling.outcome) else row.outcome}
    if telling.recorded == bool(row.recorded):
        values["created_at"] = min(row.created_at, telling.created_at)
    elif telling.recorded:
        values["created_at"] = telling.created_at
    counts = (not telling.recorded, telling.at, telling.by) < (not row.recorded, row.told_at, row.told_by)
    if counts:
        values |= _columns(manifest, telling)
    connection.execute(update(t.versions).where(v.id == row.id).values(**values))
    if counts:
        _describe(connection, row.id, manifest)
    return int(row.id)


def _columns(manifest: Manifest, telling: _Telling) -> dict[str, Any]:
    run = manifest.training_run
    step = run.step if run and run.step is not None else manifest.source.step
    return {
        "name": manifest.name,
        "digest": manifest.digest,
        "family": manifest.family,
        "base_model": manifest.base.model,
        "base_revision": manifest.base.revision,
        "pipeline": manifest.base.pipeline,
        "source_name": manifest.source.name,
        "source_digest": manifest.source.digest,
        "run_id": run.run_id if run else None,
        "step": step,
        "finished_at": run.finished_at if run else None,
        "size": sum(file.size for file in manifest.files),
        "told_at": telling.at,
        "told_by": telling.by,
        "recorded": int(telling.recorded),
    }


def _describe(connection: Connection, version: int, manifest: Manifest) -> None:
    for table in (t.manifests, t.searches, t.files, t.components):
        connection.execute(delete(table).where(table.c.version == version))
    e = t.edges.c
    connection.execute(delete(t.edges).where(and_(e.version == version, e.kind == RESUMED)))
    connection.execute(insert(t.manifests).values(version=version, body=_body(manifest)))
    connection.execute(insert(t.searches).values(version=version, text=_searched(manifest)))
    _insert(connection, t.files, [_file(version, number, file) for number, file in enumerate(manifest.files)])
    rows = [_component(version, number, *item) for number, item in enumerate(sorted(manifest.components.items()))]
    _insert(connection, t.components, rows)
    _add_edges(connection, version, RESUMED, manifest.training_run.parents if manifest.training_run else ())


def _searched(manifest: Manifest) -> str:
    run = manifest.training_run
    texts = (manifest.name, manifest.family, manifest.base.model, run.run_id if run else None, manifest.source.name)
    return "\n".join((text or "")[: t.COMPARED] for text in texts).casefold().replace("\0", "\N{REPLACEMENT CHARACTER}")


def _file(version: int, number: int, file: Any) -> dict[str, Any]:
    return {
        "version": version,
        "number": number,
        "path": file.path,
        "role": file.role,
        "layout": file.layout,
        "size": file.size,
        "sha256": file.sha256,
        "tensors_sha256": file.tensors_sha256,
    }


def _component(version: int, number: int, name: str, summary: Any) -> dict[str, Any]:
    stated = summary.model_dump(mode="json")
    return {
        "version": version,
        "number": number,
        "component": name,
        "adapter_type": summary.adapter_type,
        "ranks": json.dumps(stated["rank"]),
        "alphas": json.dumps(stated["alpha"]),
        "dtypes": json.dumps(stated["dtype"]),
        "modules": summary.modules,
        "parameters": summary.parameters,
    }


def _add_edges(connection: Connection, version: int, kind: str, parents: Sequence[str]) -> None:
    e = t.edges.c
    known = select(e.parent).where(and_(e.version == version, e.kind == kind))
    there = set(connection.execute(known).scalars())
    # As they are compared: two that differ after that are one row.
    cut = dict.fromkeys(parent[: t.COMPARED].replace("\0", "\N{REPLACEMENT CHARACTER}") for parent in parents)
    rows = [{"version": version, "kind": kind, "parent": parent} for parent in cut if parent not in there]
    _insert(connection, t.edges, rows)


def _insert(connection: Connection, table: Table, rows: list[dict[str, Any]]) -> None:
    if rows:
        connection.execute(insert(table), rows)


def _body(value: Value) -> str:
    """In the order of keys that records and manifests have when they are read again."""
    return canonical_json(value.model_dump(mode="json")).decode()


def count_versions(connection: Connection) -> int:
    """How many there are."""
    return int(connection.execute(select(func.count()).select_from(t.versions)).scalar_one())
