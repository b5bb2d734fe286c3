"""The components of an adapter in numbers: rank, alpha, type, dtype, and what they are called in the pipeline."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from adapterline.checkpoints.changes import rank_of, scale_rule
from adapterline.checkpoints.dialects import dialect_named
from adapterline.checkpoints.dialects.base import DENOISER
from adapterline.checkpoints.refused import block_size, types_stated, types_told
from adapterline.checkpoints.roles import TEXT_ENCODERS
from adapterline.deltas import DTYPES
from adapterline.errors import CheckpointError
from adapterline.families import COMPONENT_NAMES, FAMILIES, Family
from adapterline.families.recognition import denoiser_of
from adapterline.inspection.layers import Layers
from adapterline.inspection.stated import alpha_stated, ranks_stated, scales_stated
from adapterline.values import ExportOptions, Source, Value

#: By module; None of a layer without one.
Ranks = Mapping[str, int | None]

#: The warning of a component whose alpha counts and is nowhere.
ALPHA_UNKNOWN = "Nothing in the checkpoint says alpha; pass --alpha or --adapter-config to export."
#: Types of which no layer has a rank, whatever number the trainer was given for others.
_RANKLESS = frozenset({"full", "ia3", "norm", "unknown", "ln_tuning", "trainable_tokens"})


class InspectedComponent(Value):
    """One component, in numbers; a list where modules differ."""

    rank: int | list[int] | None = Field(
        description="what alpha is divided by: read off the factors, else as configuration or header state it; of OFT "
        "and BOFT what the trainer calls so, else the size of a block. None: the type has no rank (a full difference, "
        "IA3), or nothing says it"
    )
    alpha: float | list[float] | None = Field(
        description="rank x scale of what the adapter does; of a type that has another use for it, as the trainer "
        "states it. None: the type has none, or nothing says it, of which a warning tells"
    )
    modules: int
    adapter_type: str
    dtype: str | list[str]
    parameters: int


def in_numbers(
    source: Source, name: str, layers: Layers, options: ExportOptions, warnings: list[str]
) -> InspectedComponent:
    """A component of an adapter that can be exported, or that is refused for something that is not asked here.

    CheckpointError for factors that are none. What is amiss otherwise is added to `warnings`.
    """
    lacking = len(layers.parts) - len(layers.forms)
    if lacking:
        warnings.append(f"{lacking} of {len(layers.parts)} layers of {name} lack a factor.")
    if not layers.forms:
        raise CheckpointError("No layer of the checkpoint is whole.", expected="both factors of every layer")
    told = _told_ranks(source, layers)
    ranks = _ranks(source, layers, told)
    alphas = _alphas(source, layers, told, ranks, options, warnings)
    return _component(source, layers, ranks, alphas, _type_of(layers))


def refused_in_numbers(source: Source, layers: Layers) -> InspectedComponent:
    """A component of an adapter that is read and refused: what can be told of it."""
    formless = [key for module in layers.parts.keys() - layers.forms.keys() for key in layers.parts[module].values()]
    types = {_type_of(layers)} | types_told(formless) if layers.forms else types_stated(source) or types_told(formless)
    kind = "+".join(sorted(types)) or "unknown"
    told = _told_ranks(source, layers)
    ranks = _ranks(source, layers, told) if layers.forms else _ranks_of_blocks(source, layers, kind)
    return _component(source, layers, ranks, _alphas_of_refused(source, layers, ranks, kind), kind)


def _component(source: Source, layers: Layers, ranks: Ranks, alphas: set[float], kind: str) -> InspectedComponent:
    infos = [source.tensors[key] for key in layers.keys]
    return InspectedComponent(
        rank=_one_or_all({rank for rank in ranks.values() if rank is not None}),
        alpha=_one_or_all(alphas),
        modules=len(layers.parts),
        adapter_type=kind,
        dtype=_one_or_all({DTYPES.get(info.dtype, info.dtype) for info in infos}),
        parameters=sum(math.prod(info.shape) for info in infos),
    )


def _type_of(layers: Layers) -> str:
    kinds = {part for parts in layers.parts.values() for part in parts}
    kind = "+".join(sorted({form.name.partition(" ")[0] for form in layers.forms.values()}))
    if kinds & {"magnitude", "dora_scale"}:
        kind = "dora" if kind == "lora" else f"{kind}+dora"
    return f"{kind}+bias" if kinds & {"bias", "bias_diff"} else kind


def _one_or_all(values: set[Any]) -> Any:
    return next(iter(values), None) if len(values) < 2 else sorted(values)


# --- rank -------------------------------------------------------------------------------------------------------------


def _told_ranks(source: Source, layers: Layers) -> Ranks:
    """By module, what the shapes tell. CheckpointError for factors that are none."""
    return {module: rank_of(source, form, layers.parts[module], module) for module, form in layers.forms.items()}


def _ranks(source: Source, layers: Layers, told: Ranks) -> Ranks:
    """Where the shapes tell it of no layer, what is stated."""
    if any(rank is not None for rank in told.values()):
        return told
    stated = ranks_stated(source, layers.spelled)
    return {module: None if form.name in _RANKLESS else stated(module) for module, form in layers.forms.items()}


def _ranks_of_blocks(source: Source, layers: Layers, kind: str) -> Ranks:
    if set(kind.split("+")) & _RANKLESS:
        return {}
    stated = ranks_stated(source, layers.spelled)
    return {module: stated(module) or _block_size(source, parts) for module, parts in layers.parts.items()}


def _block_size(source: Source, parts: Mapping[str, str]) -> int | None:
    return next((size for key in parts.values() if (size := block_size(source.tensors[key], key))), None)


# --- alpha ------------------------------------------------------------------------------------------------------------


def _alphas(
    source: Source, layers: Layers, told: Ranks, ranks: Ranks, options: ExportOptions, warnings: list[str]
) -> set[float]:
    try:
        rule = scale_rule(dialect_named(source.dialect), source, layers.spelled, options)
        if rule is None:
            warnings.append(ALPHA_UNKNOWN)
            return set()
        # Asked for every layer, as an export does: where it refuses, that is told.
        scales = {module: rule(module, rank) for module, rank in told.items()}
    except CheckpointError as refusal:
        warnings.append(f"It cannot be exported: {refusal}")
        return _alphas_of_refused(source, layers, ranks, "")
    return {_plain(scales[module] * rank) for module, rank in ranks.items() if rank is not None}


def _alphas_of_refused(source: Source, layers: Layers, ranks: Ranks, kind: str) -> set[float]:
    """By PEFT's configuration, else the alpha tensors of layers with factors, else as anything states it."""
    if set(kind.split("+")) & _RANKLESS and not layers.forms:
        return set()
    if layers.forms and (scale := scales_stated(source, layers.spelled)):
        return {_plain(scale(module) * rank) for module, rank in ranks.items() if rank is not None}
    tensors, alpha = _alpha_tensors(source, layers), alpha_stated(source, layers.spelled)
    return tensors if layers.forms and tensors else {_plain(alpha)} if alpha is not None else tensors


def _alpha_tensors(source: Source, layers: Layers) -> set[float]:
    """Those that are finite numbers."""
    found = set()
    for parts in layers.parts.values():
        with contextlib.suppress(CheckpointError):
            found |= {source.scalar(parts["alpha"])} if "alpha" in parts else set()
    return {_plain(alpha) for alpha in found if math.isfinite(alpha)}


def _plain(alpha: float) -> float:
    """Without the noise of the division that made the scale."""
    return float(f"{alpha:.9g}")


# --- names ------------------------------------------------------------------------------------------------------------


def name_of(layers: Layers, source: Source, family: Family | None) -> str:
    """A component's name in its pipeline, for the name or the role that the keys have."""
    spelled = layers.spelled
    if spelled is None:
        return _guessed(layers, source, family)
    if spelled in COMPONENT_NAMES:
        return spelled
    if spelled == DENOISER:
        return family.components[0].name if family else denoiser_of(layers.parts)
    classes = TEXT_ENCODERS.get(spelled, ())
    encoders = [each for each in (family.components if family else ()) if each.name.startswith("text_encoder")]
    fitting = [each.name for each in encoders if set(classes) & set(each.models)] or ["text_encoder"]
    return fitting[-1] if spelled == "clip_g" else fitting[0]


def _guessed(layers: Layers, source: Source, family: Family | None) -> str:
    """By the class that PEFT noted, or else by the top-level module."""
    mapping = source.configs.get("", {}).get("auto_mapping")
    stated = mapping.get("base_model_class") if isinstance(mapping, dict) else None
    families: Sequence[Family] = (family,) if family else FAMILIES
    for each in families:
        for component in each.components:
            if stated in component.models:
                return component.name
    if layers.is_encoder:
        return "text_encoder"
    return family.components[0].name if family else denoiser_of(layers.parts)
