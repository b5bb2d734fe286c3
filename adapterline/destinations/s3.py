"""S3, and what speaks its protocol: `{prefix}/{name}/{sha12}/…`, and `{prefix}/{name}/latest.json` beside it.

`manifest.json` is the commit marker: one small PUT with `If-None-Match: *`, so that of two exporters one wins (the
conditional completion of a multipart upload is not reliable everywhere). Until it is there nothing is published. Once
it is there, nothing beside it gets other bytes, except from the exporter of that very manifest.

Of a package's files those of the bundle have the same bytes in every package of that digest. The card follows the
manifest, and two exporters of one bundle may bring two of them. So a card is only ever *created* while staging, and
only the exporter whose manifest was taken puts its own in place of another: it cannot be undone by one who lost.
"""

from __future__ import annotations

import mimetypes
import random
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, closing, suppress
from typing import TYPE_CHECKING, Any, Literal

from adapterline.destinations.latest import LATEST_NAME, MANIFEST_NAME, from_bytes, latest_of, moves, to_bytes
from adapterline.destinations.s3_versions import Shelf
from adapterline.destinations.versions import names, pointed, removed, require_expected
from adapterline.digests import sha256_of_bytes
from adapterline.errors import PublishError, from_os_error
from adapterline.package.card import CARD_NAME, images_shown
from adapterline.s3 import Measured, code_of, get_object, make_client, measure, parse_s3_uri, s3_errors, status_of
from adapterline.values import (
    Bundle,
    Latest,
    Manifest,
    Order,
    Orphan,
    Package,
    PackagedFile,
    Publication,
    Receipt,
    Version,
    check_name,
)

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

MULTIPART_THRESHOLD = 64 << 20  # bytes
_TRIES = 10


class S3Destination:
    """One name below `s3://bucket/prefix`; see `adapterline.destinations.base.Destination`.

    `multipart` is the size, in bytes, above which a file is uploaded in parts of that size (S3 allows 5 MiB and more).
    UsageError for a URI or a name that cannot be used.
    """

    def __init__(
        self, uri: str, name: str, *, client: S3Client | None = None, multipart: int = MULTIPART_THRESHOLD
    ) -> None:
        self.uri = uri
        self._bucket, prefix = parse_s3_uri(uri)
        self._root = "/".join(filter(None, (prefix, check_name(name))))
        self._client = client or make_client()
        self._multipart = multipart

    # --- can it be used? ----------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Writes, overwrites and deletes a probe: PublishError unless `If-None-Match` and `If-Match` are honoured."""
        key = f"{self._root}/.probe-{secrets.token_hex(16)}"
        try:
            with self._errors("Writing the probe", key):
                # Nobody else knows the key: a first write that is refused is our own, repeated by botocore after its
                # answer was lost.
                refused = self._put(key, b"1", IfNoneMatch="*") or self._put(key, b"2", IfNoneMatch="*")
                refused = refused and self._put(key, b"3", IfMatch=f'"{"0" * 32}"')
        except PublishError:
            with suppress(PublishError):  # the first error says more
                self._delete(key)
            raise
        self._delete(key)
        if not refused:
            raise PublishError(
                f"The server of {self.uri} overwrites an object although If-None-Match or If-Match forbids it.",
                expected="conditional writes, without which two exporters overwrite each other",
                remedy="Use Amazon S3 or a server that implements them, or update this one.",
            )

    # --- stage --------------------------------------------------------------------------------------------------------

    def stage(self, package: Package) -> Receipt:
        """See `Destination.stage`. Leftovers of a crashed run are used again once their bytes are read back."""
        if there := self._manifest(package):
            return self._receipt_of_published(package, *there)
        for file in package.files:
            self._upload(package, file)
        return Receipt(
            destination=self.uri,
            name=package.name,
            digest=package.manifest.digest,
            location=self._uri(self._key(package)),
            manifest_sha256=sha256_of_bytes(package.manifest_bytes),
            files=package.files,
            published=False,
        )

    def _upload(self, package: Package, file: PackagedFile) -> None:
        key = self._key(package, file.path)
        if self._holds(key, file):
            return
        if not _follows_manifest(package, file):
            self._transfer(package, file, key)
        elif not self._create(package, file, key):
            return  # another exporter's: release decides whose stays
        if not self._holds(key, file):
            # Not if somebody published meanwhile: what bears a commit marker is never taken back.
            if not self._manifest(package):
                self._delete(key)
            raise PublishError(
                f"{self._uri(key)} was read back with other bytes than were uploaded.",
                expected=f"{file.size} bytes with sha256 {file.sha256}",
                remedy="Run the export again; if this stays, the server or its disks damage what they store.",
                transient=True,
            )

    def _create(self, package: Package, file: PackagedFile, key: str) -> bool:
        data = self._local_bytes(package, file)
        with self._errors("Writing", key):
            return not self._put(key, data, IfNoneMatch="*", **_describe(file))

    def _transfer(self, package: Package, file: PackagedFile, key: str) -> None:
        from boto3.s3.transfer import TransferConfig

        config = TransferConfig(
            multipart_threshold=self._multipart, multipart_chunksize=self._multipart, max_concurrency=4
        )
        try:
            with self._errors("Uploading", key):
                # By file name, not as an open file: of that, the transfer would hold several parts in memory.
                self._client.upload_file(
                    str(package.folder / file.path),
                    self._bucket,
                    key,
                    ExtraArgs={"ChecksumAlgorithm": "SHA256", **_describe(file)},
                    Config=config,
                )
        except OSError as error:
            raise from_os_error(error, f"Reading {file.path} of the package", otherwise=PublishError) from error

    def _receipt_of_published(self, package: Package, manifest: Manifest, data: bytes) -> Receipt:
        # Of the bundle only: a card that an interrupted release has not replaced yet will be by the next one.
        for file in _bundle_files(manifest):
            if not self._holds(self._key(package, file.path), file):
                raise PublishError(
                    f"{self._uri(self._key(package, file.path))} is published, and is not there as it was published.",
                    expected=f"{file.size} bytes with sha256 {file.sha256}",
                    remedy=f"Restore it, or delete {MANIFEST_NAME} beside it and run the export again.",
                )
        return Receipt(
            destination=self.uri,
            name=package.name,
            digest=manifest.digest,
            location=self._uri(self._key(package)),
            manifest_sha256=sha256_of_bytes(data),
            files=self._files(package, manifest, data),
            published=True,
        )

    # --- release ------------------------------------------------------------------------------------------------------

    def release(self, package: Package, receipt: Receipt, order: Order) -> Publication:
        """See `Destination.release`. The receipt of the publication has the manifest that counts there."""
        manifest, data = self._commit(package)
        if data == package.manifest_bytes:
            self._put_siblings(package)
        files = self._files(package, manifest, data)
        receipt = receipt.model_copy(update={"manifest_sha256": sha256_of_bytes(data), "files": files})
        moved = self._move_latest(latest_of(package, receipt, order), receipt)
        location = self._uri(self._key(package))
        return Publication(receipt=receipt, latest=moved, url=location, load=location)

    def _commit(self, package: Package) -> tuple[Manifest, bytes]:
        """The manifest that counts, and its bytes: ours, unless another one came first."""
        key = self._key(package, MANIFEST_NAME)
        for _ in _tries():
            if there := self._manifest(package):
                return there
            self._require_staged(package)
            with self._errors("Writing", key):
                status = self._put(key, package.manifest_bytes, IfNoneMatch="*", ContentType="application/json")
            if not status:
                return package.manifest, package.manifest_bytes
            # 412: it is there now, perhaps because the answer to our own write was lost. 409: another one is writing.
        raise self._contended(key)

    def _require_staged(self, package: Package) -> None:
        # Other destinations may have taken hours since this one was staged, and somebody may have tidied up.
        for file in package.files:
            key = self._key(package, file.path)
            with self._errors("Looking for", key):
                size = self._size(key)
            if size is None or (size != file.size and not _follows_manifest(package, file)):
                raise PublishError(
                    f"{self._uri(key)} was staged, and is not there any more.",
                    expected=f"{file.size} bytes",
                    remedy="Run the export again.",
                    transient=True,
                )

    def _put_siblings(self, package: Package) -> None:
        if self._shows_more(package):
            return
        for file in package.files:
            key = self._key(package, file.path)
            if _follows_manifest(package, file) and not self._holds(key, file):
                data = self._local_bytes(package, file)
                with self._errors("Writing", key):
                    self._put(key, data, **_describe(file))

    def _move_latest(self, wanted: Latest, receipt: Receipt) -> Literal["moved", "kept"]:
        key = f"{self._root}/{LATEST_NAME}"
        for _ in _tries():
            current, condition = self._latest(key)
            if current == wanted or not moves(current, wanted):
                if not self._is_whole(receipt):
                    raise removed(receipt)
                return "moved" if current == wanted else "kept"
            if self._set(key, wanted, current, condition, receipt):
                return "moved"
        raise self._contended(key)

    def _set(
        self, key: str, wanted: Latest, current: Latest | None, condition: dict[str, str], receipt: Receipt
    ) -> bool:
        """Moves an alias; False if it is no longer what `condition` says.

        A prune looks at the aliases after it took the manifest away, and this looks at the manifest after it moved the
        alias: of two that meet, one sees the other.
        """
        with self._errors("Writing", key):
            if self._put(key, to_bytes(wanted), ContentType="application/json", **condition):
                return False
        if not self._is_whole(receipt):
            self._move_back(key, wanted, current)
            raise removed(receipt)
        return True

    def _move_back(self, key: str, wanted: Latest, before: Latest | None) -> None:
        current, condition = self._latest(key)
        if current != wanted:
            return  # somebody moved it on
        with self._errors("Writing", key):
            if before is None:  # unconditionally: not every server knows a conditional deletion
                self._client.delete_object(Bucket=self._bucket, Key=key)
            else:
                self._put(key, to_bytes(before), ContentType="application/json", **condition)

    def _is_whole(self, receipt: Receipt) -> bool:
        """Is it published, and has every file of the bundle its size? No byte of them is read."""
        folder = f"{self._root}/{receipt.digest[:12]}"
        with self._errors("Looking for", folder):
            there = self._read(f"{folder}/{MANIFEST_NAME}")
            if there is None or sha256_of_bytes(there[0]) != receipt.manifest_sha256:
                return False
            files = _bundle_files(Manifest.model_validate_json(there[0]))
            return all(self._size(f"{folder}/{file.path}") == file.size for file in files)

    def _latest(self, key: str) -> tuple[Latest | None, dict[str, str]]:
        """What it says, and the condition under which a write replaces exactly that."""
        with self._errors("Reading", key):
            there = self._read(key)
        if there is None:
            return None, {"IfNoneMatch": "*"}
        data, etag = there
        return from_bytes(data, self._uri(key)), {"IfMatch": etag}

    # --- verify -------------------------------------------------------------------------------------------------------

    def verify(self, published: Publication | Version) -> bool:
        """Reads the manifest and every file of the receipt from the first to the last byte."""
        receipt = published.receipt
        folder = f"{self._root}/{receipt.digest[:12]}"
        with self._errors("Reading", f"{folder}/{MANIFEST_NAME}"):
            manifest = measure(self._client, self._bucket, f"{folder}/{MANIFEST_NAME}")
        if manifest is None or manifest.sha256 != receipt.manifest_sha256:
            return False
        return all(self._holds(f"{folder}/{file.path}", file) for file in receipt.files)

    # --- what is published already ------------------------------------------------------------------------------------

    def versions(self, digits: str = "") -> tuple[Version, ...]:
        """See `Destination.versions`. A version was published when its manifest was put."""
        with self._errors("Reading", self._root):
            return tuple(self._shelf().versions(self.uri, digits))

    def aliases(self) -> Mapping[str, Latest]:
        """See `Destination.aliases`."""
        with self._errors("Reading", self._root):
            return self._shelf().aliases()

    def point(self, alias: str, version: Version, expect: str | None = None) -> Latest | None:
        """See `Destination.point`. `If-Match`, or `If-None-Match` for an alias that is not there yet."""
        key = f"{self._root}/{alias}.json"
        for _ in _tries():
            current, condition = self._latest(key)
            if names(current, version):
                return current
            require_expected(current, expect, alias, self.uri)
            if self._set(key, version.pointer(), current, condition, version.receipt):
                return current
        raise self._contended(key)

    def remove(self, version: Version) -> bool:
        """See `Destination.remove`. The manifest first; if an alias points to it then, it is put back."""
        marker = f"{self._root}/{version.sha12}/{MANIFEST_NAME}"
        if pointed(self.aliases(), version):
            return False
        with self._errors("Reading", marker):
            manifest = self._read(marker)
        if manifest is None:
            return True  # somebody else removes it
        self._delete(marker)
        if pointed(self.aliases(), version):
            with self._errors("Writing", marker):
                self._put(marker, manifest[0], IfNoneMatch="*", ContentType="application/json")
            return False
        with self._errors("Deleting", f"{self._root}/{version.sha12}/"):
            return self._shelf().sweep(version.sha12)

    def orphans(self) -> tuple[Orphan, ...]:
        """See `Destination.orphans`."""
        with self._errors("Reading", self._root):
            return tuple(self._shelf().orphans())

    def discard(self, orphan: Orphan) -> bool:
        """See `Destination.discard`."""
        with s3_errors(f"Deleting {orphan.place}", PublishError):
            return self._shelf().discard(orphan)

    def _shelf(self) -> Shelf:
        return Shelf(self._client, self._bucket, self._root)

    # --- objects ------------------------------------------------------------------------------------------------------

    def _manifest(self, package: Package) -> tuple[Manifest, bytes] | None:
        """The manifest that is there and its bytes; PublishError if it is not one of this package's digest."""
        key = self._key(package, MANIFEST_NAME)
        with self._errors("Reading", key):
            there = self._read(key)
        if there is None:
            return None
        remedy = "Move it away, or publish under another name or prefix."
        try:
            manifest = Manifest.model_validate_json(there[0])
        except ValueError as error:
            raise PublishError(
                f"{self._uri(key)} is not a manifest that this version of adapterline reads.",
                expected=f"a manifest of {package.manifest.digest}",
                remedy=remedy,
            ) from error
        if manifest.digest != package.manifest.digest or Bundle.digest_of(manifest.files) != manifest.digest:
            raise PublishError(
                f"{self._uri(key)} is the manifest of another export ({manifest.digest}).",
                expected=f"none, or one of {package.manifest.digest}",
                remedy=remedy,
            )
        return manifest, there[0]

    def _files(self, package: Package, manifest: Manifest, data: bytes) -> tuple[PackagedFile, ...]:
        """The files that go with the manifest that counts: of another exporter's, the card as it is there."""
        if data == package.manifest_bytes and not self._shows_more(package):
            return package.files
        paths = (CARD_NAME, *self._images_shown(package))
        measured = {path: self._measured(package, path) for path in paths}
        there = (PackagedFile(path=path, size=m.size, sha256=m.sha256) for path, m in measured.items() if m)
        return (*_bundle_files(manifest), *there)

    def _shows_more(self, package: Package) -> bool:
        """Does the card there have images, and ours none? Then it stays: who renders nothing takes none away."""
        return not package.images and bool(self._images_shown(package))

    def _images_shown(self, package: Package) -> tuple[str, ...]:
        key = self._key(package, CARD_NAME)
        with self._errors("Reading", key):
            there = self._read(key)
        return images_shown(there[0]) if there else ()

    def _measured(self, package: Package, path: str) -> Measured | None:
        key = self._key(package, path)
        with self._errors("Reading", key):
            return measure(self._client, self._bucket, key)

    def _holds(self, key: str, file: PackagedFile) -> bool:
        """Does the object have the bytes of `file`? All of them are read, unless its size is another one."""
        with self._errors("Reading back", key):
            there = measure(self._client, self._bucket, key, size=file.size)
        return there is not None and (there.size, there.sha256) == (file.size, file.sha256)

    def _read(self, key: str) -> tuple[bytes, str] | None:
        """A small object and its ETag; None if there is none."""
        if (answer := get_object(self._client, self._bucket, key)) is None:
            return None
        with closing(answer["Body"]) as body:
            return body.read(), answer["ETag"]

    def _size(self, key: str) -> int | None:
        try:
            return self._client.head_object(Bucket=self._bucket, Key=key)["ContentLength"]
        except self._client.exceptions.ClientError as error:
            if status_of(error) == 404:
                return None
            raise

    def _put(self, key: str, data: bytes, **arguments: Any) -> int:
        """One PUT. 0 if it was done, else the status by which its condition was refused: 412, 409, or 404."""
        try:
            self._client.put_object(Bucket=self._bucket, Key=key, Body=data, ChecksumAlgorithm="SHA256", **arguments)
        except self._client.exceptions.ClientError as error:
            # AWS answers 409 to a write that races with another one, 404 to If-Match on a key that was deleted.
            refused = status_of(error) in (409, 412) or code_of(error) == "NoSuchKey"
            if refused and not arguments.keys().isdisjoint(("IfMatch", "IfNoneMatch")):
                return status_of(error)
            raise
        return 0

    def _delete(self, key: str) -> None:
        with self._errors("Deleting", key):
            self._client.delete_object(Bucket=self._bucket, Key=key)

    def _local_bytes(self, package: Package, file: PackagedFile) -> bytes:
        try:
            return (package.folder / file.path).read_bytes()
        except OSError as error:
            raise from_os_error(error, f"Reading {file.path} of the package", otherwise=PublishError) from error

    def _key(self, package: Package, path: str = "") -> str:
        return "/".join(filter(None, (self._root, package.sha12, path)))

    def _uri(self, key: str) -> str:
        return f"s3://{self._bucket}/{key}"

    def _errors(self, doing: str, key: str) -> AbstractContextManager[None]:
        return s3_errors(f"{doing} {self._uri(key)}", PublishError)

    def _contended(self, key: str) -> PublishError:
        return PublishError(
            f"{self._uri(key)} was changed by others {_TRIES} times while it was being written.",
            expected="a moment without another writer",
            remedy="Run the same command again.",
            transient=True,
        )


def _follows_manifest(package: Package, file: PackagedFile) -> bool:
    return all(file.path != exported.path for exported in package.manifest.files)


def _bundle_files(manifest: Manifest) -> tuple[PackagedFile, ...]:
    return tuple(PackagedFile(path=file.path, size=file.size, sha256=file.sha256) for file in manifest.files)


def _tries() -> Iterator[int]:
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(random.uniform(0, min(0.05 * 2**attempt, 2)))
        yield attempt


def _describe(file: PackagedFile) -> dict[str, Any]:
    kind = mimetypes.guess_type(file.path)[0] or "application/octet-stream"
    if file.path.endswith(".md"):
        kind = "text/markdown; charset=utf-8"
    return {"ContentType": kind, "Metadata": {"sha256": file.sha256}}
