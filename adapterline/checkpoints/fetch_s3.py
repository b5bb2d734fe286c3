"""A checkpoint in S3 becomes files in a folder: no key is trusted as a path, and no half of an object gets a name."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from adapterline.errors import CheckpointError, CheckpointIncompleteError, from_os_error
from adapterline.s3 import CHUNK, code_of, make_client, parse_s3_uri, s3_errors, status_of

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_TRIES = 3  # of one object whose bytes break off on the way


@dataclass(frozen=True)
class _Object:
    key: str
    path: str  # relative to the folder
    size: int
    etag: str
    modified_at: datetime


def fetch_s3(
    uri: str,
    folder: Path,
    wanted: Callable[[str], bool] = lambda path: True,
    *,
    client: S3Client | None = None,
) -> Path:
    """Fetches what `uri` names: an object into a file in `folder`, whose path is returned, else all objects below it.

    Below a prefix only those are fetched for whose path relative to it `wanted` is true, and `folder` is returned. The
    files have the objects' modification times. UsageError for a bad URI; CheckpointError (transient if the server is
    not reached) for what is missing or forbidden and for a key that cannot safely be a path; CheckpointIncompleteError
    for what was changed meanwhile.
    """
    bucket, prefix = parse_s3_uri(uri)
    client = client or make_client(CheckpointError)
    with s3_errors(f"Reading {uri}", CheckpointError):
        exact = _look_up(client, bucket, prefix) if prefix else None
        found = [exact] if exact else _list(client, bucket, prefix)
    if not found:
        raise CheckpointIncompleteError(
            f"There is nothing at {uri}.", expected="an object, or objects below it", remedy="Check bucket and prefix."
        )
    _check_paths(found, uri)
    chosen = found if exact else [each for each in found if wanted(each.path)]
    if not chosen:
        raise CheckpointError(
            f"{uri} has {len(found)} objects and none that belongs to a checkpoint.",
            expected="a safetensors file, a PEFT folder or a folder that a trainer saved",
            remedy=f"Name the checkpoint's own folder or file; the first object is {found[0].path!r}.",
        )
    for each in chosen:
        _fetch(client, bucket, each, folder / each.path)
    return folder / exact.path if exact else folder


def _look_up(client: S3Client, bucket: str, key: str) -> _Object | None:
    try:
        head = client.head_object(Bucket=bucket, Key=key)
    except client.exceptions.ClientError as error:
        if status_of(error) == 404:
            return None
        raise
    return _Object(key, key.rpartition("/")[2], head["ContentLength"], head["ETag"], head["LastModified"])


def _list(client: S3Client, bucket: str, prefix: str) -> list[_Object]:
    below = f"{prefix}/" if prefix else ""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=below)
    return [
        _Object(row["Key"], row["Key"].removeprefix(below), row["Size"], row["ETag"], row["LastModified"])
        for page in pages
        for row in page.get("Contents", ())
        # What consoles put to show an empty folder.
        if not (row["Key"].endswith("/") and row["Size"] == 0)
    ]


def _check_paths(found: list[_Object], uri: str) -> None:
    """CheckpointError for a key that leads out of the folder, or that is a file and a folder at once."""
    files = {each.path for each in found}
    for each in found:
        parts = each.path.split("/")
        parents = {"/".join(parts[:end]) for end in range(1, len(parts))}
        if any(part in ("", ".", "..") or "\x00" in part for part in parts) or parents & files:
            raise CheckpointError(
                f"The key {each.key!r} below {uri} cannot be a file.",
                expected="keys without empty, '.' and '..' parts and NUL, none of which is also a folder of others",
                remedy="Move it away.",
            )


def _fetch(client: S3Client, bucket: str, each: _Object, target: Path) -> None:
    where = f"s3://{bucket}/{each.key}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=".fetch-", dir=target.parent)
        part = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                _download_patiently(client, bucket, each, file)
            modified_at = each.modified_at.timestamp()
            os.utime(part, (modified_at, modified_at))
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise from_os_error(error, f"Writing {where} to {target.parent}", otherwise=CheckpointError) from error


def _download_patiently(client: S3Client, bucket: str, each: _Object, file: BinaryIO) -> None:
    # botocore repeats a request, not a body that breaks off, and a checkpoint has many bytes.
    for last in (False,) * (_TRIES - 1) + (True,):
        file.seek(0)  # the same object again, by its ETag: it covers what came before
        try:
            return _download(client, bucket, each, file)
        except CheckpointIncompleteError:
            raise
        except CheckpointError as error:
            if last or not error.transient:
                raise


def _download(client: S3Client, bucket: str, each: _Object, file: BinaryIO) -> None:
    where = f"s3://{bucket}/{each.key}"
    digest, size = hashlib.sha256(), 0
    with s3_errors(f"Reading {where}", CheckpointError):
        try:
            # ChecksumMode: botocore then compares the bytes with the checksum that the server states.
            answer = client.get_object(Bucket=bucket, Key=each.key, IfMatch=each.etag, ChecksumMode="ENABLED")
        except client.exceptions.ClientError as error:
            if status_of(error) != 412 and code_of(error) != "NoSuchKey":
                raise
            raise CheckpointIncompleteError(
                f"{where} was changed or deleted while it was being fetched.",
                expected="a checkpoint that is complete",
                remedy="Export it again once its training has finished writing.",
                transient=True,
            ) from error
        with closing(answer["Body"]) as body:
            for chunk in body.iter_chunks(CHUNK):
                file.write(chunk)
                digest.update(chunk)
                size += len(chunk)
    # What adapterline and others say of the whole object, also of one that came in parts.
    stated = answer["Metadata"].get("sha256", "")
    if size != each.size or (re.fullmatch(r"[0-9a-f]{64}", stated) and stated != digest.hexdigest()):
        raise CheckpointError(
            f"{where} gave {size} bytes with sha256 {digest.hexdigest()}.",
            expected=f"{each.size} bytes" + (f" with sha256 {stated}, as its metadata says" if stated else ""),
            remedy="Upload it again.",
            transient=size != each.size,
        )
