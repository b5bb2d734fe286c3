"""How objects are written to a bucket and read from it: checksums, conditions, parts, tags, encryption.

Every write carries SHA256 as a header: of the whole object in a single PUT, of each part in a multipart upload, for
which S3 knows no SHA256 of the whole. The server refuses what it received otherwise. It is a header and not a trailer,
which botocore would send over TLS, because Cloudflare R2 and older versions of Ceph take no trailers. What a server
states of an object afterwards (`states`) is what it once received; what its disks give, only `measure` reads.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlencode

from adapterline.digests import sha256_of_file
from adapterline.errors import PublishError, from_os_error
from adapterline.s3 import (
    MISMATCHES,
    Measured,
    as_checksum,
    checksum_of,
    code_of,
    get_object,
    is_transient,
    measure,
    origin_of,
    s3_errors,
    status_of,
)
from adapterline.s3_parts import PartSums, parts_bear

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import HeadObjectOutputTypeDef

Made = TypeVar("Made")

MULTIPART_THRESHOLD = 64 << 20  # bytes
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
_SMALLEST_PART = 5 << 20  # bytes: for all but the last
_MOST_PARTS = 10_000
#: Parts that are on their way at a time. They are read from the file as they are sent.
_PARALLEL = 4
#: A server without tags, and an identity that may not set them: what the server answers to either differs.
_REFUSALS = (400, 403, 405, 501)
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-tagging.html
_NOT_IN_TAGS = re.compile(r"[^\w +\-=.:/@]", re.ASCII)
_TAG_VALUE = 256  # characters


@dataclass(frozen=True)
class Storage:
    """How objects are kept. None: as the bucket's own settings say."""

    encryption: str | None = None  # AES256, aws:kms or aws:kms:dsse
    kms_key: str | None = None
    storage_class: str | None = None  # of the large files only: small ones cost more in any class but the first

    def arguments(self, *, large: bool = False) -> dict[str, Any]:
        """What boto3 wants to be told at each write."""
        given = {
            "ServerSideEncryption": self.encryption,
            "SSEKMSKeyId": self.kms_key,
            "StorageClass": self.storage_class if large else None,
        }
        return {name: value for name, value in given.items() if value}


@dataclass(frozen=True)
class Content:
    """What is said of an object beside its bytes. `metadata` and `tags` have to be ASCII."""

    kind: str  # Content-Type
    metadata: Mapping[str, str]
    tags: Mapping[str, str]
    large: bool = False

    def arguments(self) -> dict[str, Any]:
        """For boto3, without the tags, which a server may refuse."""
        return {"ContentType": self.kind, "Metadata": dict(self.metadata)}


@dataclass(frozen=True)
class Sent:
    """A file as it was read while it was uploaded."""

    size: int  # bytes
    sha256: str
    checksum: str  # what S3 states of it: of a file in parts, that is another one


def tag_value(text: str) -> str:
    """A text as the value of a tag: what none may have in it becomes `_`, and what is too long is cut."""
    return _NOT_IN_TAGS.sub("_", text)[:_TAG_VALUE]


class Objects:
    """The objects of one bucket. Its methods raise `PublishError`, and `MachineError` for a full local disk.

    `multipart` is the size, in bytes, from which on a file is uploaded in parts of at most that size (S3 allows 5 MiB
    and more).
    """

    def __init__(self, client: S3Client, bucket: str, storage: Storage, multipart: int = MULTIPART_THRESHOLD) -> None:
        self.client = client
        self.bucket = bucket
        self._storage = storage
        self._multipart = multipart
        self._tags_are_kept = True

    def uri(self, key: str) -> str:
        """As a user writes it."""
        return f"s3://{self.bucket}/{key}"

    # --- writing ------------------------------------------------------------------------------------------------------

    def put(self, key: str, data: bytes, content: Content, **condition: str) -> int:
        """One PUT, if need be under `IfMatch` or `IfNoneMatch`.

        0 if it was done, else the status by which its condition was refused: 412, 409, or 404.
        """

        def write(tags: dict[str, str]) -> int:
            return self._put(
                key, data, **content.arguments(), **self._storage.arguments(large=content.large), **tags, **condition
            )

        with s3_errors(f"Writing {self.uri(key)}", PublishError):
            return self._with_tags(content, write)

    def _put(self, key: str, data: bytes, **arguments: Any) -> int:
        try:
            self.client.put_object(
                Bucket=self.bucket, Key=key, Body=data, ChecksumSHA256=checksum_of(data), **arguments
            )
        except self.client.exceptions.ClientError as error:
            # AWS answers 409 to a write that races with another one, 404 to If-Match on a key that was deleted.
            refused = status_of(error) in (409, 412) or code_of(error) == "NoSuchKey"
            if refused and not arguments.keys().isdisjoint(("IfMatch", "IfNoneMatch")):
                return status_of(error)
            raise
        return 0

    def upload(self, key: str, path: Path, content: Content) -> Sent:
        """A file of any size, in parallel parts if it is large; what fails is aborted."""

        def write(tags: dict[str, str]) -> Sent:
            arguments = {**content.arguments(), **self._storage.arguments(large=content.large), **tags}
            if (size := path.stat().st_size) < self._multipart:
                return self._upload_whole(key, path, size, arguments)
            return self._upload_parts(key, path, size, arguments)

        try:
            with s3_errors(f"Uploading {self.uri(key)}", PublishError):
                return self._with_tags(content, write)
        except OSError as error:
            raise from_os_error(error, f"Reading {path.name} of the package", otherwise=PublishError) from error

    def _upload_whole(self, key: str, path: Path, size: int, arguments: dict[str, Any]) -> Sent:
        sha256 = sha256_of_file(path)
        checksum = as_checksum(bytes.fromhex(sha256))
        with path.open("rb") as file:
            self.client.put_object(Bucket=self.bucket, Key=key, Body=file, ChecksumSHA256=checksum, **arguments)
        return Sent(size, sha256, checksum)

    def _upload_parts(self, key: str, path: Path, size: int, arguments: dict[str, Any]) -> Sent:
        from boto3.s3.transfer import TransferConfig

        part = self._part_size(size)
        config = TransferConfig(
            multipart_threshold=self._multipart, multipart_chunksize=part, max_concurrency=_PARALLEL
        )
        with path.open("rb") as file, parts_bear(sums := PartSums(file, part), self.client, key):
            # By file name, not as an open file: of that, the transfer would hold several parts in memory.
            self.client.upload_file(
                str(path), self.bucket, key, ExtraArgs={"ChecksumAlgorithm": "SHA256", **arguments}, Config=config
            )
        return Sent(size, sums.whole(), sums.composite())

    def _part_size(self, size: int) -> int:
        """In bytes, and so that every connection sends equally many parts, of at most `multipart` if S3 allows that.

        All have one size but the last, which Cloudflare R2 asks for.
        """
        rounds = size // (self._multipart * _PARALLEL) + 1
        return max(size // (rounds * _PARALLEL) + 1, _SMALLEST_PART, size // _MOST_PARTS + 1)

    def _with_tags(self, content: Content, write: Callable[[dict[str, str]], Made]) -> Made:
        """Writes with the tags, and without them where that helps: an object is whole without its tags."""
        from boto3.exceptions import Boto3Error

        if content.tags and self._tags_are_kept:
            try:
                return write({"Tagging": urlencode(content.tags)})
            except (self.client.exceptions.ClientError, Boto3Error) as error:
                if status_of(origin_of(error)) not in _REFUSALS or is_transient(error):
                    raise
            done = write({})
            self._tags_are_kept = False
            return done
        return write({})

    def require_encryption(self, key: str) -> None:
        """PublishError unless the object there is encrypted as was asked for: a server may ignore what it is told."""
        wanted = self._storage.encryption
        with s3_errors(f"Looking for {self.uri(key)}", PublishError):
            found = self.client.head_object(Bucket=self.bucket, Key=key).get("ServerSideEncryption")
        if wanted and found != wanted:
            raise PublishError(
                f"The server of {self.uri(key)} keeps an object with the encryption {found or 'none'}.",
                expected=wanted,
                remedy="Unset ADAPTERLINE_S3_SSE, or publish to a server that encrypts so.",
            )

    def compares_checksums(self, key: str) -> bool:
        """Does the server refuse bytes that do not have the checksum they came with? `key` is free again after it."""
        wrong = checksum_of(b"2")
        with s3_errors(f"Writing {self.uri(key)}", PublishError):
            try:
                self.client.put_object(
                    Bucket=self.bucket, Key=key, Body=b"1", ChecksumSHA256=wrong, **self._storage.arguments()
                )
            except self.client.exceptions.ClientError as error:
                if code_of(error) in MISMATCHES:
                    return True
                if is_transient(error):
                    raise
                return False  # whatever it did not like, it did not say that the two differ
        self.delete(key)
        return False

    def delete(self, key: str) -> None:
        """Also one that is not there."""
        with s3_errors(f"Deleting {self.uri(key)}", PublishError):
            self.client.delete_object(Bucket=self.bucket, Key=key)

    def abort_uploads(self, prefix: str) -> None:
        """Aborts the multipart uploads under a prefix that nobody completed.

        Call it once the objects are there: whoever still uploads one of them is told so by the abort, and finds it.
        Where we may not list uploads, or the server cannot, they stay for the rule in `infra/s3-lifecycle.json`.
        """
        with s3_errors(f"Aborting the unfinished uploads under {self.uri(prefix)}", PublishError):
            try:
                pages = self.client.get_paginator("list_multipart_uploads").paginate(Bucket=self.bucket, Prefix=prefix)
                found = [upload for page in pages for upload in page.get("Uploads", ())]
                for upload in found:
                    self._abort(upload["Key"], upload["UploadId"])
            except self.client.exceptions.ClientError as error:
                if status_of(error) not in _REFUSALS or is_transient(error):
                    raise

    def _abort(self, key: str, upload: str) -> None:
        try:
            self.client.abort_multipart_upload(Bucket=self.bucket, Key=key, UploadId=upload)
        except self.client.exceptions.ClientError as error:
            if status_of(error) != 404:  # its owner was faster
                raise

    # --- reading ------------------------------------------------------------------------------------------------------

    def read(self, key: str) -> tuple[bytes, str] | None:
        """A small object and its ETag; None if there is none."""
        with s3_errors(f"Reading {self.uri(key)}", PublishError):
            if (answer := get_object(self.client, self.bucket, key)) is None:
                return None
            with closing(answer["Body"]) as body:
                return body.read(), answer["ETag"]

    def measure(self, key: str, *, size: int | None = None) -> Measured | None:
        """See `adapterline.s3.measure`."""
        with s3_errors(f"Reading back {self.uri(key)}", PublishError):
            return measure(self.client, self.bucket, key, size=size)

    def size(self, key: str) -> int | None:
        """In bytes; None if there is no such object."""
        return head["ContentLength"] if (head := self._head(key)) else None

    def states(self, key: str, sent: Sent) -> bool:
        """Does the server state size and checksum of what was sent? No byte is read; False if it states no SHA256."""
        head = self._head(key, ChecksumMode="ENABLED")
        return head is not None and (head["ContentLength"], head.get("ChecksumSHA256")) == (sent.size, sent.checksum)

    def _head(self, key: str, **more: Any) -> HeadObjectOutputTypeDef | None:
        with s3_errors(f"Looking for {self.uri(key)}", PublishError):
            try:
                return self.client.head_object(Bucket=self.bucket, Key=key, **more)
            except self.client.exceptions.ClientError as error:
                if status_of(error) == 404:
                    return None
                raise
