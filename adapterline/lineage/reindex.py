"""The index, made anew from what is true: the records, and the manifests at the places that they name.

Everything is read before the index is touched, and written in one transaction: who asks meanwhile gets the old answers.
Then, before it is committed, the record store is listed again: who could not write for so long has left a record.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO

from adapterline.errors import AdapterlineError, UsageError
from adapterline.lineage import writing
from adapterline.lineage.answers import PlaceRead, Reindexed
from adapterline.lineage.database import Database
from adapterline.lineage.places import Shelf, is_absent, place_named, place_of, read_place
from adapterline.lineage.records import RecordStore
from adapterline.values import LineageRecord


def reindex(database: Database, store: RecordStore, places: Sequence[str] = ()) -> Reindexed:
    """Makes the index anew; `places` are read besides those that records name.

    A place that cannot be read is told, and then the records are believed. MachineError where the record store or the
    database fails: then the index is as it was.
    """
    with tempfile.TemporaryFile("w+b") as spool:
        read = _spool(store, spool)
        sweeps = {name: store.read_sweep(name) for name in store.sweep_names()}
        shelves, told = _read_places(dict.fromkeys([*_named(places), *sorted(read.places)]))
        database.discard_if_damaged()
        with database.writing() as connection:
            writing.clear(connection)
            for record in _records(spool):
                writing.add_record(connection, record)
            for shelf in shelves:
                writing.add_shelf(connection, shelf)
            for name in store.names():
                if name not in read.names and (late := store.read(name)) is not None:
                    read.count += writing.add_record(connection, late)
            sweeps |= {name: store.read_sweep(name) for name in store.sweep_names() if name not in sweeps}
            swept = [writing.add_sweep(connection, sweep) for sweep in sweeps.values() if sweep is not None]
            writing.analyze(connection)
            versions = writing.count_versions(connection)
    unread = read.unread + len(sweeps) - len(swept)
    return Reindexed(records=read.count, sweeps=len(swept), unread=unread, versions=versions, places=told)


@dataclass
class _Read:
    """What was found in the record store."""

    names: set[str] = field(default_factory=set)
    places: set[str] = field(default_factory=set)
    count: int = 0
    unread: int = 0


def _spool(store: RecordStore, spool: IO[bytes]) -> _Read:
    """Every record, a line each: a hundred thousand do not lie in memory, nor are they fetched twice."""
    read = _Read()
    for name in store.names():
        read.names.add(name)
        if (record := store.read(name)) is None:
            read.unread += 1
            continue
        read.count += 1
        read.places |= {place_of(each.receipt) for each in record.publications}
        spool.write(record.model_dump_json(by_alias=True).encode() + b"\n")
    return read


def _records(spool: IO[bytes]) -> Iterator[LineageRecord]:
    spool.seek(0)
    return (LineageRecord.model_validate_json(line) for line in spool)


def _named(places: Sequence[str]) -> Iterator[str]:
    """As records name them. UsageError for what is no place, and for a folder that is not there."""
    for uri in places:
        place = uri.rstrip("/") if uri.startswith("hf://") else place_named(uri, "")
        if not uri.strip() or is_absent(place):
            raise UsageError(
                f"There is nothing to read at {uri!r}.",
                expected="a folder that is there, s3://bucket/prefix, hf://org or hf://org/repository",
                remedy="Pass another --from.",
            )
        yield place


def _read_places(places: dict[str, None]) -> tuple[list[Shelf], tuple[PlaceRead, ...]]:
    shelves: dict[tuple[str, str], Shelf] = {}
    told = []
    for place in places:
        if is_absent(place):
            told.append(PlaceRead(place=place, status="absent", versions=0, why="no such folder here"))
            continue
        found, why = Counter[str](), ""
        try:
            for shelf in read_place(place):
                if shelf.error:
                    why = why or str(shelf.error)
                    continue
                shelves[shelf.place, shelf.name] = shelf
                found["versions"] += len(shelf.versions)
        except AdapterlineError as error:
            why = str(error)
        told.append(PlaceRead(place=place, status="failed" if why else "read", versions=found["versions"], why=why))
    return list(shelves.values()), tuple(told)
