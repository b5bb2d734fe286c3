"""The record store: one JSON file for each run, in a folder or under an S3 prefix. Nothing in it is ever changed.

    {key}/{started_at}-{id}.json        a run of the line
    sweeps/{started_at}-{id}.json       a sweep

`key` is that of the request, so that an earlier export of the same is found by listing one folder.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Protocol, TypeVar

from adapterline.errors import MachineError, from_os_error
from adapterline.s3 import checksum_of, get_object, make_client, parse_s3_uri, s3_errors
from adapterline.values import LineageRecord, SweepRecord, canonical_json

#: The key of a run that ended before its checkpoint was known.
NO_KEY = "unread"
#: The folder of the sweeps, which is no key. Who knows of no sweep takes them for records of a later version.
SWEEPS = "sweeps"

_Kind = TypeVar("_Kind", LineageRecord, SweepRecord)


class RecordStore(Protocol):
    """Where records are kept."""

    def append(self, record: LineageRecord) -> str:
        """Writes one record, whole or not at all; gives where it lies."""
        ...

    def find(self, key: str) -> LineageRecord | None:
        """The newest successful export of this key, or None."""
        ...

    def names(self) -> tuple[str, ...]:
        """Every record of a run of the line, the earliest first."""
        ...

    def read(self, name: str) -> LineageRecord | None:
        """One of `names`; None for what this version of adapterline does not read, and for what is gone."""
        ...

    def append_sweep(self, sweep: SweepRecord) -> str:
        """Writes one sweep, whole or not at all; gives where it lies."""
        ...

    def sweep_names(self) -> tuple[str, ...]:
        """Every sweep, the earliest first."""
        ...

    def read_sweep(self, name: str) -> SweepRecord | None:
        """One of `sweep_names`; None for what this version of adapterline does not read, and for what is gone."""
        ...


def open_records(uri: str) -> RecordStore:
    """The record store at a folder or `s3://bucket/prefix`."""
    return S3Records(uri) if uri.startswith("s3://") else FolderRecords(Path(uri).expanduser().absolute())


def every_record(store: RecordStore) -> Iterator[LineageRecord]:
    """Those that this version of adapterline reads, the earliest first."""
    for name in store.names():
        if (record := store.read(name)) is not None:
            yield record


class FolderRecords:
    """Records in a folder."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def append(self, record: LineageRecord) -> str:
        """See `RecordStore.append`."""
        return self._write(_path_of(record.key, record), record)

    def append_sweep(self, sweep: SweepRecord) -> str:
        """See `RecordStore.append_sweep`."""
        return self._write(_path_of(SWEEPS, sweep), sweep)

    def _write(self, name: str, record: LineageRecord | SweepRecord) -> str:
        path = self._root / name
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_bytes(_bytes_of(record))
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            raise from_os_error(error, f"Writing the record {path}") from error
        return str(path)

    def find(self, key: str) -> LineageRecord | None:
        """See `RecordStore.find`."""
        try:
            texts = (path.read_bytes() for path in sorted((self._root / key).glob("*.json"), reverse=True))
            return _first_export(texts)
        except OSError as error:
            raise from_os_error(error, f"Reading the records in {self._root}") from error

    def names(self) -> tuple[str, ...]:
        """See `RecordStore.names`."""
        return _in_order(name for name in self._list("*") if not name.startswith(f"{SWEEPS}/"))

    def sweep_names(self) -> tuple[str, ...]:
        """See `RecordStore.sweep_names`."""
        return _in_order(self._list(SWEEPS))

    def _list(self, folder: str) -> list[str]:
        try:
            return [str(path.relative_to(self._root)) for path in self._root.glob(f"{folder}/*.json")]
        except OSError as error:
            raise from_os_error(error, f"Listing the records in {self._root}") from error

    def read(self, name: str) -> LineageRecord | None:
        """See `RecordStore.read`."""
        return _parsed(LineageRecord, self._bytes(name))

    def read_sweep(self, name: str) -> SweepRecord | None:
        """See `RecordStore.read_sweep`."""
        return _parsed(SweepRecord, self._bytes(name))

    def _bytes(self, name: str) -> bytes | None:
        try:
            return (self._root / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise from_os_error(error, f"Reading the record {self._root / name}") from error


class S3Records:
    """Records under an S3 prefix."""

    def __init__(self, uri: str) -> None:
        self._bucket, self._prefix = parse_s3_uri(uri)
        self._client = make_client()
        self._uri = uri

    def append(self, record: LineageRecord) -> str:
        """See `RecordStore.append`."""
        return self._write(_path_of(record.key, record), record)

    def append_sweep(self, sweep: SweepRecord) -> str:
        """See `RecordStore.append_sweep`."""
        return self._write(_path_of(SWEEPS, sweep), sweep)

    def _write(self, name: str, record: LineageRecord | SweepRecord) -> str:
        key, data = self._key(name), _bytes_of(record)
        with s3_errors(f"Writing the record s3://{self._bucket}/{key}", MachineError):
            self._client.put_object(
                Bucket=self._bucket,
                Key=key,
                Body=data,
                ChecksumSHA256=checksum_of(data),
                ContentType="application/json",
            )
        return f"s3://{self._bucket}/{key}"

    def find(self, key: str) -> LineageRecord | None:
        """See `RecordStore.find`."""
        with s3_errors(f"Reading the records in {self._uri}", MachineError):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._key(f"{key}/")
            )
            keys = sorted((item["Key"] for page in pages for item in page.get("Contents", [])), reverse=True)
            return _first_export(
                self._client.get_object(Bucket=self._bucket, Key=found)["Body"].read() for found in keys
            )

    def names(self) -> tuple[str, ...]:
        """See `RecordStore.names`."""
        return _in_order(name for name in self._list("") if not name.startswith(f"{SWEEPS}/"))

    def sweep_names(self) -> tuple[str, ...]:
        """See `RecordStore.sweep_names`."""
        return _in_order(self._list(f"{SWEEPS}/"))

    def _list(self, folder: str) -> list[str]:
        root = self._key("")
        with s3_errors(f"Listing the records in {self._uri}", MachineError):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=f"{root}{folder}"
            )
            keys = [row["Key"].removeprefix(root) for page in pages for row in page.get("Contents", ())]
        return [key for key in keys if key.count("/") == 1 and key.endswith(".json")]

    def read(self, name: str) -> LineageRecord | None:
        """See `RecordStore.read`."""
        return _parsed(LineageRecord, self._bytes(name))

    def read_sweep(self, name: str) -> SweepRecord | None:
        """See `RecordStore.read_sweep`."""
        return _parsed(SweepRecord, self._bytes(name))

    def _bytes(self, name: str) -> bytes | None:
        with s3_errors(f"Reading the record {self._uri}/{name}", MachineError):
            answer = get_object(self._client, self._bucket, self._key(name))
            if answer is None:
                return None
            with closing(answer["Body"]) as body:
                return body.read()

    def _key(self, path: str) -> str:
        return f"{self._prefix}/{path}" if self._prefix else path


def _first_export(texts: Iterable[bytes]) -> LineageRecord | None:
    for text in texts:
        if (record := _parsed(LineageRecord, text)) and record.outcome == "exported":
            return record
    return None


def _parsed(kind: type[_Kind], text: bytes | None) -> _Kind | None:
    try:
        return None if text is None else kind.model_validate_json(text)
    except ValueError:
        return None  # of a later version: it is not ours to judge


def _in_order(names: Iterable[str]) -> tuple[str, ...]:
    """By the time in their file names."""
    return tuple(sorted(names, key=lambda name: (name.rpartition("/")[2], name)))


def _path_of(folder: str, record: LineageRecord | SweepRecord) -> str:
    return f"{folder}/{record.started_at:%Y%m%dT%H%M%S%f}-{record.id}.json"


def _bytes_of(record: LineageRecord | SweepRecord) -> bytes:
    return canonical_json(record.model_dump(mode="json"))
