"""A checkpoint that was packed, as SageMaker's `model.tar.gz` is: no member is trusted as a path.

What is unpacked is what `wanted` says, so an archive's optimizer states cost time and no space.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import shutil
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from adapterline.errors import CheckpointError, CheckpointIncompleteError, from_os_error

_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
#: Of all files together: an adapter has a few GB, and a few KB of archive can unpack to anything.
MAX_BYTES = 64 * 10**9


def is_archive(path: Path) -> bool:
    """Is it a tar archive by its name and its content? torch's files are called `.tar` too, now and then."""
    return path.name.endswith(_SUFFIXES) and path.is_file() and tarfile.is_tarfile(path)


def unpack(archive: Path, folder: Path, wanted: Callable[[str], bool]) -> Path:
    """Unpacks into `folder`, and gives it, or the one folder that everything in it lies in.

    CheckpointError for what is no archive, has a member outside of itself, or is too large; links and devices in it are
    left out. CheckpointIncompleteError for one that breaks off.
    """
    left = MAX_BYTES
    try:
        with _opened(archive) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
            for member in tar:
                path = _path(member.name, archive)
                if not member.isfile() or not wanted(path):
                    continue
                left -= member.size
                if left < 0:
                    raise CheckpointError(
                        f"{archive.name} unpacks to more than {MAX_BYTES / 1e9:.0f} GB.",
                        expected="an adapter",
                        remedy="Name the folder or the file of the adapter alone.",
                    )
                _write(tar, member, folder / path)
            while stream.read(1 << 20):  # to the end, where the checksum of what was read is compared
                pass
    except (EOFError, zlib.error, lzma.LZMAError, tarfile.ReadError, OSError) as error:
        raise _broken(archive, error) from error
    found = list(folder.iterdir()) if folder.is_dir() else []
    if not found:
        raise CheckpointError(
            f"{archive.name} has nothing in it that belongs to a checkpoint.",
            expected="a safetensors file, a PEFT folder or a folder that a trainer saved",
            remedy="Look into it with tar -tf.",
        )
    return found[0] if len(found) == 1 and found[0].is_dir() else folder


def _opened(archive: Path) -> IO[bytes]:
    """The tar stream. The library of the compression checks its sums; tarfile's own readers do not."""
    with archive.open("rb") as file:
        start = file.read(6)
    module: Any
    for magic, module in ((b"\x1f\x8b", gzip), (b"BZh", bz2), (b"\xfd7zXZ\x00", lzma)):
        if start.startswith(magic):
            stream: IO[bytes] = module.open(archive)
            return stream
    return archive.open("rb")


def _path(name: str, archive: Path) -> str:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\x00" in name or "\\" in name:
        raise CheckpointError(
            f"{archive.name} has a member {name!r:.200}, which lies outside of it.",
            expected="relative paths without '..'",
            remedy="Do not trust it: ask whoever made it.",
        )
    return "/".join(parts)


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    content = tar.extractfile(member)
    assert content is not None
    with content, target.open("wb") as file:
        shutil.copyfileobj(content, file, 1 << 20)
    os.utime(target, (member.mtime, member.mtime))


def _broken(archive: Path, error: Exception) -> CheckpointError:
    cut_off = isinstance(error, EOFError) or "unexpected end" in str(error) or "truncated" in str(error)
    if isinstance(error, OSError) and error.errno is not None:
        return from_os_error(error, f"Unpacking {archive.name}", otherwise=CheckpointError)  # type: ignore[return-value]
    kind = CheckpointIncompleteError if cut_off else CheckpointError
    return kind(
        f"{archive.name} cannot be unpacked: {str(error) or 'it breaks off'}.",
        expected="a whole tar archive",
        remedy="Wait until it is written, or upload it again." if cut_off else "Check what made it.",
    )
