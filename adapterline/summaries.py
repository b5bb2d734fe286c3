"""An adapter in numbers, component by component: what `inspect`, the manifest and the card say of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from adapterline.deltas import DTYPES, Delta, Full, Hadamard, Kronecker, Rows
from adapterline.families import Family, family_named
from adapterline.families.base import component_of
from adapterline.values import Adapter, ComponentSummary, Plan, TensorPlan


def summarize(adapter: Adapter, plan: Plan, approximate: int | None = None) -> dict[str, ComponentSummary]:
    """The components: type and scale as trained; rank, dtype and parameters as they are written.

    `approximate` is the rank that the user allowed at most, if any.
    """
    written = _written(plan, family_named(adapter.family))
    summaries = {}
    for component, deltas in adapter.components.items():
        ranks = {module: min(delta.needed_rank, approximate or delta.needed_rank) for module, delta in deltas.items()}
        own = [(tensor.dtype, math.prod(tensor.shape)) for name, tensor in written if name == component]
        # sd-scripts' keys do not tell their component, and fuse layers: there the factors count as they are
        own = own or [(delta.dtype, _factors(delta, ranks[module])) for module, delta in deltas.items()]
        summaries[component] = ComponentSummary(
            rank=_one_or_all(set(ranks.values())),
            alpha=_one_or_all({_round(delta.scale * ranks[module]) for module, delta in deltas.items()}),
            modules=len(deltas),
            adapter_type=_adapter_type(deltas),
            dtype=_one_or_all({DTYPES[dtype] for dtype, _ in own}),
            parameters=sum(size for _, size in own),
        )
    return summaries


def _written(plan: Plan, family: Family) -> list[tuple[str, TensorPlan]]:
    """The tensors with the component that each is for, in one of the layouts: an adapter is as large in every one."""
    layouts = [file.layout for file in plan.files if file.role == "weights"]
    layout = next((name for name in ("diffusers", "peft", *layouts) if name in layouts), "")
    return [
        (load.attributes["model"] if load.library == "peft" else component_of(load, key, family), tensor)
        for load in plan.loads
        for file in plan.files
        if (file.layout, file.role) == (layout, "weights") and load.loads(file.path)
        for key, tensor in file.tensors.items()
    ]


def _factors(delta: Delta, rank: int) -> int:
    out, *inputs = delta.shape
    return rank * (out + math.prod(inputs))


_TYPES: dict[type, str] = {Hadamard: "loha", Kronecker: "lokr", Full: "full"}


def _adapter_type(deltas: Mapping[str, Delta]) -> str:
    forms = {type(delta.whole if isinstance(delta, Rows) else delta) for delta in deltas.values()}
    kind = "+".join(sorted({_TYPES.get(form, "lora") for form in forms}))
    if any(delta.magnitude is not None for delta in deltas.values()):
        kind = "dora" if kind == "lora" else f"{kind}+dora"
    return f"{kind}+bias" if any(delta.bias is not None for delta in deltas.values()) else kind


def _one_or_all(values: set[Any]) -> Any:
    return next(iter(values)) if len(values) == 1 else sorted(values)


def _round(alpha: float) -> float:
    """alpha = scale * rank, without the noise of the division that made the scale."""
    return float(f"{alpha:.9g}")
