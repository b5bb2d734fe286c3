"""The zip archive of `torch.save`, read without torch's unpickler: its tensors stay in the file until asked for.

    {name}/data.pkl      the pickle; a tensor in it is a storage's key, an offset, a size and strides
    {name}/byteorder     "little"
    {name}/data/{key}    the bytes of a storage, stored as they are

Only the format of torch 1.6 and later. An archive may be a part of a file: in a `.distcp` each tensor is one.
"""

from __future__ import annotations

import io
import math
import mmap
import struct
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from adapterline.checkpoints.containers.files import cut_off, mistaken, reading
from adapterline.checkpoints.containers.pickles import CONTAINERS, Builder, Global, Made, printable, read_pickle
from adapterline.checkpoints.containers.tensors import DTYPES, MAX_DIMENSIONS, SIZES, TORCH_NAMES, Unread, are_sizes
from adapterline.errors import CheckpointError, CheckpointIncompleteError

if TYPE_CHECKING:
    import torch

#: A whole model with its optimizer has some ten thousand.
MAX_ENTRIES = 500_000
_STORAGES: Final = {
    "torch.DoubleStorage": "F64", "torch.FloatStorage": "F32", "torch.HalfStorage": "F16",
    "torch.BFloat16Storage": "BF16", "torch.LongStorage": "I64", "torch.IntStorage": "I32",
    "torch.ShortStorage": "I16", "torch.CharStorage": "I8", "torch.ByteStorage": "U8", "torch.BoolStorage": "BOOL",
    "torch.ComplexFloatStorage": "C64", "torch.storage.UntypedStorage": "U8", "torch.UntypedStorage": "U8",
}  # fmt: skip


class Mapped:
    """A file, mapped into memory when the first tensor is read from it. Writing to the tensors does not change it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._map: mmap.mmap | None = None

    def tensor(self, stored: Stored) -> torch.Tensor:
        """The tensor, as a view of the map. CheckpointError if the file got shorter since it was opened."""
        import torch

        try:
            if self._map is None:
                with self.path.open("rb") as file:
                    self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            dtype = getattr(torch, TORCH_NAMES[stored.dtype])
            flat = torch.frombuffer(self._map, dtype=torch.uint8, count=stored.bytes, offset=stored.start)
            if stored.start % SIZES[stored.dtype]:  # torch.save aligns; other writers need not
                flat = flat.clone()
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{self.path.name} cannot be read: {error}.",
                expected="the file as it was when it was opened",
                remedy="If something writes to it, wait for its end; otherwise copy it again.",
                transient=True,
            ) from error
        return flat.view(dtype).as_strided(stored.shape, stored.stride, stored.offset)


@dataclass(frozen=True)
class Stored(Unread):
    """A tensor that lies in a file: a view of `bytes` bytes from `start`, by offset and strides in elements."""

    file: Mapped = field(repr=False)
    start: int
    bytes: int
    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    def load(self) -> torch.Tensor:
        """The tensor, memory-mapped."""
        return self.file.tensor(self)


@dataclass(frozen=True)
class Unfit:
    """A tensor that cannot be read as it is; `what` completes "it ..."."""

    what: str


@dataclass(frozen=True)
class _Storage:
    start: int
    bytes: int
    dtype: str


def read_archive(path: Path, start: int = 0, length: int | None = None) -> Any:
    """The value that torch.save wrote to a file, or to `length` bytes of it from `start`.

    Its tensors are `Stored` or `Unfit`, its dicts plain ones, and any other object a stand-in. CheckpointError if it is
    not such an archive or unsafe, CheckpointIncompleteError if it is cut off.
    """
    with reading(path), path.open("rb") as file:
        if path.stat().st_size < start + (length or 0):
            raise _truncated(path.name)
        view: IO[bytes] = file if length is None else io.BufferedReader(_Part(file, start, length))
        return _value(path, view, start)


def _value(path: Path, file: IO[bytes], start: int) -> Any:
    entries = _entries(path, file)
    pickles = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise CheckpointError(
            f"{path.name} is a zip archive with {len(pickles)} data.pkl.",
            expected="one, as torch.save writes it",
            remedy="If it is a packed folder, unpack it; otherwise save the adapter again.",
        )
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}byteorder" in entries and _bytes(file, entries[f"{root}byteorder"])[:16] != b"little":
        raise CheckpointError(
            f"{path.name} was written by a big-endian machine.",
            expected="little-endian tensors",
            remedy="Load it there, and save its state dict as .safetensors.",
        )
    mapped = Mapped(path)

    def storage(identifier: Any) -> _Storage:
        kind, type_, key, _, _ = identifier
        if kind != "storage" or not isinstance(type_, Global) or f"{root}data/{key}" not in entries:
            raise CheckpointError(
                f"{path.name} lacks the bytes of a tensor.",
                expected="a whole file of torch.save",
                remedy="Copy it again, or save it again.",
            )
        offset, size = entries[f"{root}data/{key}"]
        return _Storage(start + offset, size, _STORAGES.get(type_.name, type_.name))

    return read_pickle(_bytes(file, entries[pickles[0]]), path.name, _builders(mapped), storage)


def _bytes(file: IO[bytes], entry: tuple[int, int]) -> bytes:
    file.seek(entry[0])
    return file.read(entry[1])


def _entries(path: Path, file: IO[bytes]) -> dict[str, tuple[int, int]]:
    """{name: (offset of its bytes, their number)}.

    Only stored entries: a compressed one is a zip bomb where small, and garbage when it is mapped. Two that lie over
    each other are no archive that torch wrote.
    """
    file.seek(0)
    started = file.read(4) == b"PK\x03\x04"
    try:
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
        if started:
            raise _truncated(path.name) from error
        raise mistaken(path) or CheckpointError(
            f"{path.name} is not a zip archive.",
            expected="a file of torch.save in the format of torch 1.6 and later",
            remedy="Load it where it came from and save its state dict as .safetensors.",
        ) from error
    if packed := next((info for info in infos if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1), None):
        raise CheckpointError(
            f"{path.name} was compressed again: {printable(packed.filename)!r} is not stored as it is.",
            expected="the archive as torch.save writes it",
            remedy="Unpack it and save it again with torch.save, or as .safetensors.",
        )
    if len(infos) > MAX_ENTRIES:
        raise CheckpointError(
            f"{path.name} has {len(infos)} entries.",
            expected=f"at most {MAX_ENTRIES}",
            remedy="Save the adapter's state dict alone, best as .safetensors.",
        )
    return _places(path, file, infos)


def _places(path: Path, file: IO[bytes], infos: list[zipfile.ZipInfo]) -> dict[str, tuple[int, int]]:
    places: dict[str, tuple[int, int]] = {}
    end = file.seek(0, io.SEEK_END)
    for info in infos:
        if not 0 <= info.header_offset < end:  # zipfile takes the directory's word for it, and adds to it
            raise _damaged(path)
        file.seek(info.header_offset)
        head = file.read(30)
        if len(head) != 30 or head[:4] != b"PK\x03\x04":
            raise _damaged(path)
        name, extra = struct.unpack("<HH", head[26:])
        offset = info.header_offset + 30 + name + extra
        if info.filename in places or info.file_size != info.compress_size or offset + info.file_size > end:
            raise _damaged(path)
        places[info.filename] = (offset, info.file_size)
    position = 0
    for offset, size in sorted(places.values()):
        if offset < position:
            raise _damaged(path)
        position = offset + size
    return places


def _builders(mapped: Mapped) -> dict[str, Builder]:
    def tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Stored | Unfit:
        # rest: requires_grad, hooks, and for version 3 the dtype, where the storage is untyped
        dtype = DTYPES.get(rest[2].name, rest[2].name) if len(rest) > 2 and isinstance(rest[2], Global) else None
        return _tensor(mapped, storage, dtype, offset, size, stride)

    def inner(data: Any, *_: Any) -> Any:
        return data

    def of_type(function: Any, type_: Any, args: Any, _: Any) -> Any:
        plain = ("torch.Tensor", "torch._tensor.Tensor", "torch.nn.parameter.Parameter")
        makes = getattr(function, "name", "")
        if makes not in builders or getattr(type_, "name", "") not in plain:
            return Unfit(f"is a {printable(getattr(type_, 'name', 'tensor subclass'))}")
        return builders[makes](*args)

    def unfit(what: str) -> Builder:
        return lambda *_: Unfit(what)

    builders: dict[str, Builder] = {
        **CONTAINERS,
        "torch._utils._rebuild_tensor_v2": tensor,
        "torch._utils._rebuild_tensor_v3": tensor,
        "torch._utils._rebuild_parameter": inner,
        "torch._utils._rebuild_parameter_with_state": inner,
        "torch._tensor._rebuild_from_type_v2": of_type,
        "torch._utils._rebuild_meta_tensor_no_storage": unfit("is meta: it has no values"),
        "torch._utils._rebuild_sparse_tensor": unfit("is sparse"),
        "torch._utils._rebuild_sparse_csr_tensor": unfit("is sparse"),
        "torch._utils._rebuild_nested_tensor": unfit("is nested"),
        "torch._utils._rebuild_qtensor": unfit("is quantized"),
        "torch._utils._rebuild_wrapper_subclass": unfit("is a part of a tensor, or a tensor subclass"),
    }
    return builders


def _tensor(mapped: Mapped, storage: Any, dtype: str | None, offset: Any, size: Any, stride: Any) -> Stored | Unfit:
    if not isinstance(storage, _Storage) or not isinstance(size, tuple) or not isinstance(stride, tuple):
        return Unfit("is of no known form")
    dtype = dtype or storage.dtype
    if not are_sizes((offset, *size, *stride)) or len(size) != len(stride):
        return Unfit("has a size or strides that are no numbers")
    if len(size) > MAX_DIMENSIONS:
        return Unfit(f"has {len(size)} dimensions")
    if dtype not in SIZES:
        return Unfit(f"is {printable(dtype)}")
    if 0 in size:
        return Unfit(f"is empty: {list(size)}")
    room = storage.bytes // SIZES[dtype]
    last = offset + sum((count - 1) * step for count, step in zip(size, stride, strict=True))
    if last >= room or math.prod(size) > room:
        # torch.zeros(1).expand(2**40) is 1,570 bytes on disk and a terabyte once copied.
        return Unfit(f"claims {math.prod(size)} elements, more than the file has bytes for")
    count = room * SIZES[dtype]
    return Stored(mapped, storage.start, count, dtype, size, stride, offset)


class _Part(io.RawIOBase):
    """A part of a file, as a file."""

    def __init__(self, file: IO[bytes], start: int, length: int) -> None:
        self._file = file
        self._start = start
        self._length = length
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._length}[whence]
        if base + offset < 0:
            raise ValueError("a negative position")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._length - self._position))
        self._file.seek(self._start + self._position)
        data = self._file.read(count)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def opaque(value: Any) -> str:
    """What a value of the file is, in words."""
    if isinstance(value, Stored | Unfit):
        return "tensor"
    return printable(value.name) if isinstance(value, Made | Global) else type(value).__name__


def _truncated(name: str) -> CheckpointIncompleteError:
    return cut_off(f"{name} is truncated: its zip archive has no end.", "a whole file of torch.save")


def _damaged(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path.name} is a damaged zip archive.",
        expected="the archive as torch.save writes it",
        remedy="Copy it again, or save it again.",
    )
