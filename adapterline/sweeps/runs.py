"""What lies directly under a root is a training run each: a folder (a prefix), or a file of weights.

    /mnt/runs, s3://bucket/runs     root
        sks-dog/                    a run: a trainer's output folder
        portrait.safetensors        a run of one file

What begins with a dot is no run. A run is finished where a marker `_SUCCESS` lies in it (as Hadoop, Spark and SageMaker
jobs leave one), or where nothing in it was written for a while. Whether its headers are whole shows when it is read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from adapterline.checkpoints import is_wanted
from adapterline.digests import sha256_of_file
from adapterline.errors import CheckpointError, UsageError, from_os_error
from adapterline.values import TrainingRun, digest_of
from adapterline.values.base import Value

MARKER = "_SUCCESS"
#: What a run may say of itself: a name, a base, and the fields of `TrainingRun`.
DESCRIPTOR = "training-run.json"
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")


class Descriptor(Value):
    """The content of a run's `training-run.json`; an event says the same."""

    name: str | None = None
    base: str | None = None
    run: TrainingRun | None = None


@dataclass(frozen=True)
class FoundFile:
    """A file of a run; `version` changes with its content: its ETag, or None where the bytes have to be asked."""

    path: str  # relative to the run
    size: int
    modified_at: datetime
    version: str | None = None


@dataclass(frozen=True)
class FoundRun:
    """A run under a root, and every file in it, sorted by path; of a run of one file that file, its path its name."""

    uri: str
    files: tuple[FoundFile, ...]

    def is_finished(self, quiet: timedelta, now: datetime) -> bool:
        """Does it say so, or was nothing written for so long?"""
        if any(file.path == MARKER for file in self.files):
            return True
        return bool(self.files) and max(file.modified_at for file in self.files) <= now - quiet

    def names(self) -> tuple[tuple[str, bool], ...]:
        """What lies directly in it, and whether that is a folder."""
        return tuple(sorted({(file.path.partition("/")[0], "/" in file.path) for file in self.files}))

    def digest(self) -> str:
        """Of the content of everything that may belong to an adapter. CheckpointError if it cannot be read."""
        rows = []
        for file in self.files:
            if is_wanted(file.path) or file.path == DESCRIPTOR:
                rows.append([file.path, file.size, file.version or self._sha256(file)])
        return digest_of(rows)

    def descriptor(self) -> Descriptor:
        """What it says of itself; CheckpointError if that cannot be understood."""
        if not any(file.path == DESCRIPTOR for file in self.files):
            return Descriptor()
        return describe(self.uri)

    def _sha256(self, file: FoundFile) -> str:
        path = Path(self.uri)
        try:
            return sha256_of_file(path / file.path if path.is_dir() else path)
        except OSError as error:
            raise from_os_error(error, f"Reading {file.path} of {self.uri}", otherwise=CheckpointError) from error


def describe(uri: str) -> Descriptor:
    """What the run at `uri` says of itself; an empty descriptor if nothing.

    CheckpointError (transient if a server is not reached) if it cannot be read, or understood.
    """
    if not (text := _read(f"{uri.rstrip('/')}/{DESCRIPTOR}")):
        return Descriptor()
    try:
        return Descriptor.model_validate_json(text)
    except ValueError as error:
        raise CheckpointError(
            f"{DESCRIPTOR} of {uri} cannot be understood: {str(error).splitlines()[0]}.",
            expected='{"name": ..., "base": ..., "run": {"run_id": ..., ...}}',
            remedy="Correct it, or remove it.",
        ) from error


def find_runs(root: str) -> Iterator[FoundRun]:
    """The runs under a folder or `s3://bucket/prefix`, by name.

    UsageError for another kind of root, CheckpointError if it cannot be listed.
    """
    if root.startswith("s3://"):
        yield from _in_s3(root)
    elif "://" in root:
        raise UsageError(f"{root!r} cannot be swept.", expected="a folder or s3://bucket/prefix")
    else:
        try:
            yield from _in_folder(Path(root).expanduser().absolute())
        except OSError as error:
            raise from_os_error(error, f"Listing {root}", otherwise=CheckpointError) from error


def _in_folder(root: Path) -> Iterator[FoundRun]:
    for entry in sorted(root.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            files = [_stat(Path(at, name), entry) for at, _, names in os.walk(entry) for name in names]
            yield FoundRun(str(entry), tuple(sorted((f for f in files if f), key=lambda file: file.path)))
        elif entry.name.endswith(_WEIGHTS) and (alone := _stat(entry, root)):
            yield FoundRun(str(entry), (alone,))


def _stat(file: Path, folder: Path) -> FoundFile | None:
    try:
        found = file.stat()
    except FileNotFoundError:  # a temporary file of the trainer, which is still at work
        return FoundFile(str(file.relative_to(folder)), 0, datetime.now(UTC)) if not file.is_symlink() else None
    return FoundFile(str(file.relative_to(folder)), found.st_size, datetime.fromtimestamp(found.st_mtime, UTC))


def _in_s3(root: str) -> Iterator[FoundRun]:
    from adapterline.s3 import make_client, parse_s3_uri, s3_errors

    bucket, prefix = parse_s3_uri(root)
    below = f"{prefix}/" if prefix else ""
    client = make_client(CheckpointError)
    runs: dict[str, list[FoundFile]] = {}
    with s3_errors(f"Listing {root}", CheckpointError):
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=below):
            for row in page.get("Contents", ()):
                name, _, path = row["Key"].removeprefix(below).partition("/")
                if name and not name.startswith(".") and (path or name.endswith(_WEIGHTS)):
                    file = FoundFile(path or name, row["Size"], row["LastModified"], row["ETag"])
                    runs.setdefault(name, []).append(file)
    for name, files in sorted(runs.items()):
        yield FoundRun(f"s3://{bucket}/{below}{name}", tuple(sorted(files, key=lambda file: file.path)))


def _read(uri: str) -> bytes:
    """The content of a file or an object; of one that is not there none."""
    if not uri.startswith("s3://"):
        try:
            return Path(uri).read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise from_os_error(error, f"Reading {uri}", otherwise=CheckpointError) from error
    from adapterline.s3 import get_object, make_client, parse_s3_uri, s3_errors

    with s3_errors(f"Reading {uri}", CheckpointError):
        answer = get_object(make_client(CheckpointError), *parse_s3_uri(uri))
        return answer["Body"].read() if answer else b""
