"""The scratch folder: exported files on their way, named by what they are, and folders that live as long as their run.

    {root}/bundles/{bundle digest}/{path of the file}
    {root}/temporary/{prefix}{random}/lock, content/
    {root}/lock

A bundle appears by one rename, whole. Its folder's modification time is when it was last used. A temporary folder's
`lock` is held (flock) while its owner lives, so what a killed run left is known at once, whatever its age. The lock of
the root is held for moments, while names change, so any number of processes may share one scratch folder.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from adapterline.errors import UsageError, from_os_error
from adapterline.settings import Settings
from adapterline.values import Bundle, ExportedFile

#: Seconds. What was used so recently is still being worked with: it stays, whatever the limits say.
IN_USE_S = 3600.0


@dataclass(frozen=True)
class Scratch:
    """A scratch folder, made when it is first needed. Every method raises `MachineError` where the disk fails."""

    root: Path
    max_bytes: int
    max_age_s: float

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """The scratch folder of the settings, as an absolute path."""
        return cls(
            root=settings.scratch.expanduser().absolute(),
            max_bytes=int(settings.scratch_max_gb * 1e9),
            max_age_s=settings.scratch_max_days * 86400,
        )

    def folder(self, digest: str) -> Path:
        """Where the files of a bundle lie, if they do."""
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise UsageError(f"{digest!r} is no bundle digest.", expected="64 lower-case hexadecimal digits")
        return self.root / "bundles" / digest

    def has(self, bundle: Bundle) -> bool:
        """Is every file there, with its size and, read again, its sha256? Asking counts as a use."""
        self.touch(bundle.digest)
        with _os_errors(f"Reading the bundle {bundle.sha12} in {self.root}"):
            return self._is_whole(bundle)

    def touch(self, digest: str) -> None:
        """Marks a bundle as used now: `trim` spares it for an hour. No effect if it is not there."""
        folder = self.folder(digest)
        with _os_errors(f"Marking {folder} as used"), self._locked(), suppress(FileNotFoundError):
            os.utime(folder)

    def keep(self, bundle: Bundle, folder: Path) -> None:
        """Moves `folder`, which holds the bundle's files and lies in `temporary`, to where the digest says.

        If the bundle is there already, whole, `folder` stays where it is; a damaged one gives way.
        """
        place = self.folder(bundle.digest)
        doing = f"Keeping the bundle {bundle.sha12} in {self.root}"
        with self.temporary("damaged-") as bin_, _os_errors(doing), self._locked():
            if not self._is_whole(bundle):
                place.parent.mkdir(exist_ok=True)
                with suppress(FileNotFoundError):
                    os.rename(place, bin_ / bundle.digest)
                os.rename(folder, place)
                sync_folder(place.parent)
            os.utime(place)

    @contextmanager
    def temporary(self, prefix: str) -> Iterator[Path]:
        """An empty folder of one's own, for the length of the block; nobody trims it meanwhile, however long it is."""
        owner = self.root / "temporary" / f"{prefix}{secrets.token_hex(8)}"
        lock = None
        try:
            with _os_errors(f"Making {owner}"), self._locked():
                owner.parent.mkdir(exist_ok=True)
                owner.mkdir(mode=0o700)
                lock = _try_lock(owner / "lock")
                (owner / "content").mkdir()
            yield owner / "content"
        finally:
            # What cannot be removed now loses its lock below, and the next `trim` tries again.
            shutil.rmtree(owner, ignore_errors=True)
            if lock is not None:
                os.close(lock)

    def trim(self) -> None:
        """Removes what killed runs left, and the bundles that are too old or too many.

        First those that were not used for `max_age_s`, then the least recently used ones until the rest is within
        `max_bytes`. A bundle that was used within the last hour stays, so more than that may remain.
        """
        with self.temporary("trimmed-") as bin_, _os_errors(f"Trimming {self.root}"), self._locked():
            for path in [*self._abandoned(), *self._overdue(time.time())]:
                with suppress(FileNotFoundError):
                    os.rename(path, bin_ / path.name)

    def _abandoned(self) -> Iterator[Path]:
        """Temporary folders whose owner is gone."""
        for path in sorted((self.root / "temporary").iterdir()):
            # An owner removes its folder without the lock of the root: it may be gone at any moment.
            with suppress(FileNotFoundError, NotADirectoryError):
                lock = _try_lock(path / "lock")
                if lock is not None:
                    os.close(lock)
                    yield path

    def _overdue(self, now: float) -> Iterator[Path]:
        """Bundles over one of the two limits, the least recently used first."""
        bundles = self.root / "bundles"
        found = [path for path in bundles.iterdir() if path.is_dir()] if bundles.is_dir() else []
        by_age = sorted(((now - path.stat().st_mtime, _size(path), path) for path in found), reverse=True)
        total = sum(size for _, size, _ in by_age)
        for age, size, path in by_age:
            if age > IN_USE_S and (age > self.max_age_s or total > self.max_bytes):
                total -= size
                yield path

    def _is_whole(self, bundle: Bundle) -> bool:
        folder = self.folder(bundle.digest)
        return folder.is_dir() and all(_matches(folder / file.path, file) for file in bundle.files)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.root.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder survive a power cut (fsync), where its file system knows how."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network and FUSE file systems take fsync for files alone.
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)


def _try_lock(path: Path) -> int | None:
    """A descriptor that holds the lock, or None if somebody else does. The file is made if it is not there."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _matches(path: Path, file: ExportedFile) -> bool:
    try:
        with open(path, "rb") as stream:
            if os.fstat(stream.fileno()).st_size != file.size:
                return False
            return hashlib.file_digest(stream, "sha256").hexdigest() == file.sha256
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return False


def _size(folder: Path) -> int:
    return sum((Path(parent) / name).lstat().st_size for parent, _, names in os.walk(folder) for name in names)


@contextmanager
def _os_errors(doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise from_os_error(error, doing) from error
