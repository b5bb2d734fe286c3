"""The dtypes in which factors are stored, and the rounding to them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

#: safetensors' names of the floating point dtypes in which factors are stored, and torch's.
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
#: The same the other way round.
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def times(tensor: torch.Tensor, factor: float, dtype: torch.dtype | None = None) -> torch.Tensor:
    """`tensor * factor`, rounded once to `dtype` (None: the tensor's own), as if computed in float64."""
    if factor == 1.0:
        return tensor if dtype is None else tensor.to(dtype)
    if dtype in (None, tensor.dtype) and math.frexp(factor)[0] == 0.5:
        return tensor * factor  # a power of two: exact but for the one rounding, and a tenth of the time
    return (tensor.double() * factor).to(dtype or tensor.dtype)
