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
from contextlib import AbstractContextManager, suppress
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from adapterline.destinations.latest import LATEST_NAME, MANIFEST_NAME, from_bytes, latest_of, moves, to_bytes
from adapterline.destinations.s3_objects import MULTIPART_THRESHOLD, Content, Objects, Storage, tag_value
from adapterline.destinations.s3_versions import Shelf
from adapterline.destinations.versions import names, pointed, removed, require_expected
from adapterline.digests import sha256_of_bytes
from adapterline.errors import PublishError, from_os_error
from adapterline.package.card import CARD_NAME, images_shown
from adapterline.package.siblings import sibling_paths
from adapterline.s3 import make_client, parse_s3_uri, s3_errors
from adapterline.values import (
    PROVENANCE_PATH,
    SIGNATURE_PATH,
    Bundle,
    Latest,
    Manifest,
    Order,
    Orphan,
    Package,
    PackagedFile,
    Publication,
    ReadBack,
    Receipt,
    Version,
    check_name,
    provenance_name,
    signature_name,
)

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_TRIES = 10
_JSON = "application/json"
#: Of `latest.json`, which belongs to no package.
_PLAIN = Content(_JSON, {}, {})
_PROBE = Content("application/octet-stream", {}, {}, large=True)


class S3Destination:
    """One name below `s3://bucket/prefix`; see `adapterline.destinations.base.Destination`.

    For `multipart` see `Objects`. With `read_back` "checksum" the server's own checksum of what was uploaded proves it,
    where the server compares and states checksums. UsageError for a URI or a name that cannot be used.
    """

    def __init__(
        self,
        uri: str,
        name: str,
        *,
        client: S3Client | None = None,
        storage: Storage = Storage(),  # noqa: B008  (frozen)
        multipart: int = MULTIPART_THRESHOLD,
        read_back: ReadBack = "checksum",
    ) -> None:
        self.uri = uri
        bucket, prefix = parse_s3_uri(uri)
        self._root = "/".join(filter(None, (prefix, check_name(name))))
        self._objects = Objects(client or make_client(), bucket, storage, multipart)
        self._read_back = read_back

    # --- can it be used? ----------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Writes, overwrites and deletes a probe: PublishError unless `If-None-Match` and `If-Match` are honoured.

        The probe is kept as the large files will be, so that a key or a class that the server does not take is refused
        before anything is computed.
        """
        key, put = self._probe(), self._objects.put
        try:
            # Nobody else knows the key: a first write that is refused is our own, repeated by botocore after its
            # answer was lost.
            refused = put(key, b"1", _PROBE, IfNoneMatch="*") or put(key, b"2", _PROBE, IfNoneMatch="*")
            refused = refused and put(key, b"3", _PROBE, IfMatch=f'"{"0" * 32}"')
            self._objects.require_encryption(key)
        except PublishError:
            with suppress(PublishError):  # the first error says more
                self._objects.delete(key)
            raise
        self._objects.delete(key)
        if not refused:
            raise PublishError(
                f"The server of {self.uri} overwrites an object although If-None-Match or If-Match forbids it.",
                expected="conditional writes, without which two exporters overwrite each other",
                remedy="Use Amazon S3 or a server that implements them, or update this one.",
            )

    def _probe(self) -> str:
        """A key that nobody has, or will have."""
        return f"{self._root}/.probe-{secrets.token_hex(16)}"

    # --- stage --------------------------------------------------------------------------------------------------------

    def stage(self, package: Package) -> Receipt:
        """See `Destination.stage`. Leftovers of a crashed run are used again once their bytes are read back."""
        if there := self._manifest(package):
            return self._receipt_of_published(package, *there)
        read = [self._upload(package, file) for file in package.files]
        self._objects.abort_uploads(f"{self._key(package)}/")
        return Receipt(
            destination=self.uri,
            name=package.name,
            digest=package.manifest.digest,
            location=self._objects.uri(self._key(package)),
            manifest_sha256=sha256_of_bytes(package.manifest_bytes),
            files=package.files,
            published=False,
            read_back="bytes" if all(read) else "checksum",
        )

    def _upload(self, package: Package, file: PackagedFile) -> bool:
        """False if the server's checksum proves it, and no byte was read."""
        key = self._key(package, file.path)
        if self._holds(key, file):
            return True
        if not _follows_manifest(package, file):
            sent = self._objects.upload(key, package.folder / file.path, _content(package, file))
            if sent.sha256 != file.sha256:
                self._take_back(package, key)
                raise PublishError(
                    f"{file.path} of the package is no longer what was written: its sha256 is {sent.sha256}.",
                    expected=f"{file.size} bytes with sha256 {file.sha256}",
                    remedy="Run the export again; if this stays, the disk damages what it stores.",
                )
            if self._statements_prove and self._objects.states(key, sent):
                return False
        elif self._objects.put(key, _local_bytes(package, file), _content(package, file), IfNoneMatch="*"):
            return True  # another exporter's: release decides whose stays
        if not self._holds(key, file):
            self._take_back(package, key)
            raise PublishError(
                f"{self._objects.uri(key)} was read back with other bytes than were uploaded.",
                expected=f"{file.size} bytes with sha256 {file.sha256}",
                remedy="Run the export again; if this stays, the server or its disks damage what they store.",
                transient=True,
            )
        return True

    def _take_back(self, package: Package, key: str) -> None:
        # Not if somebody published meanwhile: what bears a commit marker stays.
        if not self._manifest(package):
            self._objects.delete(key)

    @cached_property
    def _statements_prove(self) -> bool:
        return self._read_back == "checksum" and self._objects.compares_checksums(self._probe())

    def _receipt_of_published(self, package: Package, manifest: Manifest, data: bytes) -> Receipt:
        # Of the bundle only: a card that an interrupted release has not replaced yet will be by the next one.
        for file in _bundle_files(manifest):
            key = self._key(package, file.path)
            if not self._holds(key, file):
                raise PublishError(
                    f"{self._objects.uri(key)} is published, and is not there as it was published.",
                    expected=f"{file.size} bytes with sha256 {file.sha256}",
                    remedy=f"Restore it, or delete {MANIFEST_NAME} beside it and run the export again.",
                )
        return Receipt(
            destination=self.uri,
            name=package.name,
            digest=manifest.digest,
            location=self._objects.uri(self._key(package)),
            manifest_sha256=sha256_of_bytes(data),
            files=self._files(package, manifest, data),
            published=True,
            read_back="bytes",
        )

    # --- release ------------------------------------------------------------------------------------------------------

    def release(self, package: Package, receipt: Receipt, order: Order) -> Publication:
        """See `Destination.release`. The receipt of the publication has the manifest that counts there."""
        manifest, data = self._commit(package)
        if data == package.manifest_bytes:
            self._put_siblings(package)
        else:  # provenance and signature of a manifest that is not there mean nothing
            digest = sha256_of_bytes(package.manifest_bytes)
            for path in (provenance_name(digest), signature_name(digest)):
                self._objects.delete(self._key(package, path))
        files = self._files(package, manifest, data)
        receipt = receipt.model_copy(update={"manifest_sha256": sha256_of_bytes(data), "files": files})
        moved = self._move_latest(latest_of(package, receipt, order), receipt)
        location = self._objects.uri(self._key(package))
        return Publication(receipt=receipt, latest=moved, url=location, load=location)

    def _commit(self, package: Package) -> tuple[Manifest, bytes]:
        """The manifest that counts, and its bytes: ours, unless another one came first."""
        key = self._key(package, MANIFEST_NAME)
        for _ in _tries():
            if there := self._manifest(package):
                return there
            self._require_staged(package)
            if not self._objects.put(key, package.manifest_bytes, _content_of_manifest(package), IfNoneMatch="*"):
                return package.manifest, package.manifest_bytes
            # 412: it is there now, perhaps because the answer to our own write was lost. 409: another one is writing.
        raise self._contended(key)

    def _require_staged(self, package: Package) -> None:
        # Other destinations may have taken hours since this one was staged, and somebody may have tidied up.
        for file in package.files:
            key = self._key(package, file.path)
            size = self._objects.size(key)
            if size is None or (size != file.size and not _follows_manifest(package, file)):
                raise PublishError(
                    f"{self._objects.uri(key)} was staged, and is not there any more.",
                    expected=f"{file.size} bytes",
                    remedy="Run the export again.",
                    transient=True,
                )

    def _put_siblings(self, package: Package) -> None:
        if self._shows_more(package):
            return
        for file in package.files:
            key = self._key(package, file.path)
            if not _follows_manifest(package, file) or _names_manifest(file):
                continue  # these were staged, and of two signatures of one manifest the first stays
            if not self._holds(key, file):
                self._objects.put(key, _local_bytes(package, file), _content(package, file))

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
        if self._objects.put(key, to_bytes(wanted), _PLAIN, **condition):
            return False
        if not self._is_whole(receipt):
            self._move_back(key, wanted, current)
            raise removed(receipt)
        return True

    def _move_back(self, key: str, wanted: Latest, before: Latest | None) -> None:
        current, condition = self._latest(key)
        if current != wanted:
            return  # somebody moved it on
        if before is None:  # unconditionally: not every server knows a conditional deletion
            self._objects.delete(key)
        else:
            self._objects.put(key, to_bytes(before), _PLAIN, **condition)

    def _is_whole(self, receipt: Receipt) -> bool:
        """Is it published, and has every file of the bundle its size? No byte of them is read."""
        folder = f"{self._root}/{receipt.digest[:12]}"
        there = self._objects.read(f"{folder}/{MANIFEST_NAME}")
        if there is None or sha256_of_bytes(there[0]) != receipt.manifest_sha256:
            return False
        files = _bundle_files(Manifest.model_validate_json(there[0]))
        return all(self._objects.size(f"{folder}/{file.path}") == file.size for file in files)

    def _latest(self, key: str) -> tuple[Latest | None, dict[str, str]]:
        """What it says, and the condition under which a write replaces exactly that."""
        if (there := self._objects.read(key)) is None:
            return None, {"IfNoneMatch": "*"}
        data, etag = there
        return from_bytes(data, self._objects.uri(key)), {"IfMatch": etag}

    # --- verify -------------------------------------------------------------------------------------------------------

    def verify(self, published: Publication | Version) -> bool:
        """Reads the manifest and every file of the receipt from the first to the last byte."""
        receipt = published.receipt
        folder = f"{self._root}/{receipt.digest[:12]}"
        manifest = self._objects.measure(f"{folder}/{MANIFEST_NAME}")
        if manifest is None or manifest.sha256 != receipt.manifest_sha256:
            return False
        return all(self._holds(f"{folder}/{file.path}", file) for file in receipt.files)

    # --- what is published already ------------------------------------------------------------------------------------

    def versions(self, digits: str = "") -> tuple[Version, ...]:
        """See `Destination.versions`. A version was published when its manifest was put."""
        with self._reading():
            return tuple(self._shelf().versions(self.uri, digits))

    def aliases(self) -> Mapping[str, Latest]:
        """See `Destination.aliases`."""
        with self._reading():
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
        if (manifest := self._objects.read(marker)) is None:
            return True  # somebody else removes it
        self._objects.delete(marker)
        if pointed(self.aliases(), version):
            self._objects.put(marker, manifest[0], _PLAIN, IfNoneMatch="*")
            return False
        with s3_errors(f"Deleting {self._objects.uri(f'{self._root}/{version.sha12}/')}", PublishError):
            return self._shelf().sweep(version.sha12)

    def orphans(self) -> tuple[Orphan, ...]:
        """See `Destination.orphans`."""
        with self._reading():
            return tuple(self._shelf().orphans())

    def discard(self, orphan: Orphan) -> bool:
        """See `Destination.discard`."""
        with s3_errors(f"Deleting {orphan.place}", PublishError):
            return self._shelf().discard(orphan)

    def _shelf(self) -> Shelf:
        return Shelf(self._objects.client, self._objects.bucket, self._root)

    def _reading(self) -> AbstractContextManager[None]:
        return s3_errors(f"Reading {self._objects.uri(self._root)}", PublishError)

    # --- objects ------------------------------------------------------------------------------------------------------

    def _manifest(self, package: Package) -> tuple[Manifest, bytes] | None:
        """The manifest that is there and its bytes; PublishError if it is not one of this package's digest."""
        key = self._key(package, MANIFEST_NAME)
        if (there := self._objects.read(key)) is None:
            return None
        remedy = "Move it away, or publish under another name or prefix."
        try:
            manifest = Manifest.model_validate_json(there[0])
        except ValueError as error:
            raise PublishError(
                f"{self._objects.uri(key)} is not a manifest that this version of adapterline reads.",
                expected=f"a manifest of {package.manifest.digest}",
                remedy=remedy,
            ) from error
        if manifest.digest != package.manifest.digest or Bundle.digest_of(manifest.files) != manifest.digest:
            raise PublishError(
                f"{self._objects.uri(key)} is the manifest of another export ({manifest.digest}).",
                expected=f"none, or one of {package.manifest.digest}",
                remedy=remedy,
            )
        return manifest, there[0]

    def _files(self, package: Package, manifest: Manifest, data: bytes) -> tuple[PackagedFile, ...]:
        """The files of the bundle, and what lies beside the manifest that counts and belongs to it."""
        card = self._objects.read(self._key(package, CARD_NAME))
        paths = sibling_paths(sha256_of_bytes(data), card[0] if card else None)
        measured = {path: self._objects.measure(self._key(package, path)) for path in paths}
        there = (PackagedFile(path=path, size=m.size, sha256=m.sha256) for path, m in measured.items() if m)
        return (*_bundle_files(manifest), *there)

    def _shows_more(self, package: Package) -> bool:
        """Does the card there have images, and ours none? Then it stays: who renders nothing takes none away."""
        return not package.images and bool(self._images_shown(package))

    def _images_shown(self, package: Package) -> tuple[str, ...]:
        key = self._key(package, CARD_NAME)
        there = self._objects.read(key)
        return images_shown(there[0]) if there else ()

    def _holds(self, key: str, file: PackagedFile) -> bool:
        """Does the object have the bytes of `file`? All of them are read, unless its size is another one."""
        there = self._objects.measure(key, size=file.size)
        return there is not None and (there.size, there.sha256) == (file.size, file.sha256)

    def _key(self, package: Package, path: str = "") -> str:
        return "/".join(filter(None, (self._root, package.sha12, path)))

    def _contended(self, key: str) -> PublishError:
        return PublishError(
            f"{self._objects.uri(key)} was changed by others {_TRIES} times while it was being written.",
            expected="a moment without another writer",
            remedy="Run the same command again.",
            transient=True,
        )


def _follows_manifest(package: Package, file: PackagedFile) -> bool:
    return all(file.path != exported.path for exported in package.manifest.files)


def _names_manifest(file: PackagedFile) -> bool:
    return any(kind.fullmatch(file.path) for kind in (PROVENANCE_PATH, SIGNATURE_PATH))


def _bundle_files(manifest: Manifest) -> tuple[PackagedFile, ...]:
    return tuple(PackagedFile(path=file.path, size=file.size, sha256=file.sha256) for file in manifest.files)


def _tries() -> Iterator[int]:
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(random.uniform(0, min(0.05 * 2**attempt, 2)))
        yield attempt


def _content(package: Package, file: PackagedFile) -> Content:
    kind = mimetypes.guess_type(file.path)[0] or "application/octet-stream"
    if file.path.endswith(".md"):
        kind = "text/markdown; charset=utf-8"
    return Content(
        kind, {"sha256": file.sha256, **_metadata(package)}, _tags(package), large=not _follows_manifest(package, file)
    )


def _content_of_manifest(package: Package) -> Content:
    return Content(_JSON, _metadata(package), _tags(package))


def _metadata(package: Package) -> dict[str, str]:
    """Far below the 2 KB that S3 takes: the name has at most 96 characters."""
    manifest = package.manifest
    return {"name": manifest.name, "family": manifest.family, "bundle": manifest.digest}


def _tags(package: Package) -> dict[str, str]:
    """For rules of the bucket and for bills."""
    run = package.manifest.training_run
    tags = {"name": package.name, "family": package.manifest.family, "sha12": package.sha12}
    return tags | ({"run_id": tag_value(run.run_id)} if run and run.run_id else {})


def _local_bytes(package: Package, file: PackagedFile) -> bytes:
    try:
        return (package.folder / file.path).read_bytes()
    except OSError as error:
        raise from_os_error(error, f"Reading {file.path} of the package", otherwise=PublishError) from error
