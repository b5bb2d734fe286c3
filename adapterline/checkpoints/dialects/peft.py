"""PEFT's keys: `base_model.model.{module}.lora_A.weight`, or the same without `base_model.model.`.

PEFT writes the first; `get_peft_model_state_dict` of a model that diffusers' `add_adapter` adapted gives the second,
and so does diffusers' `ModelMixin.save_lora_adapter`, which puts its LoraConfig into the header. The scale is in
`adapter_config.json`; a state dict alone does not say it.

Other types have other suffixes (`peft_types`), and what their layers share lies in `base_model.vera_A` and the like.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from adapterline.checkpoints.containers.base import NotMyKindError
from adapterline.checkpoints.dialects.base import (
    BASE_WEIGHT,
    Entry,
    Readable,
    ScaleRule,
    Stated,
    collect,
    stated_beside,
)
from adapterline.checkpoints.dialects.diffusers import METADATA_KEY, adapter_metadata
from adapterline.checkpoints.dialects.flat import is_flat
from adapterline.checkpoints.peft_types import PEFT_TYPES, peft_type_of
from adapterline.families import COMPONENT_NAMES

#: The parts of a layer by the end of their keys, of all types: no two types mean different parts by one.
SUFFIXES: Final[dict[str, str]] = {
    suffix: part for kind in PEFT_TYPES.values() for suffix, part in kind.suffixes.items()
}
_SHARED: Final[dict[str, str]] = {name: part for kind in PEFT_TYPES.values() for name, part in kind.shared.items()}
_COMPONENT, _SUFFIX = "|".join(COMPONENT_NAMES), "|".join(map(re.escape, SUFFIXES))
_PREFIXED = re.compile(rf"(?:({_COMPONENT})\.)?base_model\.model\.(.+?)\.({_SUFFIX})")
_SHARED_KEY = re.compile(rf"(?:({_COMPONENT})\.)?base_model\.({'|'.join(_SHARED)})")
_NOT_BARE = frozenset(
    {*COMPONENT_NAMES, "diffusion_model", "model", "text_encoders", "lora_te", "lora_te1", "lora_te2"}
)
_PREFIX, _BASE_LAYER = r"base_model\.model\.", ".base_layer."
_BARE = re.compile(rf"()(.+?)\.({_SUFFIX})")


class Peft:
    """Reads PEFT adapter folders and state dicts."""

    name = "peft"

    def entries(self, readable: Readable) -> dict[str, Entry]:
        """See `Dialect.entries`."""
        for component in readable.configs:
            # The type decides how the keys are to be read, so its refusal comes before theirs.
            stated = stated_beside(readable, component)
            peft_type_of(stated.config, stated.where).rule(stated.config, stated.where)
        if any("base_model.model." in key for key in readable.tensors):
            return collect(readable, _or_base_weight(readable, _or_shared(readable, _prefixed), _PREFIX))
        if not any(_BARE.fullmatch(key) for key in readable.tensors):
            raise NotMyKindError("no key is {module}.lora_A.weight or the like")
        if named := next((key for key in readable.tensors if key.split(".")[0] in _NOT_BARE or is_flat(key)), None):
            raise NotMyKindError(f"{named!r} begins with a component, as diffusers' and ComfyUI's keys do")
        return collect(readable, _or_base_weight(readable, _bare, ""))

    def scale_rule(self, readable: Readable, component: str | None) -> ScaleRule | None:
        """See `Dialect.scale_rule`."""
        stated = self.stated(readable, component)
        return peft_type_of(stated.config, stated.where).rule(stated.config, stated.where) if stated else None

    def stated(self, readable: Readable, component: str | None) -> Stated | None:
        """See `Dialect.stated`."""
        if readable.configs:
            return stated_beside(readable, component)
        metadata = adapter_metadata(readable)
        return Stated(metadata, f"the header's {METADATA_KEY}") if metadata else None


def _or_shared(readable: Readable, entry_of: Callable[[str], Entry | None]) -> Callable[[str], Entry | None]:
    """`entry_of`, and what all layers share: it is entered with the first of them, and `extract` gives it to all."""
    firsts: dict[str | None, str] = {}
    for key in readable.tensors:
        if entry := entry_of(key):
            firsts[entry.component] = min(entry.module, firsts.get(entry.component, entry.module))

    def with_shared(key: str) -> Entry | None:
        match = _SHARED_KEY.fullmatch(key)
        if match is None or match[1] not in firsts:
            return entry_of(key)
        return Entry(match[1], firsts[match[1]], _SHARED[match[2]])

    return with_shared


def _or_base_weight(
    readable: Readable, entry_of: Callable[[str], Entry | None], prefix: str
) -> Callable[[str], Entry | None]:
    """`entry_of`, and in a state dict of the whole model (every adapted layer has its `base_layer`) the base's weights.

    A few weights of the base were trained (modules_to_save, bias); those of all layers are just what lay under the
    adapter. `extract` compares them with the model.
    """
    entries = {key: entry_of(key) for key in readable.tensors}
    adapted = {(entry.component, entry.module) for entry in entries.values() if entry is not None}
    based = {_base_weight(key, prefix) for key, entry in entries.items() if entry is None and _BASE_LAYER in key}
    if not adapted <= {(entry.component, entry.module.rpartition(".")[0]) for entry in based if entry is not None}:
        return entry_of
    return lambda key: entries[key] or _base_weight(key, prefix)


def _base_weight(key: str, prefix: str) -> Entry | None:
    match = re.fullmatch(rf"(?:({'|'.join(COMPONENT_NAMES)})\.)?{prefix}(.+)", key)
    if match is None or "modules_to_save" in key or "lora_" in key:
        return None
    return Entry(match[1] if prefix else None, match[2].replace(_BASE_LAYER, "."), BASE_WEIGHT)


def _prefixed(key: str) -> Entry | None:
    match = _PREFIXED.fullmatch(key)
    return Entry(match[1], match[2], SUFFIXES[match[3]]) if match else None


def _bare(key: str) -> Entry | None:
    match = _BARE.fullmatch(key)
    return Entry(None, match[2], SUFFIXES[match[3]]) if match else None
