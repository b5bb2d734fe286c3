"""What can be known of a tensor that has not been read: its dtype, by the names that safetensors has, and its shape."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Final, TypeGuard

from adapterline.values import TensorInfo

#: Bits of one element.
BITS: Final = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
#: torch's names of those that are read from its own files.
TORCH_NAMES: Final = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
    "U16": "uint16", "U32": "uint32", "U64": "uint64",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "C64": "complex64",
}  # fmt: skip
#: Bytes of one element of those.
SIZES: Final = {dtype: BITS[dtype] // 8 for dtype in TORCH_NAMES}
#: The dtypes by what a pickle of torch calls them.
DTYPES: Final = {f"torch.{name}": dtype for dtype, name in TORCH_NAMES.items()}
#: Of a tensor of torch.
MAX_DIMENSIONS: Final = 64


class Unread:
    """A tensor of which dtype and shape are known."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def info(self) -> TensorInfo:
        """Its dtype and shape."""
        return TensorInfo(self.dtype, self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes once it is copied."""
        return math.prod(self.shape) * SIZES[self.dtype]


def is_shape(value: Any) -> TypeGuard[tuple[int, ...]]:
    """Can it be a tensor's shape, or offsets in one? A file may have anything there."""
    return isinstance(value, tuple) and len(value) <= MAX_DIMENSIONS and are_sizes(value)


def are_sizes(numbers: Iterable[Any]) -> bool:
    """Are they whole numbers of at least 0, and small enough to be multiplied?"""
    return all(type(number) is int and 0 <= number < 1 << 62 for number in numbers)
