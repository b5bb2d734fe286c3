"""The file that `load_lora_weights` of a diffusers pipeline loads.

Keys are `{component}.{module}.lora_A.weight` and `lora_B.weight`. CLIP text encoders keep `text_model.` in their keys:
diffusers 0.42 takes both forms, ComfyUI only this one. With the scale folded, the header says nothing that a consumer
needs, except where ranks are mixed, lora_B has biases or groups, or a module's name is the end of another's: peft finds
the modules by suffix, so they are then listed.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from adapterline.deltas import NAMES, Kronecker, LowRank
from adapterline.errors import ConversionError
from adapterline.families import Component
from adapterline.families.base import Base, load_call
from adapterline.families.skeleton import targets
from adapterline.layouts.base import LayoutPlan, Written
from adapterline.layouts.lokr import is_lokr, lokr_tensors
from adapterline.layouts.scale import Fold, fold, keep, torch_dtype
from adapterline.parallel import each_value
from adapterline.values import ExportOptions, FilePlan, LoadCall, TensorPlan, Transform


class Diffusers:
    """Plans `pytorch_lora_weights.safetensors`, and a second file where a pipeline takes two calls."""

    name = "diffusers"

    def plan(self, components: Written, base: Base, options: ExportOptions) -> LayoutPlan:
        """See `LayoutWriter.plan`."""
        requested = NAMES[options.dtype] if options.dtype else None
        files: dict[str, tuple[LoadCall, list[_Written]]] = {}
        transforms: list[Transform] = []
        for described in base.family.components:
            written = components.get(described.name, {})
            load = load_call(base, described)
            if is_lokr(written):
                files.setdefault(load.weight_name, (load, []))[1].append(_write_lokr(described, written, requested))
            elif deltas := {module: delta for module, delta in written.items() if isinstance(delta, LowRank)}:
                _check_uniform(described.name, deltas)
                decide = keep if options.scale == "header" else fold
                folds = each_value(partial(decide, requested=requested), deltas)
                transforms += _transforms(described.name, deltas, folds, requested)
                files.setdefault(load.weight_name, (load, []))[1].append(_write(base, described, deltas, folds))
        plans = [
            _file(self.name, name, written, stated=options.scale == "header") for name, (_, written) in files.items()
        ]
        return LayoutPlan(tuple(plans), tuple(load for load, _ in files.values()), tuple(transforms))


@dataclass(frozen=True)
class _Written:
    """A component as it goes into its file. `needs_config`: without `config`, a consumer would build other layers."""

    tensors: Mapping[str, TensorPlan]
    config: Mapping[str, Any]
    needs_config: bool


def _write(base: Base, described: Component, deltas: Mapping[str, LowRank], folds: Mapping[str, Fold]) -> _Written:
    tensors: dict[str, TensorPlan] = {}
    for module, delta in deltas.items():
        tensors |= _tensors(described, module, delta, folds[module])
    alike = _look_alikes(base, described.name, deltas)
    config = _config(deltas, folds, described, alike)
    return _Written(
        tensors=tensors,
        config={f"{described.key_prefix}.{key}": value for key, value in config.items()},
        needs_config=alike
        or len({delta.rank for delta in deltas.values()}) > 1
        # diffusers takes the rank from B's second size, which is rank / groups in a grouped convolution
        or any(delta.bias is not None or delta.groups > 1 for delta in deltas.values()),
    )


def _write_lokr(described: Component, deltas: Mapping[str, LowRank | Kronecker], requested: str | None) -> _Written:
    tensors: dict[str, TensorPlan] = {}
    for module, delta in deltas.items():
        if isinstance(delta, Kronecker):
            tensors |= lokr_tensors(f"{described.key_prefix}.{module}", delta, requested)
    return _Written(tensors=tensors, config={}, needs_config=False)


def _file(layout: str, path: str, written: list[_Written], stated: bool) -> FilePlan:
    """One file. Configurations are all or nothing: a loader that finds some wants one for every component."""
    header = {"format": "pt"}
    if stated or any(part.needs_config for part in written):
        metadata = {key: value for part in written for key, value in part.config.items()}
        header["lora_adapter_metadata"] = json.dumps(metadata, sort_keys=True)
    tensors = {key: plan for part in written for key, plan in part.tensors.items()}
    return FilePlan(role="weights", layout=layout, path=path, tensors=tensors, header=header)


def _check_uniform(component: str, deltas: Mapping[str, LowRank]) -> None:
    """DoRA and lora_bias are settings of a whole LoraConfig: peft would invent what a layer lacks."""
    for what, having in (
        ("a DoRA magnitude", [module for module, delta in deltas.items() if delta.magnitude is not None]),
        ("a lora_B bias", [module for module, delta in deltas.items() if delta.bias is not None]),
    ):
        if having and len(having) != len(deltas):
            lacking = sorted(set(deltas) - set(having))
            raise ConversionError(
                f"{len(having)} of {len(deltas)} layers of {component} have {what}, and {lacking[0]} has none.",
                expected="all or none: diffusers loads one configuration for the whole component",
            )


def _tensors(described: Component, module: str, delta: LowRank, done: Fold) -> dict[str, TensorPlan]:
    # CLIPTextModelWithProjection has its projection beside `text_model`, not in it.
    in_text_model = described.text_model and module != "text_projection"
    stem = f"{described.key_prefix}.{'text_model.' if in_text_model else ''}{module}"
    # transformers loads a magnitude only under `.weight`; diffusers' models take it without.
    magnitude = "lora_magnitude_vector.weight" if described.text_model else "lora_magnitude_vector"
    plans = {}
    for part, suffix in (
        ("a", "lora_A.weight"),
        ("b", "lora_B.weight"),
        ("bias", "lora_B.bias"),
        ("magnitude", magnitude),
    ):
        tensor = getattr(delta, part)
        if tensor is not None:
            plans[f"{stem}.{suffix}"] = _planned(delta, done, part)
    return plans


def _planned(delta: LowRank, done: Fold, part: str) -> TensorPlan:
    tensor = getattr(delta, part)
    own = NAMES[str(tensor.dtype).removeprefix("torch.")]
    return TensorPlan(done.dtype or own, tuple(tensor.shape), partial(_stored, delta, done, part))


def _stored(delta: LowRank, done: Fold, part: str) -> Any:
    """One part alone, so that one tensor lies in memory."""
    alone = LowRank(
        a=delta.a if part == "a" else delta.a[:0],
        b=delta.b if part == "b" else delta.b[:0],
        scale=delta.scale,
        magnitude=delta.magnitude if part == "magnitude" else None,
        bias=delta.bias if part == "bias" else None,
        groups=delta.groups,
    )
    return getattr(alone.stored(done.shift, done.scale, torch_dtype(done.dtype)), part)


def _transforms(
    component: str, deltas: Mapping[str, LowRank], folds: Mapping[str, Fold], requested: str | None
) -> list[Transform]:
    transforms = []
    by_scale = defaultdict(list)
    for module, delta in deltas.items():
        if delta.scale != folds[module].scale:
            by_scale[delta.scale].append(module)
    for scale, modules in sorted(by_scale.items()):
        everywhere = len(modules) == len(deltas)
        transforms.append(
            Transform(
                kind="fold-scale",
                detail=f"scale {scale:.12g} folded into the factors",
                component=component,
                modules=() if everywhere else tuple(sorted(modules)),
            )
        )
    if requested:
        transforms.append(Transform(kind="cast", detail=f"factors rounded to {requested}", component=component))
    if promoted := sorted(module for module, done in folds.items() if done.promoted):
        transforms.append(
            Transform(
                kind="store-fp32",
                detail="stored as F32: their dtype cannot hold the scaled factors closely enough",
                component=component,
                modules=tuple(promoted),
            )
        )
    return transforms


def _look_alikes(base: Base, component: str, deltas: Mapping[str, LowRank]) -> bool:
    """Does a layer exist that is not adapted and whose name ends in an adapted one's, as peft compares names?"""
    others = set(targets(base, component)) - set(deltas)
    suffixes = {name[dot + 1 :] for name in others for dot, letter in enumerate(name) if letter == "."}
    return not suffixes.isdisjoint(deltas)


def _config(
    deltas: Mapping[str, LowRank], folds: Mapping[str, Fold], described: Component, exact: bool
) -> dict[str, Any]:
    """The LoraConfig that a consumer needs, and no more of it: what varies between versions of peft stays out."""
    ranks = {module: delta.rank for module, delta in deltas.items()}
    alphas = {module: _alpha(folds[module].scale, rank) for module, rank in ranks.items()}
    rank, alpha = _most_common(ranks), _most_common(alphas)
    anchor = "" if described.text_model else "^"

    def pattern(values: Mapping[str, float], usual: float) -> dict[str, float]:
        return {f"{anchor}{re.escape(module)}": value for module, value in values.items() if value != usual}

    names = sorted(deltas)
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": pattern(ranks, rank),
        "alpha_pattern": pattern(alphas, alpha),
        "target_modules": "|".join(map(re.escape, names)) if exact else names,
        "lora_bias": any(delta.bias is not None for delta in deltas.values()),
        "use_dora": any(delta.magnitude is not None for delta in deltas.values()),
    }


def _alpha(scale: float, rank: int) -> float:
    """The alpha whose quotient by the rank is the scale again; short where a short one does it."""
    short = float(f"{scale * rank:.12g}")
    alpha = short if short / rank == scale else scale * rank
    return int(alpha) if alpha == int(alpha) else alpha


def _most_common(values: Mapping[str, Any]) -> Any:
    """The most frequent value; of equals, the smallest."""
    return min(Counter(values.values()).items(), key=lambda item: (-item[1], item[0]))[0]
