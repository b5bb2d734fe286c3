"""An adapter in numbers, component by component: what `inspect`, the manifest and the card say of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from adapterline.deltas import DTYPES, LowRank
from adapterline.values import Adapter, ComponentSummary, Plan


def summarize(adapter: Adapter, plan: Plan) -> dict[str, ComponentSummary]:
    """The components as they are written: rank and alpha as trained, dtype and parameters as in the weights file."""
    written = [(key, tensor) for file in plan.files if file.role == "weights" for key, tensor in file.tensors.items()]
    summaries = {}
    for component, deltas in adapter.components.items():
        own = [tensor for key, tensor in written if key.startswith(f"{component}.")]
        summaries[component] = ComponentSummary(
            rank=_one_or_all({delta.rank for delta in deltas.values()}),
            alpha=_one_or_all({_round(delta.scale * delta.rank) for delta in deltas.values()}),
            modules=len(deltas),
            adapter_type=_adapter_type(deltas),
            dtype=_one_or_all({DTYPES[tensor.dtype] for tensor in own}),
            parameters=sum(math.prod(tensor.shape) for tensor in own),
        )
    return summaries


def _adapter_type(deltas: Mapping[str, LowRank]) -> str:
    kind = "dora" if any(delta.magnitude is not None for delta in deltas.values()) else "lora"
    return f"{kind}+bias" if any(delta.bias is not None for delta in deltas.values()) else kind


def _one_or_all(values: set[Any]) -> Any:
    return next(iter(values)) if len(values) == 1 else sorted(values)


def _round(alpha: float) -> float:
    """alpha = scale * rank, without the noise of the division that made the scale."""
    return float(f"{alpha:.9g}")
