r"""The canonical safetensors writer: equal tensors and header give equal bytes, on every machine.

A file in canonical form is

1.  8 bytes: the length N of the header, an unsigned little-endian integer.
2.  N bytes: the header. One JSON object in UTF-8 without any whitespace between its tokens. Strings hold every
    character as itself except `"`, `\` and U+0000 to U+001F, which are escaped: as `\"`, `\\`, `\b`, `\f`, `\n`, `\r`
    or `\t` where there is such a form, else as `\u00` and two lower-case hexadecimal digits. Its members, in order:
    a.  `"__metadata__"`: an object of strings, its keys sorted by code point. Absent when it would be empty.
    b.  for each tensor, in the order of the data, its name with
        `{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}`, these three in this order.
    It is padded with spaces, at least 0 and at most 7, so that N is a multiple of 8.
3.  the tensors: by descending item size, and within one item size by name (by code point), so that each one is aligned
    to its item size. Each is C-contiguous and little-endian, and begins where the one before it ends, the first at 0.

A name is not empty, is not `__metadata__`, and has no U+0000; a header is at most 100,000,000 bytes long. The
safetensors library reads such a file, and writes the same one when no two dtypes of one item size occur (it sorts by
dtype) and there is at most one metadata key (it writes them in random order, safetensors#584).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO

from adapterline.errors import CheckpointError, ConversionError, MachineError, from_os_error
from adapterline.scratch import Scratch, sync_folder
from adapterline.values import Bundle, ExportedFile, FilePlan, HeaderHash, Plan, TensorPlan

if TYPE_CHECKING:
    from _hashlib import HASH

    import torch

#: What a tensor of a safetensors dtype is in torch, and the bytes of one item.
_DTYPES = {
    "BOOL": ("bool", 1),
    "U8": ("uint8", 1),
    "I8": ("int8", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2FNUZ": ("float8_e5m2fnuz", 1),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", 1),
    "I16": ("int16", 2),
    "U16": ("uint16", 2),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "I32": ("int32", 4),
    "U32": ("uint32", 4),
    "F32": ("float32", 4),
    "C64": ("complex64", 8),
    "F64": ("float64", 8),
    "I64": ("int64", 8),
    "U64": ("uint64", 8),
}
#: What the safetensors library reads at most (safetensors::tensor::MAX_HEADER_SIZE).
_MAX_HEADER = 100_000_000
#: Bytes that are hashed and written at a time: small enough to stay in a processor's cache between the two.
_CHUNK = 8 << 20
#: The bytes of a file that sd-webui-additional-networks hashed (sd-scripts' train_util.py, `addnet_hash_legacy`).
_LEGACY = (0x100000, 0x110000)


@dataclass(frozen=True)
class WrittenFile:
    """What was written: its size in bytes, its sha256, and that of its tensor bytes alone, after the header, if any."""

    size: int
    sha256: str
    tensors_sha256: str | None


def serialize(plan: Plan, scratch: Scratch) -> Bundle:
    """Writes the files of a plan into the scratch folder, under the digest of what they turned out to be.

    Raises as `write_safetensors` does; then the scratch folder is as it was before.
    """
    _check_paths([file.path for file in plan.files])
    with scratch.temporary("bundle-") as folder:
        files = tuple(_export(file, folder) for file in plan.files)
        bundle = Bundle(files=files, loads=plan.loads, transforms=plan.transforms, digest=Bundle.digest_of(files))
        scratch.keep(bundle, folder)
    return bundle


def write_safetensors(
    path: Path,
    tensors: Mapping[str, TensorPlan],
    header: Mapping[str, str],
    hashes: Mapping[str, HeaderHash] | None = None,
) -> WrittenFile:
    """Writes a file in canonical form, in one pass, with one tensor in memory at a time.

    `hashes` are further fields of the header, which take a pass over the tensors of their own.

    `path` gets it whole and on the disk for good, with the mode that the umask leaves of 0666, or is not touched at
    all. Raises `ConversionError` for a name that cannot be written and for a tensor that is not what its plan says,
    `MachineError` where the disk fails, and whatever `TensorPlan.make` raises.
    """
    if sys.byteorder != "little":
        raise MachineError("This machine is big-endian.", expected="a little-endian one, as the files are")
    try:
        with _replacing(path) as file:
            return _write(file, tensors, header, hashes or {})
    except OSError as error:
        raise from_os_error(error, f"Writing {path}") from error


def write_content(path: Path, content: bytes) -> WrittenFile:
    """Writes a file that is not safetensors, as `write_safetensors` does: whole and for good, or not at all.

    Raises `MachineError` where the disk fails.
    """
    try:
        with _replacing(path) as file:
            file.write(content)
    except OSError as error:
        raise from_os_error(error, f"Writing {path}") from error
    return WrittenFile(len(content), hashlib.sha256(content).hexdigest(), None)


def _export(file: FilePlan, folder: Path) -> ExportedFile:
    path = folder / file.path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise from_os_error(error, f"Making {path.parent}") from error
    if file.content is None:
        written = write_safetensors(path, file.tensors, file.header, file.hashes)
    else:
        written = write_content(path, file.content)
    return ExportedFile(
        role=file.role,
        layout=file.layout,
        path=file.path,
        size=written.size,
        sha256=written.sha256,
        tensors_sha256=written.tensors_sha256,
    )


def _check_paths(paths: list[str]) -> None:
    for path in paths:
        if paths.count(path) > 1:
            raise ConversionError(f"Two files would be written to {path!r}.", expected="one path for each file")
        pure = PurePosixPath(path)
        if pure.is_absolute() or ".." in pure.parts or pure.as_posix() != path or path in {"", "."} or "\0" in path:
            raise ConversionError(f"A file would be written to {path!r}.", expected="a plain path below its folder")


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file, which takes the place of `path` at the end of the block, and after any exception is gone."""
    temporary = path.with_name(f".{secrets.token_hex(16)}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        with open(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _write(
    file: BinaryIO, tensors: Mapping[str, TensorPlan], header: Mapping[str, str], hashes: Mapping[str, HeaderHash]
) -> WrittenFile:
    for name, tensor in tensors.items():
        _check_plan(name, tensor)
    names = sorted(tensors, key=lambda name: (-_item_size(tensors[name]), name))
    listed = [(name, tensors[name]) for name in names]
    known = _hashes(listed, header) if hashes else {}
    head = _head(listed, {**header, **{field: known[kind] for field, kind in hashes.items()}})
    whole, data = hashlib.sha256(head), hashlib.sha256()
    file.write(head)
    # hashlib lets go of the interpreter lock: a second core hashes the file while this one hashes the tensors and
    # writes. Before the fsync, 520 MB took 0.5 s so and 0.9 s without, on two cores.
    with ThreadPoolExecutor(1) as second_core:
        for name in names:
            _write_tensor(file, name, tensors[name], whole, data, second_core)
    if known and known["sshs"] != data.hexdigest():
        raise ConversionError(
            "A tensor did not come out the same when it was made again.",
            expected="the same bytes each time",
            remedy="This is a bug of the layout that planned it, or the checkpoint was changed meanwhile.",
        )
    return WrittenFile(file.tell(), whole.hexdigest(), data.hexdigest())


def _hashes(tensors: list[tuple[str, TensorPlan]], header: Mapping[str, str]) -> dict[HeaderHash, str]:
    """What a header can say of its own tensors."""
    # sd-scripts takes the legacy one before there is any other field, so that later ones do not change it.
    head = _head(tensors, {field: text for field, text in header.items() if field.startswith("ss_")})
    start, stop = _LEGACY
    data, legacy, position = hashlib.sha256(), hashlib.sha256(head[start:stop]), len(head)
    for name, plan in tensors:
        content = _bytes_of(name, plan)
        data.update(content)
        legacy.update(content[max(start - position, 0) : max(stop - position, 0)])
        position += len(content)
    digest = data.hexdigest()
    return {"modelspec": f"0x{digest}", "sshs": digest, "sshs-legacy": legacy.hexdigest()[:8]}


def _write_tensor(file: BinaryIO, name: str, plan: TensorPlan, whole: HASH, data: HASH, second_core: Executor) -> None:
    """A function of its own, so that nothing refers to the tensor any more when the next one is made."""
    content = _bytes_of(name, plan)
    for start in range(0, len(content), _CHUNK):
        chunk = content[start : start + _CHUNK]
        hashed = second_core.submit(whole.update, chunk)
        data.update(chunk)
        file.write(chunk)
        hashed.result()


def _bytes_of(name: str, plan: TensorPlan) -> memoryview:
    """Makes the tensor and looks at its bytes in place; only what is not contiguous is copied."""
    import torch

    try:
        tensor = plan.make()
    except OSError as error:
        raise from_os_error(error, f"Reading what becomes {name!r}", otherwise=CheckpointError) from error
    wanted = getattr(torch, _DTYPES[plan.dtype][0])
    if tensor.dtype != wanted or tuple(tensor.shape) != plan.shape or not _has_bytes(tensor):
        raise ConversionError(
            f"The tensor {name!r} came out as {tensor.dtype} {list(tensor.shape)} on {tensor.device}.",
            expected=f"{wanted} {list(plan.shape)}, dense and not on meta",
            remedy="This is a bug of the layout that planned it.",
        )
    # A lazy conjugate or negation is a flag of the tensor, not in its bytes.
    dense = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    # Not reshape(-1): one item of many keeps its stride there, counts as contiguous, and has no uint8 view.
    return dense.as_strided((dense.numel(),), (1,)).view(torch.uint8).numpy().data


def _has_bytes(tensor: torch.Tensor) -> bool:
    import torch

    return tensor.layout == torch.strided and not tensor.is_meta


def _head(tensors: list[tuple[str, TensorPlan]], header: Mapping[str, str]) -> bytes:
    """The length and the header, padded."""
    members: dict[str, object] = {"__metadata__": dict(sorted(header.items()))} if header else {}
    end = 0
    for name, plan in tensors:
        begin, end = end, end + math.prod(plan.shape) * _item_size(plan)
        members[name] = {"dtype": plan.dtype, "shape": list(plan.shape), "data_offsets": [begin, end]}
    try:
        text = json.dumps(members, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError as error:
        raise ConversionError(
            f"The header has {error.object[error.start : error.end]!r}, which is no character.",
            expected="valid Unicode",
        ) from error
    text += b" " * (-len(text) % 8)
    if len(text) > _MAX_HEADER:
        raise ConversionError(
            f"The header takes {len(text)} bytes.", expected=f"at most {_MAX_HEADER}, else none reads it"
        )
    return len(text).to_bytes(8, "little") + text


def _check_plan(name: str, plan: TensorPlan) -> None:
    if not name or "\0" in name or name == "__metadata__":
        raise ConversionError(
            f"A tensor would be named {name!r}.", expected="a name that is not empty, not __metadata__, and without NUL"
        )
    if plan.dtype not in _DTYPES:
        raise ConversionError(f"The tensor {name!r} would be {plan.dtype}.", expected=f"one of {', '.join(_DTYPES)}")


def _item_size(plan: TensorPlan) -> int:
    return _DTYPES[plan.dtype][1]
