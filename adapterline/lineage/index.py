"""The index of every run and every version: what exists, where it comes from, where it went."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row

from adapterline.errors import AdapterlineError, UnknownLineageError, UsageError
from adapterline.lineage import health, queries, writing
from adapterline.lineage.answers import (
    Choices,
    Counts,
    DigestMatches,
    DriftEntry,
    Failures,
    Lineage,
    Match,
    Matches,
    Reindexed,
    RunDetail,
    RunFilter,
    RunPage,
    Sort,
    SweepPage,
    VersionFilter,
    VersionPage,
)
from adapterline.lineage.database import Database
from adapterline.lineage.health_answers import Health, Measures
from adapterline.lineage.records import open_records
from adapterline.lineage.reindex import reindex
from adapterline.lineage.stray import sha256_of_stray, tensors_of_stray
from adapterline.settings import Settings
from adapterline.values import DriftFromLatest, LineageRecord, Promotion, Pruning, SweepRecord

_MOST_CANDIDATES = 12


class Index:
    """The lineage index at a SQLAlchemy URL; without one, that of `ADAPTERLINE_INDEX`.

    Its tables are made, or brought up to date, when it is first used. Every method raises MachineError where the
    database cannot be used. Several processes may read and write at once.
    """

    def __init__(self, url: str | None = None) -> None:
        self._database = Database(Settings().index if url is None else url)

    # --- what is asked ------------------------------------------------------------------------------------------------

    def versions(
        self,
        wanted: VersionFilter | None = None,
        *,
        sort: Sort = "created",
        descending: bool = True,
        limit: int = 50,
        offset: int = 0,
    ) -> VersionPage:
        """One page of the versions that a filter lets through."""
        wanted = wanted or VersionFilter()
        with self._database.reading() as connection:
            return queries.versions(connection, wanted, sort=sort, descending=descending, limit=limit, offset=offset)

    def runs(self, wanted: RunFilter | None = None, *, limit: int = 50, offset: int = 0) -> RunPage:
        """One page of the runs of the line that a filter lets through, the newest first."""
        with self._database.reading() as connection:
            return queries.runs(connection, wanted or RunFilter(), limit=limit, offset=offset)

    def sweeps(self, *, limit: int = 50, offset: int = 0) -> SweepPage:
        """One page of the sweeps, the newest first."""
        with self._database.reading() as connection:
            return queries.sweeps(connection, limit=limit, offset=offset)

    def drifts(self, name: str, *, limit: int = 100) -> tuple[DriftEntry, ...]:
        """How far the newest versions of a name are from what `latest` was before each; the oldest first."""
        with self._database.reading() as connection:
            return queries.drifts_of(connection, name, limit)

    def counts(self) -> Counts:
        """What is in it, in numbers."""
        with self._database.reading() as connection:
            return queries.counts(connection)

    def health(self, days: int = 30, now: datetime | None = None) -> Health:
        """How the line fares: of the last `days` days, of which the last is the day of `now` in UTC, and at `now`.

        UsageError for less than one day or more than ten years.
        """
        with self._database.reading() as connection:
            return health.health(connection, days, now or datetime.now(UTC))

    def measures(self, now: datetime | None = None) -> Measures:
        """What is worth measuring every minute, in few queries."""
        with self._database.reading() as connection:
            return health.measures(connection, now or datetime.now(UTC))

    def show(self, what: str) -> Lineage:
        """Where something comes from and where it went.

        `what` is a name, `name@alias`, `name@digits`, 8 digits or more of a digest (of the bundle, a file, the tensors
        of a file, the checkpoint), the id of a training run or of a record, or a checkpoint as it was given.
        UnknownLineageError if the index has nothing of it; UsageError, with the candidates, if it may be several.
        """
        with self._database.reading() as connection:
            for found in _meanings(connection, what):
                rows = queries.rows_of(connection, found)
                if len(rows) > 1:
                    raise _ambiguous(what, rows)
                if rows:
                    return _lineage(connection, rows[0])
            if ids := queries.runs_of(connection, what):
                runs = queries.document(connection, ids[0])
                return Lineage(version=None, manifest=None, runs=runs, drift=None, parents=(), children=())
        raise UnknownLineageError(
            f"The index {self._database.where} has nothing of {what!r}.",
            expected="a name, name@alias, 8 digits or more of a digest, a training run, a record or a checkpoint",
            remedy="See adapterline lineage list. What the index missed comes with adapterline lineage reindex.",
        )

    def which(self, file: Path) -> Matches:
        """Every version that has this file, or a file with the same tensors, whatever its name and header are.

        UnknownLineageError if there is none; CheckpointError for what cannot be read and for what is neither known as
        it is nor a safetensors file.
        """
        whole = sha256_of_stray(file)
        with self._database.reading() as connection:
            rows = queries.by_file(connection, sha256=[whole])
            if not rows:
                rows = queries.by_file(connection, tensors=tensors_of_stray(file))
            versions = {row.id: row for row in queries.rows_of(connection, [row.version for row in rows])}
            entries = dict(zip(versions, queries.entries(connection, list(versions.values())), strict=True))
            matches = tuple(_match(row, whole, entries[row.version]) for row in rows)
        if not matches:
            raise UnknownLineageError(
                f"No version in the index {self._database.where} has the bytes or the tensors of {file.name}.",
                expected="a file that adapterline wrote",
                remedy="Was it converted or quantized since? Else make the index anew with all places: adapterline "
                "lineage reindex --from URI.",
            )
        return Matches(file=str(file), matches=matches)

    # --- for pages ----------------------------------------------------------------------------------------------------

    def choices(self) -> Choices:
        """What may be chosen in a filter."""
        with self._database.reading() as connection:
            return queries.choices(connection)

    def run(self, record: str) -> RunDetail:
        """One run by the id of its record. UnknownLineageError if there is none."""
        with self._database.reading() as connection:
            found = queries.document(connection, record)
            if not found:
                raise UnknownLineageError(
                    f"The index {self._database.where} has no run {record!r}.", expected="the id of a record"
                )
            made = queries.by_record(connection, record)
            rows = queries.rows_of(connection, made)
            version = queries.entries(connection, rows)[0] if rows else None
            return RunDetail(record=LineageRecord.model_validate(found[0]), version=version)

    def failures(self, wanted: RunFilter | None = None, *, limit: int = 500) -> Failures:
        """The newest refused and failed runs that a filter lets through, by what they ended with."""
        with self._database.reading() as connection:
            return queries.failures(connection, wanted or RunFilter(), limit=limit)

    def digests(self, digits: str, *, limit: int = 100) -> DigestMatches:
        """What has a digest that begins with these 8 to 64 digits: a version, a file, its tensors, a checkpoint.

        A prefix `sha256:` and capitals are taken too. UsageError for what is no digest, UnknownLineageError if nothing
        has it.
        """
        wanted = digits.strip().lower().removeprefix("sha256:")
        if not queries.DIGITS.fullmatch(wanted):
            raise UsageError(
                f"{digits.strip()[:100]!r} is no digest.",
                expected="8 to 64 hexadecimal digits of a sha256",
                remedy="sha256sum FILE prints one.",
            )
        with self._database.reading() as connection:
            matches = queries.digests(connection, wanted, limit=limit)
        if not matches:
            raise UnknownLineageError(
                f"Nothing in the index {self._database.where} has a digest that begins with {wanted}.",
                expected="the sha256 of a version, of a file, of a file's tensors or of a checkpoint",
                remedy="If a file's header was changed, adapterline lineage which finds it by its tensors.",
            )
        return DigestMatches(digits=wanted, matches=matches)

    # --- what is told -------------------------------------------------------------------------------------------------

    def add(self, record: LineageRecord) -> bool:
        """Adds what a record tells; False if it is there already."""
        with self._database.writing() as connection:
            return writing.add_record(connection, record)

    def add_sweep(self, sweep: SweepRecord) -> bool:
        """Adds what a sweep came to; False if it is there already."""
        with self._database.writing() as connection:
            return writing.add_sweep(connection, sweep)

    def add_promotion(self, promotion: Promotion) -> None:
        """Adds where an alias points now."""
        with self._database.writing() as connection:
            writing.add_promotion(connection, promotion)

    def add_pruning(self, pruning: Pruning) -> None:
        """Takes away what was deleted."""
        with self._database.writing() as connection:
            writing.add_pruning(connection, pruning)

    def previous(self, name: str, digest: str) -> str | None:
        """The digest of the version of a name that was exported last, of those that are not `digest`."""
        with self._database.reading() as connection:
            return queries.previous_of(connection, name, digest)

    def reindex(self, places: Sequence[str] = (), records: str | None = None) -> Reindexed:
        """Makes it anew from the record store, the places that records name, and `places`.

        `records` None: the store of `ADAPTERLINE_RECORDS`. A place that cannot be read is in the answer; MachineError
        where the record store or the database fails: then everything is as it was.
        """
        return reindex(self._database, open_records(Settings().records if records is None else records), places)


def remember(what: Callable[[Index], object]) -> str | None:
    """Tells the index something. If that fails, says why: the records are the truth, and no export hangs on it."""
    try:
        what(Index())
    except AdapterlineError as error:
        return str(error)
    return None


def with_previous(record: LineageRecord) -> LineageRecord:
    """The record of an export with the version that was exported before it, as far as the index can be asked."""
    if record.manifest is None or record.outcome != "exported":
        return record
    try:
        previous = Index().previous(record.manifest.name, record.manifest.digest)
    except AdapterlineError:
        return record  # `remember` says why
    return record.model_copy(update={"previous": previous})


def _meanings(connection: Connection, what: str) -> Iterator[list[int]]:
    """The ids of the versions that it may mean, kind by kind; the first kind that has any counts."""
    name, at, rest = what.rpartition("@")
    if at:
        yield queries.by_alias(connection, name, rest)
    yield queries.by_name(connection, what)
    yield queries.by_record(connection, what)
    if queries.DIGITS.fullmatch(what):
        yield queries.by_digest(connection, what)
    yield queries.by_run(connection, what)
    yield queries.by_checkpoint(connection, what)


def _lineage(connection: Connection, row: Row[Any]) -> Lineage:
    [entry] = queries.entries(connection, [row])
    runs = queries.documents_of(connection, row)
    told = (run["drift"] for run in reversed(runs) if run.get("drift"))
    drift = next((drift for drift in told if drift["components"]), None)
    return Lineage(
        version=entry,
        manifest=queries.manifest_of(connection, row.id),
        runs=runs,
        drift=DriftFromLatest.model_validate(drift) if drift else None,
        parents=queries.parents(connection, row),
        children=queries.children(connection, row),
    )


def _match(row: Row[Any], sha256: str, entry: Any) -> Match:
    return Match(
        by="file" if row.sha256 == sha256 else "tensors",
        sha256=row.sha256,
        tensors_sha256=row.tensors_sha256,
        path=row.path,
        layout=row.layout,
        version=entry,
    )


def _ambiguous(what: str, rows: Sequence[Row[Any]]) -> UsageError:
    names = [f"{row.name}@{row.digest[:12]}" for row in reversed(rows)]
    more = f" and {len(names) - _MOST_CANDIDATES} more" if len(names) > _MOST_CANDIDATES else ""
    return UsageError(
        f"{re.sub(r'[^ -~]', '?', what)!r} may be each of {len(rows)} versions: "
        f"{', '.join(names[:_MOST_CANDIDATES])}{more}.",
        expected="what names one",
        remedy="Pass one of these.",
    )
