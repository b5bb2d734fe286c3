"""One `.safetensors` file: its header is checked here before anything is mapped into memory."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterline.checkpoints.containers.base import (
    Contents,
    NotMyKindError,
    Wish,
    bad_key,
    is_ema_name,
    no_ema,
    not_a_scalar,
    only_ema,
)
from adapterline.checkpoints.containers.files import cut_off, mistaken, reading
from adapterline.checkpoints.containers.nested import split_ema
from adapterline.checkpoints.containers.tensors import BITS
from adapterline.errors import CheckpointError, CheckpointIncompleteError
from adapterline.values import TensorInfo

if TYPE_CHECKING:
    import torch

#: https://github.com/huggingface/safetensors: the library refuses larger headers too.
MAX_HEADER = 100_000_000
#: The largest adapters have some ten thousand; a million empty ones cost the library 18 s and 1.7 GB.
MAX_TENSORS = 200_000
MAX_DIMENSIONS = 8
#: How struct unpacks the dtypes that one number can have; BF16 once it is widened.
NUMBERS = {
    "F64": "<d", "F32": "<f", "F16": "<e", "BF16": "<f", "I64": "<q", "I32": "<i", "I16": "<h", "I8": "<b",
    "U64": "<Q", "U32": "<I", "U16": "<H", "U8": "<B",
}  # fmt: skip


class SafetensorsFile:
    """Reads any safetensors file."""

    name = "safetensors"

    def open(self, path: Path, wish: Wish) -> Contents:
        """See `Container.open`."""
        if not path.is_file():
            raise NotMyKindError("not a file")
        if path.suffix != ".safetensors":
            raise NotMyKindError(f"its name ends in {path.suffix!r}, not in '.safetensors'")
        tensors, offsets, header = read_header(path)
        chosen = _chosen(path, tensors, wish)
        reader = TensorReader(path)

        def scalar(key: str) -> float:
            return read_scalar(path, key, tensors[chosen[key]], offsets[chosen[key]])

        return Contents(
            container=self.name,
            root=path.parent,
            files=(path,),
            tensors={key: tensors[written] for key, written in chosen.items()},
            read=lambda key: reader(chosen[key]),
            scalar=scalar,
            header=header,
        )


def _chosen(path: Path, tensors: Mapping[str, TensorInfo], wish: Wish) -> dict[str, str]:
    """{key: key as written} of the weights that were asked for."""
    if is_ema_name(path):
        if wish.weights == "raw":
            raise only_ema(path.name)
        return {key: key for key in tensors}
    raw, averaged = split_ema({key: key for key in tensors})
    if wish.weights == "ema":
        if not averaged:
            raise no_ema(path.name)
        return averaged
    if averaged and not raw:
        raise only_ema(path.name)
    return raw


class TensorReader:
    """Gives memory-mapped tensors; opens the file when the first one is asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: Any = None

    def __call__(self, key: str) -> torch.Tensor:
        """The tensor under the key that is written in the file."""
        from safetensors import SafetensorError, safe_open

        try:
            with reading(self._path):
                if self._file is None:
                    self._file = safe_open(self._path, framework="pt", device="cpu")
                tensor: torch.Tensor = self._file.get_tensor(key)
        except SafetensorError as error:
            raise CheckpointError(
                f"{self._path.name} cannot be read: {error}.",
                expected="the file as it was when its header was read",
                remedy="If something writes to it, wait for its end; otherwise copy it again.",
            ) from error
        return tensor


def read_scalar(path: Path, key: str, info: TensorInfo, offset: int) -> float:
    """The one number at `offset` (bytes from the file's start). CheckpointError if `info` is no number's."""
    if math.prod(info.shape) != 1 or info.dtype not in NUMBERS:
        raise not_a_scalar(key, info.dtype, info.shape)
    with reading(path), path.open("rb") as file:
        file.seek(offset)
        data = file.read(BITS[info.dtype] // 8)
    if len(data) != BITS[info.dtype] // 8:
        raise _truncated(path, path.stat().st_size, None)
    if info.dtype == "BF16":  # the upper half of a float32
        data = bytes(2) + data
    return float(struct.unpack(NUMBERS[info.dtype], data)[0])


def read_header(path: Path) -> tuple[dict[str, TensorInfo], dict[str, int], dict[str, str]]:
    """(tensors by name, their offsets in the file, texts), after checking every range against the file's size.

    CheckpointIncompleteError if the file is shorter than it says; CheckpointError if it is not what the format allows.
    """
    with reading(path), path.open("rb") as file:
        size = path.stat().st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or (length <= MAX_HEADER and size < 8 + length):
            raise _truncated(path, size, 8 + length if size >= 8 else None)
        if length > MAX_HEADER:
            raise mistaken(path) or _malformed(path, f"its header claims {length} bytes")
        text = file.read(length)
    try:
        entries = json.loads(text.decode(), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise mistaken(path) or _malformed(path, f"its header is not JSON: {error}") from error
    if not isinstance(entries, dict):
        raise _malformed(path, "its header is not a JSON object")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _malformed(path, "its __metadata__ is not a map of texts")
    if len(entries) > MAX_TENSORS:
        raise _malformed(path, f"it has {len(entries)} tensors, more than {MAX_TENSORS}")
    tensors, starts, end = _check_entries(path, entries)
    if size < 8 + length + end:
        raise _truncated(path, size, 8 + length + end)
    if size > 8 + length + end:
        raise _malformed(path, f"{size - 8 - length - end} bytes follow after its last tensor")
    return tensors, {key: 8 + length + start for key, start in starts.items()}, metadata


def _check_entries(path: Path, entries: dict[str, Any]) -> tuple[dict[str, TensorInfo], dict[str, int], int]:
    tensors: dict[str, TensorInfo] = {}
    starts: dict[str, int] = {}
    ranges = []
    for key, entry in entries.items():
        if refusal := bad_key(key):
            raise refusal
        tensors[key], starts[key], end = _check_entry(path, key, entry)
        ranges.append((starts[key], end))
    position = 0
    for start, end in sorted(ranges):
        if start != position:
            raise _malformed(path, f"its data has a hole or an overlap at byte {min(start, position)}")
        position = end
    return tensors, starts, position


def _check_entry(path: Path, key: str, entry: Any) -> tuple[TensorInfo, int, int]:
    try:
        dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        item = BITS[dtype]
    except (KeyError, TypeError, ValueError) as error:
        raise _malformed(path, f"the entry of {key!r} is not one of dtype, shape and data_offsets") from error
    # Before anything is multiplied: a header has room for numbers whose product takes hours.
    numbers = (*shape, start, end)
    if len(shape) > MAX_DIMENSIONS or not all(type(number) is int and 0 <= number < 1 << 63 for number in numbers):
        raise _malformed(path, f"the entry of {key!r} has a shape or data_offsets that are no sizes")
    bits = item * math.prod(shape)
    if not bits or bits % 8 or end - start != bits // 8:
        raise _malformed(path, f"{key!r} has {end - start} bytes for {dtype} {list(shape)}")
    return TensorInfo(dtype, shape), start, end


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key occurs twice")
    return result


def _truncated(path: Path, size: int, wanted: int | None) -> CheckpointIncompleteError:
    expected = "a whole safetensors file" + (f" of {wanted} bytes" if wanted else "")
    return cut_off(f"{path.name} is truncated: it has {size} bytes.", expected)


def _malformed(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path.name} is not a valid safetensors file: {re.sub(r'[^ -~]', '?', what)}.",
        expected="a file as the safetensors library writes it",
        remedy="Copy it again, or write it again with that library.",
    )
