"""Which layers of a file do not fit the model, by names and shapes alone: what a loader that fails seldom says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from adapterline.families.base import Base, component_of
from adapterline.families.control import layers_for
from adapterline.families.skeleton import Target, plain_name
from adapterline.validation.consumers.base import Loaded
from adapterline.validation.files import LayoutFiles, tensors_of
from adapterline.values import TensorInfo

#: The tensors of a layer, by what their keys end in.
_Parts = dict[str, TensorInfo]
_KEY = re.compile(r"\w+\.(.+)\.(?:lora_([AB])\.weight|(lokr_w[12](?:_[ab])?))")


def misfits(folder: Path, layout: LayoutFiles, base: Base, loaded: Loaded) -> dict[str, str]:
    """`component.module` of each layer that does not fit, or was not loaded, with the reason.

    Only where most of a component's layers have the model's own names: the others are then mistakes, and not names
    that a loader translates. CheckpointError for a file that is not even of the format.
    """
    components: dict[str, dict[str, _Parts]] = {}
    for load in layout.loads if layout.layout == "diffusers" else ():
        for key, info in tensors_of(folder / load.weight_name).items():
            if match := _KEY.fullmatch(key):
                layers = components.setdefault(component_of(load, key, base.family), {})
                layers.setdefault(plain_name(match[1]), {})[match[2] or match[3]] = info
    found: dict[str, str] = {}
    for component, layers in components.items():
        if component in base.models:
            there = layers if loaded.error else loaded.components.get(component, {})
            reasons = _misfits_of(base, component, layers, there)
            found |= {f"{component}.{module}": why for module, why in reasons.items()}
    return found


def _misfits_of(
    base: Base, component: str, layers: Mapping[str, _Parts], there: Mapping[str, object]
) -> dict[str, str]:
    inputs = {module: parts["A"].shape[1] for module, parts in layers.items() if len(parts.get("A", _NONE).shape) > 1}
    known, _ = layers_for(base, component, inputs)
    if 2 * sum(module in known for module in layers) < len(layers):
        return {}
    reasons = {
        module: _why_not(parts, known.get(module)) or ("" if module in there else "it was not loaded")
        for module, parts in layers.items()
    }
    return {module: why for module, why in reasons.items() if why}


_NONE = TensorInfo("", ())


def _why_not(parts: _Parts, target: Target | None) -> str:
    if target is None:
        return "the model has no such module"
    if not parts.keys() & {"A", "B"}:
        missing = [name for name in ("lokr_w1", "lokr_w2") if not _has_factor(parts, name)]
        return f"there is no {missing[0]}, or not all of it" if missing else ""
    if missing := sorted({"A", "B"} - parts.keys()):
        return f"there is no {missing[0]}"
    return _why_not_low_rank(parts["A"], parts["B"], target)


def _has_factor(parts: _Parts, name: str) -> bool:
    """LoKr's, as a whole or decomposed."""
    return name in parts or {f"{name}_a", f"{name}_b"} <= parts.keys()


def _why_not_low_rank(a: TensorInfo, b: TensorInfo, target: Target) -> str:
    for name, info in (("A", a), ("B", b)):
        if not info.dtype.startswith(("F", "BF")):
            return f"{name} is stored as {info.dtype}"
    if a.shape[1:] != target.change[1:]:
        return f"A is {list(a.shape)}, for a weight of {list(target.change)}"
    if b.shape[:1] != target.change[:1]:
        return f"B is {list(b.shape)}, for a weight of {list(target.change)}"
    if b.shape[1:2] != (a.shape[0] // target.groups,):
        return f"A is {list(a.shape)} and B {list(b.shape)}: two ranks"
    return ""
