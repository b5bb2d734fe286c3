"""Which layers of a file do not fit the model, by names and shapes alone: what a loader that fails seldom says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from adapterline.families.base import Base, component_of
from adapterline.families.control import layers_for
from adapterline.families.skeleton import Target, plain_name
from adapterline.validation.files import LayoutFiles, tensors_of
from adapterline.values import TensorInfo

Parts = dict[str, TensorInfo]


def misfits(folder: Path, layout: LayoutFiles, base: Base) -> dict[str, str]:
    """`component.module` of each layer that does not fit, with the reason.

    Only where most of a component's layers have the model's own names: the others are then mistakes, and not names
    that a loader translates. CheckpointError for a file that is not even of the format.
    """
    components: dict[str, dict[str, Parts]] = {}
    for load in layout.loads if layout.layout == "diffusers" else ():
        for key, info in tensors_of(folder / load.weight_name).items():
            if match := re.fullmatch(r"\w+\.(.+)\.lora_([AB])\.weight", key):
                layers = components.setdefault(component_of(load, key, base.family), {})
                layers.setdefault(plain_name(match[1]), {})[match[2]] = info
    found: dict[str, str] = {}
    for component, layers in components.items():
        if component in base.models:
            found |= {f"{component}.{module}": why for module, why in _misfits_of(base, component, layers).items()}
    return found


def _misfits_of(base: Base, component: str, layers: Mapping[str, Parts]) -> dict[str, str]:
    inputs = {module: parts["A"].shape[1] for module, parts in layers.items() if len(parts.get("A", _NONE).shape) > 1}
    known, _ = layers_for(base, component, inputs)
    reasons = {module: _why_not(parts, known.get(module)) for module, parts in layers.items()}
    named = sum(module in known for module in layers)
    return {module: why for module, why in reasons.items() if why} if 2 * named >= len(layers) else {}


_NONE = TensorInfo("", ())


def _why_not(parts: Parts, target: Target | None) -> str:
    if target is None:
        return "the model has no such module"
    if missing := {"A", "B"} - parts.keys():
        return f"there is no {min(missing)}"
    a, b = parts["A"], parts["B"]
    for name, info in (("A", a), ("B", b)):
        if not info.dtype.startswith(("F", "BF")):
            return f"{name} is stored as {info.dtype}"
    if a.shape[1:] != target.change[1:]:
        return f"A is {list(a.shape)}, for a weight of {list(target.change)}"
    if b.shape[:1] != target.change[:1]:
        return f"B is {list(b.shape)}, for a weight of {list(target.change)}"
    if b.shape[1] * target.groups != a.shape[0]:
        return f"A is {list(a.shape)} and B {list(b.shape)}: two ranks"
    return ""
