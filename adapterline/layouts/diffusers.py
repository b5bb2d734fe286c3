"""The file that `load_lora_weights` of a diffusers pipeline loads.

Keys are `{component}.{module}.lora_A.weight` and `lora_B.weight`. CLIP text encoders keep `text_model.` in their keys:
diffusers 0.42 takes both forms, ComfyUI only this one. With the scale folded, the header says nothing that a consumer
needs, except where ranks are mixed, lora_B has biases or groups, or a module's name is the end of another's: peft finds
the modules by suffix, so they are then listed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from adapterline.deltas import NAMES, Kronecker, LowRank
from adapterline.families import Component
from adapterline.families.base import Base, load_call
from adapterline.families.skeleton import targets
from adapterline.layouts.base import LayoutPlan, Written
from adapterline.layouts.config import check_uniform, look_alikes, lora_config
from adapterline.layouts.lokr import is_lokr, lokr_tensors
from adapterline.layouts.low_rank import tensor_plans, transforms_of
from adapterline.layouts.scale import Fold, fold, keep
from adapterline.parallel import each_value
from adapterline.values import ExportOptions, FilePlan, LoadCall, TensorPlan, Transform


class Diffusers:
    """Plans `pytorch_lora_weights.safetensors`, and a second file where a pipeline takes two calls."""

    name = "diffusers"

    def plan(
        self, components: Written, base: Base, options: ExportOptions, name: str, finished_at: datetime | None
    ) -> LayoutPlan:
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
                check_uniform(described.name, deltas)
                decide = keep if options.scale == "header" else fold
                folds = each_value(partial(decide, requested=requested), deltas)
                transforms += transforms_of(described.name, deltas, folds, requested)
                files.setdefault(load.weight_name, (load, []))[1].append(_write(base, described, deltas, folds))
        plans = [
            _file(self.name, path, written, stated=options.scale == "header") for path, (_, written) in files.items()
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
    alike = bool(look_alikes(deltas, set(targets(base, described.name)) - set(deltas)))
    scales = {module: done.scale for module, done in folds.items()}
    # CLIP's names come after `text_model.` in some versions of transformers
    anchor = "" if described.text_model else "^"
    config = lora_config(deltas, scales, lambda module: f"{anchor}{re.escape(module)}", alike)
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


def _tensors(described: Component, module: str, delta: LowRank, done: Fold) -> dict[str, TensorPlan]:
    # CLIPTextModelWithProjection has its projection beside `text_model`, not in it.
    in_text_model = described.text_model and module != "text_projection"
    stem = f"{described.key_prefix}.{'text_model.' if in_text_model else ''}{module}"
    # transformers loads a magnitude only under `.weight`; diffusers' models take it without.
    magnitude = "lora_magnitude_vector.weight" if described.text_model else "lora_magnitude_vector"
    suffixes = {"a": "lora_A.weight", "b": "lora_B.weight", "bias": "lora_B.bias", "magnitude": magnitude}
    return tensor_plans(delta, done, {part: f"{stem}.{suffix}" for part, suffix in suffixes.items()})
