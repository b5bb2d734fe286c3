"""A folder: `{root}/{name}/{sha12}/` with the files, `{root}/{name}/latest.json` beside it.

Staging lies in `{root}/.staging/`, on the same file system, so that releasing is one rename. The manifest goes in last:
what has one is whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from adapterline.destinations.folder_versions import (
    PROBE,
    REMOVED,
    STAGING,
    aliases_in,
    changed_at,
    orphans_in,
    versions_in,
)
from adapterline.destinations.latest import LATEST_NAME, MANIFEST_NAME, from_bytes, latest_of, moves, to_bytes
from adapterline.destinations.versions import names, pointed, removed, require_expected
from adapterline.digests import sha256_of_bytes, sha256_of_file
from adapterline.errors import AdapterlineError, PublishError, from_os_error
from adapterline.package.card import CARD_NAME, images_shown
from adapterline.package.siblings import sibling_paths
from adapterline.scratch import sync_folder
from adapterline.values import (
    SIGNATURE_PATH,
    Latest,
    Manifest,
    Order,
    Orphan,
    Package,
    PackagedFile,
    Publication,
    Receipt,
    Version,
)


class FolderDestination:
    """A destination on a file system. See `Destination` for what each method promises."""

    def __init__(self, uri: str, name: str) -> None:
        self.uri = uri
        self._name = name
        self._root = Path(uri.removeprefix("file://")).expanduser().absolute()

    def check(self) -> None:
        """Writes a file into the root, or into the nearest folder above it that exists, and takes it away."""
        folder = self._root
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        probe = folder / f"{PROBE}{secrets.token_hex(4)}"
        with _os_errors(f"Writing to {self._root}"):
            try:
                probe.touch(exist_ok=False)
            finally:
                probe.unlink(missing_ok=True)

    def stage(self, package: Package) -> Receipt:
        """Copies into the staging folder what is not there yet, and reads it all back."""
        with _os_errors(f"Staging {package.name} {package.sha12} in {self._root}"), self._locked():
            if (published := self._published(package)) is not None:
                return published
            try:
                self._staging(package).mkdir(parents=True, exist_ok=True)
                self._copy(package, package.files)
                self._read_back(package)
            except Exception:
                self._clear(package)  # only a crash leaves something to go on with
                raise
            return self._receipt(package, sha256_of_bytes(package.manifest_bytes), published=False)

    def release(self, package: Package, receipt: Receipt, order: Order) -> Publication:
        """Puts the manifest in, renames the folder into place, then moves `latest.json`."""
        with _os_errors(f"Releasing {package.name} {package.sha12} in {self._root}"), self._locked():
            receipt = self._made_visible(package, receipt)
            moved = self._move_latest(package, receipt, order)
            self._clear(package)
        return Publication(
            receipt=receipt,
            latest="moved" if moved else "kept",
            url=self._target(package.name, package.sha12).as_uri(),
            load=str(self._target(package.name, package.sha12)),
        )

    def verify(self, published: Publication | Version) -> bool:
        """Hashes every file again."""
        receipt = published.receipt
        target = self._target(receipt.name, receipt.digest[:12])
        with _os_errors(f"Reading {target}"):
            manifest = target / MANIFEST_NAME
            if not manifest.is_file() or sha256_of_file(manifest) != receipt.manifest_sha256:
                return False
            return all(_is(target / file.path, file) for file in receipt.files)

    # --- what is published already ------------------------------------------------------------------------------------

    def versions(self, digits: str = "") -> tuple[Version, ...]:
        """See `Destination.versions`. A version was published when its manifest was written."""
        with _os_errors(f"Reading {self._root / self._name}"):
            return tuple(versions_in(self._root / self._name, self.uri, digits))

    def aliases(self) -> Mapping[str, Latest]:
        """See `Destination.aliases`."""
        with _os_errors(f"Reading {self._root / self._name}"):
            return aliases_in(self._root / self._name)

    def point(self, alias: str, version: Version, expect: str | None = None) -> Latest | None:
        """See `Destination.point`. Under the lock, so nothing comes between."""
        with _os_errors(f"Moving {alias} of {self._name} in {self._root}"), self._locked():
            current = aliases_in(self._root / self._name).get(alias)
            if names(current, version):
                return current
            require_expected(current, expect, alias, self.uri)
            manifest = self._target(self._name, version.sha12) / MANIFEST_NAME
            if not manifest.is_file() or sha256_of_file(manifest) != version.receipt.manifest_sha256:
                raise removed(version.receipt)
            path = self._root / self._name / f"{alias}.json"
            _write(path, io.BytesIO(to_bytes(version.pointer())), beside=self._staged(self._name, version.sha12))
            self._tidy()
            return current

    def remove(self, version: Version) -> bool:
        """See `Destination.remove`. One rename takes it out of sight."""
        with _os_errors(f"Removing {self._name} {version.sha12} from {self._root}"), self._locked():
            if pointed(aliases_in(self._root / self._name), version):
                return False
            self._take_away(self._target(self._name, version.sha12), f"{self._name}-{version.sha12}")
            return True

    def orphans(self) -> tuple[Orphan, ...]:
        """See `Destination.orphans`."""
        with _os_errors(f"Reading {self._root}"):
            return tuple(orphans_in(self._root, self._name))

    def discard(self, orphan: Orphan) -> bool:
        """See `Destination.discard`."""
        path = self._root / orphan.token
        with _os_errors(f"Deleting {path}"), self._locked():
            if path.exists() and changed_at(path) > orphan.changed_at:
                return False
            if path.is_dir():
                self._take_away(path, path.name.removeprefix(REMOVED).partition(".")[0])
            path.unlink(missing_ok=True)
            self._tidy()
            return True

    def _take_away(self, folder: Path, name: str) -> None:
        """Renames it out of where anybody looks, an exporter included, and deletes it there."""
        if folder.exists():
            away = self._root / STAGING / f"{REMOVED}{name}.{secrets.token_hex(4)}"
            away.parent.mkdir(exist_ok=True)
            folder.rename(away)
            sync_folder(folder.parent)
            shutil.rmtree(away)
        self._tidy()

    def _copy(self, package: Package, files: Iterable[PackagedFile]) -> None:
        """Copies what is not there, and takes away what another exporter of the same bundle has left."""
        staging, wanted = self._staging(package), {file.path for file in package.files}
        for path in [path for path in staging.rglob("*") if path.is_file()]:
            if path.relative_to(staging).as_posix() not in wanted:
                path.unlink()
        for file in files:
            target = staging / file.path
            if not _is(target, file):
                target.parent.mkdir(parents=True, exist_ok=True)
                with (package.folder / file.path).open("rb") as reader:
                    _write(target, reader, beside=staging)

    def _read_back(self, package: Package) -> None:
        staging = self._staging(package)
        for file in package.files:
            if not _is(staging / file.path, file):
                raise PublishError(
                    f"{file.path} in {staging} is not what was written to it.",
                    expected=f"sha256 {file.sha256}",
                    remedy="The disk, or another process, changed it. Run the export again.",
                    transient=True,
                )

    def _made_visible(self, package: Package, receipt: Receipt) -> Receipt:
        if (published := self._published(package)) is not None:
            return published
        staging, target = self._staging(package), self._target(package.name, package.sha12)
        if not staging.is_dir():
            # Other destinations may have taken hours since this one was staged, and somebody may have tidied up.
            raise PublishError(
                f"{staging} was staged, and is not there any more.", remedy="Run the export again.", transient=True
            )
        bundle = {file.path for file in package.manifest.files}
        # Another exporter of the same bundle may have staged its card and its signature since.
        self._copy(package, [file for file in package.files if file.path not in bundle])
        _write(staging / MANIFEST_NAME, io.BytesIO(package.manifest_bytes), beside=staging)
        target.parent.mkdir(parents=True, exist_ok=True)
        staging.rename(target)
        sync_folder(target.parent)
        sync_folder(self._root)
        return receipt

    def _move_latest(self, package: Package, receipt: Receipt, order: Order) -> bool:
        wanted = latest_of(package, receipt, order)
        path = self._root / package.name / LATEST_NAME
        current = from_bytes(path.read_bytes(), str(path)) if path.exists() else None
        if not moves(current, wanted):
            return False
        if current != wanted:
            _write(path, io.BytesIO(to_bytes(wanted)), beside=self._staging(package))
        return True

    def _published(self, package: Package) -> Receipt | None:
        """What is visible under this digest, checked; the manifest that is there counts. None if nothing is."""
        target = self._target(package.name, package.sha12)
        manifest = target / MANIFEST_NAME
        if not manifest.exists():
            return None
        data = manifest.read_bytes()
        try:
            found = Manifest.model_validate_json(data)
        except ValueError as error:
            raise PublishError(f"{manifest} is no manifest of adapterline: {error}.") from error
        if found.digest != package.manifest.digest:
            raise PublishError(
                f"{target} holds {found.digest}, and {package.manifest.digest} has the same first 12 digits.",
                remedy="Publish it under another name.",
            )
        # The card is made from the manifest and the images: of others it is another. What is there stays.
        card = (target / CARD_NAME).read_bytes() if (target / CARD_NAME).is_file() else None
        rendered = images_shown(card or b"")
        same = data == package.manifest_bytes and not rendered and not package.images
        bundle = {file.path for file in package.manifest.files}
        # What was published unsigned, or with another key, stays so.
        fixed = [file for file in package.files if same and not SIGNATURE_PATH.fullmatch(file.path)]
        for file in fixed or [file for file in package.files if file.path in bundle]:
            if not _is(target / file.path, file):
                raise PublishError(
                    f"{target / file.path} is published, and its bytes are not what {MANIFEST_NAME} says.",
                    expected=f"sha256 {file.sha256}",
                    remedy="Something changed it. Move the folder away and export again.",
                )
        beside = [path for path in sibling_paths(sha256_of_bytes(data), card) if (target / path).is_file()]
        paths = [*(file.path for file in package.files if file.path in bundle), *beside]
        files = tuple(_packaged(target, path) for path in paths)
        return self._receipt(package, sha256_of_bytes(data), published=True, files=files)

    def _receipt(
        self, package: Package, manifest_sha256: str, *, published: bool, files: tuple[PackagedFile, ...] | None = None
    ) -> Receipt:
        return Receipt(
            destination=self.uri,
            name=package.name,
            digest=package.manifest.digest,
            location=str(self._target(package.name, package.sha12)),
            manifest_sha256=manifest_sha256,
            files=package.files if files is None else files,
            published=published,
            read_back="bytes",
        )

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One process at a time: what one stages, another may be releasing."""
        self._root.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _target(self, name: str, sha12: str) -> Path:
        return self._root / name / sha12

    def _staging(self, package: Package) -> Path:
        return self._staged(package.name, package.sha12)

    def _staged(self, name: str, sha12: str) -> Path:
        return self._root / STAGING / f"{name}-{sha12}"

    def _clear(self, package: Package) -> None:
        staging = self._staging(package)
        shutil.rmtree(staging, ignore_errors=True)
        for half in staging.parent.glob(f"{staging.name}.*"):
            half.unlink(missing_ok=True)
        self._tidy()

    def _tidy(self) -> None:
        with contextlib.suppress(OSError):  # not empty: somebody else stages
            (self._root / STAGING).rmdir()


@contextlib.contextmanager
def _os_errors(doing: str) -> Iterator[None]:
    try:
        yield
    except AdapterlineError:
        raise
    except OSError as error:
        raise from_os_error(error, doing, otherwise=PublishError) from error


def _is(path: Path, file: PackagedFile) -> bool:
    return path.is_file() and path.stat().st_size == file.size and sha256_of_file(path) == file.sha256


def _packaged(folder: Path, path: str) -> PackagedFile:
    file = folder / path
    return PackagedFile(path=path, size=file.stat().st_size, sha256=sha256_of_file(file))


def _write(path: Path, source: BinaryIO, *, beside: Path) -> None:
    """Copies a file object to `path`, whole or not at all, and to the disk.

    What is half written lies beside `beside`, so that a killed process leaves nothing in a folder that is published.
    """
    temporary = beside.with_name(f"{beside.name}.{secrets.token_hex(4)}")
    temporary.parent.mkdir(exist_ok=True)
    try:
        with temporary.open("xb") as writer:
            shutil.copyfileobj(source, writer, 1 << 20)
            writer.flush()
            os.fsync(writer.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
