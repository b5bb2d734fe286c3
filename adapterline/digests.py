"""sha256 of files and bytes, as lower-case hexadecimal digits."""

from __future__ import annotations

import hashlib
from pathlib import Path


def sha256_of_file(path: Path) -> str:
    """Of the bytes of a file. OSError if it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_bytes(data: bytes) -> str:
    """Of these bytes."""
    return hashlib.sha256(data).hexdigest()
