"""One `.pt`, `.pth`, `.bin` or `.ckpt` file of `torch.save`, read without running what it holds."""

from __future__ import annotations

import pickle
import re
import struct
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterline.checkpoints.containers.base import Contents, NotMyKindError, Wish, bad_key
from adapterline.errors import CheckpointError, CheckpointIncompleteError, from_os_error
from adapterline.values import TensorInfo

if TYPE_CHECKING:
    import torch

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")


class TorchFile:
    """Reads a flat state dict: {name: tensor}."""

    name = "torch"

    def open(self, path: Path, wish: Wish) -> Contents:
        """See `Container.open`."""
        if not path.is_file():
            raise NotMyKindError("not a file")
        if path.suffix not in SUFFIXES:
            raise NotMyKindError(f"its name ends in {path.suffix!r}, not in one of {', '.join(SUFFIXES)}")
        tensors = load_state_dict(path)
        return Contents(
            container=self.name,
            root=path.parent,
            files=(path,),
            tensors={key: _info(tensor) for key, tensor in tensors.items()},
            read=tensors.__getitem__,
        )


def load_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """The flat state dict in a file, memory-mapped. CheckpointError for anything else, and for anything unsafe."""
    import torch

    _check_archive(path)
    try:
        value = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path.name} holds more than tensors: its pickle asks for code that could do anything when it is run.",
            expected="a file that torch.load(weights_only=True) accepts",
            remedy="Save the adapter's state dict alone, best as .safetensors.",
        ) from error
    except OSError as error:
        raise from_os_error(error, f"Reading {path.name}", otherwise=CheckpointError) from error
    except Exception as error:  # a mutilated pickle makes the unpickler raise whatever its stack then leads to
        # Its words may quote the file, and a terminal would obey what is in there.
        what = re.sub(r"[^ -~]", "?", (str(error).splitlines() or [type(error).__name__])[0][:200])
        raise CheckpointError(f"{path.name} cannot be read: {what}.", expected="a whole file of torch.save") from error
    return _flat(path, value)


def _check_archive(path: Path) -> None:
    """Only the zip format of torch 1.6 and later, with stored entries.

    A compressed entry is a zip bomb where small, and read as garbage through a memory map (torch reads at the offset of
    the compressed bytes).
    """
    try:
        with zipfile.ZipFile(path) as archive:
            packed = [entry.filename for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
        with path.open("rb") as file:
            started = file.read(4) == b"PK\x03\x04"
        if started:
            raise CheckpointIncompleteError(
                f"{path.name} is truncated: its zip archive has no end.",
                expected="a whole file of torch.save",
                remedy="If it is still being written, wait for its end; otherwise copy it again.",
            ) from error
        raise CheckpointError(
            f"{path.name} is not a zip archive.",
            expected="a file of torch.save in the format of torch 1.6 and later",
            remedy="Load it where it came from and save its state dict as .safetensors.",
        ) from error
    except OSError as error:
        raise from_os_error(error, f"Reading {path.name}", otherwise=CheckpointError) from error
    if packed:
        raise CheckpointError(
            f"{path.name} was compressed again: {packed[0]!r} is not stored as it is.",
            expected="the archive as torch.save writes it",
            remedy="Unpack it and save it again with torch.save, or as .safetensors.",
        )


def _flat(path: Path, value: Any) -> dict[str, torch.Tensor]:
    import torch

    if not isinstance(value, dict):
        raise CheckpointError(f"{path.name} holds a {type(value).__name__}.", expected="a state dict: {name: tensor}")
    if not value:
        raise CheckpointError(
            f"{path.name} holds an empty state dict.",
            expected="the adapter's tensors",
            remedy="get_peft_model_state_dict finds nothing under a torch.compile wrapper: save the inner model's.",
        )
    others = [key for key, item in value.items() if not isinstance(key, str) or not isinstance(item, torch.Tensor)]
    if others:
        kind = type(value[others[0]]).__name__
        raise CheckpointError(
            f"{path.name} holds more than one flat state dict: {str(others[0])[:80]!r} is a {kind}.",
            expected="{name: tensor}",
            remedy="Save the adapter's state dict alone: torch.save(get_peft_model_state_dict(model), path).",
        )
    for key, tensor in value.items():
        if refusal := bad_key(key) or _bad_tensor(path, key, tensor):
            raise refusal
    total = sum(tensor.numel() * tensor.element_size() for tensor in value.values())
    if total > path.stat().st_size:
        raise CheckpointError(
            f"The tensors in {path.name} share memory: they have {total} bytes in all, more than the file.",
            expected="tensors with bytes of their own",
            remedy="Save the adapter again, best as .safetensors.",
        )
    return value


def _bad_tensor(path: Path, key: str, tensor: torch.Tensor) -> CheckpointError | None:
    import torch

    if tensor.is_meta or tensor.is_nested or tensor.is_quantized or tensor.layout != torch.strided:
        kinds = {"meta": tensor.is_meta, "nested": tensor.is_nested, "quantized": tensor.is_quantized}
        what = f"is {next((kind for kind, true in kinds.items() if true), tensor.layout)}"
    elif tensor.numel() == 0:
        what = f"is empty: {list(tensor.shape)}"
    elif tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        # torch.zeros(1).expand(2**40) is 1,570 bytes on disk and a terabyte once copied.
        what = f"claims {tensor.numel()} elements, more than the file has bytes for"
    else:
        return None
    return CheckpointError(f"{key!r} in {path.name} {what}.", expected="ordinary dense tensors")


def _info(tensor: torch.Tensor) -> TensorInfo:
    return TensorInfo(safetensors_dtype(tensor.dtype), tuple(tensor.shape))


def safetensors_dtype(dtype: torch.dtype) -> str:
    """safetensors' name of a torch dtype."""
    import torch

    names = {
        torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
        torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
        torch.bool: "BOOL", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
    }  # fmt: skip
    return names.get(dtype, str(dtype))
