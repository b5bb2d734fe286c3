"""A file on somebody's disk: what its bytes are called, whatever became of its name and its header."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import BinaryIO

from adapterline.errors import CheckpointError, from_os_error

_CHUNK = 8 << 20


def sha256_of_stray(path: Path) -> str:
    """Of the whole file. CheckpointError if it cannot be read."""
    from adapterline.digests import sha256_of_file

    try:
        return sha256_of_file(path)
    except OSError as error:
        raise from_os_error(error, f"Reading {path}", otherwise=CheckpointError) from error


def tensors_of_stray(path: Path) -> tuple[str, ...]:
    """What `tensors_sha256` of a safetensors file may be: of its data as they lie, and as adapterline orders them.

    A program that rewrites a header may order the data anew; by item size and name they come back to what was hashed
    (`adapterline.serialize`). CheckpointError if it is no whole safetensors file.
    """
    from adapterline.checkpoints.containers.safetensors import read_header
    from adapterline.checkpoints.containers.tensors import BITS

    tensors, starts, _ = read_header(path)
    sizes = {name: math.prod(info.shape) * BITS[info.dtype] // 8 for name, info in tensors.items()}
    as_they_lie = sorted(tensors, key=lambda name: (starts[name], sizes[name]))
    canonical = sorted(tensors, key=lambda name: (-BITS[tensors[name].dtype], name))
    orders = [as_they_lie] if as_they_lie == canonical else [as_they_lie, canonical]
    try:
        with path.open("rb") as file:
            return tuple(_hash(file, [(starts[name], sizes[name]) for name in names]) for names in orders)
    except OSError as error:
        raise from_os_error(error, f"Reading {path}", otherwise=CheckpointError) from error


def _hash(file: BinaryIO, ranges: list[tuple[int, int]]) -> str:
    digest = hashlib.sha256()
    for start, left in ranges:
        file.seek(start)
        while left:
            chunk = file.read(min(left, _CHUNK))
            if not chunk:
                raise CheckpointError(
                    "The file became shorter while it was read.",
                    expected="a file that nobody writes to",
                    remedy="Copy it, and ask for the copy.",
                )
            digest.update(chunk)
            left -= len(chunk)
    return digest.hexdigest()
