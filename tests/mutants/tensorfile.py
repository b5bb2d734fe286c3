"""A safetensors file as data, and its bytes in an order and with a padding of one's choice."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open

_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int32: "I32",
}  # fmt: skip


@dataclass
class TensorFile:
    """Tensors by key, in the order of the file, and the metadata of its header. To be changed at will."""

    tensors: dict[str, torch.Tensor]
    header: dict[str, str]
    padding: int = 0
    #: Replaces the bytes of the file once they are made.
    final: list[bytes] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> TensorFile:
        with safe_open(path, "pt") as opened:
            tensors = {key: opened.get_tensor(key).clone() for key in opened.keys()}  # noqa: SIM118 - no mapping
            return cls(tensors, dict(opened.metadata() or {}))

    def copy(self) -> TensorFile:
        return TensorFile({key: tensor.clone() for key, tensor in self.tensors.items()}, dict(self.header))

    def rename(self, names: Mapping[str, str]) -> None:
        """Other keys for the same tensors, in the same places."""
        self.tensors = {names.get(key, key): tensor for key, tensor in self.tensors.items()}

    def drop(self, keys: Iterable[str]) -> None:
        for key in list(keys):
            del self.tensors[key]

    def to_bytes(self) -> bytes:
        if self.final:
            return self.final[-1]
        entries: dict[str, object] = {"__metadata__": self.header} if self.header else {}
        data = bytearray()
        for key, tensor in self.tensors.items():
            raw = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
            offsets = [len(data), len(data) + len(raw)]
            entries[key] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
            data += raw
        return joined(entries, bytes(data), self.padding)


def joined(entries: Mapping[str, object], data: bytes, padding: int = 0) -> bytes:
    """The bytes of a file with this header and these tensors; the header is padded to a multiple of 8, and more."""
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8 + padding)
    return struct.pack("<Q", len(text)) + text + data


def parted(content: bytes) -> tuple[dict[str, object], bytes]:
    """(header, bytes of the tensors) of a file."""
    (size,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + size]), content[8 + size :]
