"""The folders that `PeftModel.from_pretrained` loads: one for each component, `peft/{component}`.

    adapter_model.safetensors   base_model.model.{module}.lora_A.weight, and so on, as PEFT's own save names them
    adapter_config.json         the LoraConfig of these layers alone

PEFT reads the scale, so the factors are left as they were trained. It compares whole names and drops what it has no
place for without a word, so modules are called as the installed model class calls them: transformers 5 dropped
`text_model.` from `CLIPTextModel`, and not from `CLIPTextModelWithProjection`. An older transformers needs
`key_mapping={"^": "text_model."}` for the former. A key of rank_pattern or alpha_pattern is a whole name, which PEFT
has always understood (0.13 and 0.14 look it up as it is); only where other adapted names end in it, it begins with `^`,
which those two never match.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any

from adapterline.deltas import NAMES, Kronecker, LowRank
from adapterline.errors import ConversionError
from adapterline.families import Component
from adapterline.families.base import Base, peft_call
from adapterline.families.skeleton import build_model, plain_name, targets
from adapterline.layouts.base import LayoutPlan, Written
from adapterline.layouts.config import check_uniform, look_alikes, lora_config
from adapterline.layouts.lokr import is_lokr, lokr_config, lokr_tensors
from adapterline.layouts.low_rank import tensor_plans, transforms_of
from adapterline.layouts.scale import keep
from adapterline.parallel import each_value
from adapterline.values import ExportOptions, FilePlan, TensorPlan, Transform, canonical_json

#: PEFT's names (peft.utils.constants, peft.utils.save_and_load).
CONFIG, WEIGHTS, PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."
_SUFFIXES = {"a": "lora_A.weight", "b": "lora_B.weight", "bias": "lora_B.bias", "magnitude": "lora_magnitude_vector"}


class Peft:
    """Plans `peft/{component}/adapter_config.json` and `adapter_model.safetensors` of every component."""

    name = "peft"

    def plan(
        self, components: Written, base: Base, options: ExportOptions, name: str, finished_at: datetime | None
    ) -> LayoutPlan:
        """See `LayoutWriter.plan`. `options.scale` decides nothing here: the scale is always stated."""
        requested = NAMES[options.dtype] if options.dtype else None
        files, loads, transforms = [], [], []
        for described in base.family.components:
            if not (written := components.get(described.name)):
                continue
            _check_shapes(base, described.name, written)
            tensors, config, done = _adapter(base, described, written, requested)
            folder = f"{self.name}/{described.name}"
            content = canonical_json({**_common(base), **config})
            files.append(FilePlan("config", self.name, f"{folder}/{CONFIG}", content=content))
            files.append(FilePlan("weights", self.name, f"{folder}/{WEIGHTS}", tensors, {"format": "pt"}))
            loads.append(peft_call(base, described.name, folder))
            transforms += done
        return LayoutPlan(tuple(files), tuple(loads), tuple(transforms))


def _adapter(
    base: Base, described: Component, written: Mapping[str, LowRank | Kronecker], requested: str | None
) -> tuple[dict[str, TensorPlan], dict[str, Any], list[Transform]]:
    """(the tensors by key, what the configuration says of the layers, what was done to the factors)."""
    names = _own_names(base, described)
    own = {names[module] for module in written}
    exact = bool(look_alikes(own, set(names.values()) - own))
    as_pattern = partial(_as_pattern, ambiguous=look_alikes(own, own))
    tensors: dict[str, TensorPlan] = {}
    if is_lokr(written):
        factors = {names[module]: delta for module, delta in written.items() if isinstance(delta, Kronecker)}
        for module, factor in factors.items():
            tensors |= lokr_tensors(f"{PREFIX}{module}", replace(factor, scale=1.0), requested)
        return tensors, lokr_config(factors, as_pattern, exact), []
    deltas = {module: delta for module, delta in written.items() if isinstance(delta, LowRank)}
    check_uniform(described.name, deltas)
    folds = each_value(partial(keep, requested=requested), deltas)
    for module, delta in deltas.items():
        keys = {part: f"{PREFIX}{names[module]}.{suffix}" for part, suffix in _SUFFIXES.items()}
        tensors |= tensor_plans(delta, folds[module], keys)
    scales = {names[module]: done.scale for module, done in folds.items()}
    config = lora_config({names[module]: delta for module, delta in deltas.items()}, scales, as_pattern, exact)
    if config["lora_bias"] and config["use_dora"]:
        raise ConversionError(
            f"{described.name} has biases beside its DoRA magnitudes.",
            expected="one of them: PEFT raises ValueError for a LoraConfig with both",
        )
    if not config["lora_bias"]:
        del config["lora_bias"]  # PEFT 0.13 does not know it
    config |= {"peft_type": "LORA", "bias": "none", "use_rslora": False}
    return tensors, config, transforms_of(described.name, deltas, folds, requested)


def _common(base: Base) -> dict[str, Any]:
    """What every version of PEFT knows of every type."""
    return {"base_model_name_or_path": base.model, "inference_mode": True, "task_type": None}


def _own_names(base: Base, described: Component) -> dict[str, str]:
    """What the installed model class calls its layers, by their names without `text_model.`."""
    layers = targets(base, described.name)
    if not described.text_model:
        return {name: name for name in layers}
    names = (name for name, _ in build_model(base.models[described.name]).named_modules())
    return {plain_name(name): name for name in names if plain_name(name) in layers}


def _as_pattern(module: str, ambiguous: set[str]) -> str:
    """A name as a key of rank_pattern, which peft compares with the ends of names, as a regular expression."""
    return f"^{re.escape(module)}" if module in ambiguous else module


def _check_shapes(base: Base, component: str, written: Mapping[str, LowRank | Kronecker]) -> None:
    """diffusers widens the first layer of a FLUX model for a control adapter; PEFT takes the model as it is."""
    layers = targets(base, component)
    for module, delta in written.items():
        if delta.shape != layers[module].change:
            raise ConversionError(
                f"{component}.{module} changes a weight of {list(delta.shape)}, in the model it is "
                f"{list(layers[module].change)}.",
                expected="layers as wide as the model's: PEFT widens none for a control adapter",
                remedy="Leave the peft layout out.",
            )
