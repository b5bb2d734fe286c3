"""PEFT's keys: `base_model.model.{module}.lora_A.weight`, or the same without `base_model.model.`.

PEFT writes the first; `get_peft_model_state_dict` of a model that diffusers' `add_adapter` adapted gives the second,
and so does diffusers' `ModelMixin.save_lora_adapter`, which puts its LoraConfig into the header. The scale is in
`adapter_config.json`; a state dict alone does not say it.
"""

from __future__ import annotations

import re

from adapterline.checkpoints.containers.base import NotMyKindError
from adapterline.checkpoints.dialects.base import (
    Entry,
    Part,
    Readable,
    ScaleRule,
    Stated,
    collect,
    stated_beside,
)
from adapterline.checkpoints.dialects.diffusers import METADATA_KEY, adapter_metadata
from adapterline.checkpoints.scales import from_peft_config
from adapterline.families import COMPONENT_NAMES

SUFFIXES: dict[str, Part] = {
    "lora_A.weight": "a",
    "lora_B.weight": "b",
    "lora_B.bias": "bias",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
}
_SUFFIX = "|".join(map(re.escape, SUFFIXES))
_PREFIXED = re.compile(rf"(?:({'|'.join(COMPONENT_NAMES)})\.)?base_model\.model\.(.+?)\.({_SUFFIX})")
_BARE = re.compile(rf"()(.+?)\.({_SUFFIX})")


class Peft:
    """Reads PEFT adapter folders and state dicts."""

    name = "peft"

    def entries(self, readable: Readable) -> dict[str, Entry]:
        """See `Dialect.entries`."""
        for component in readable.configs:
            # The type decides how the keys are to be read, so its refusal comes before theirs.
            stated = stated_beside(readable, component)
            from_peft_config(stated.config, stated.where)
        if any("base_model.model." in key for key in readable.tensors):
            return collect(readable, _prefixed)
        if not any(_BARE.fullmatch(key) for key in readable.tensors):
            raise NotMyKindError("no key is {module}.lora_A.weight or the like")
        if named := next((key for key in readable.tensors if key.split(".")[0] in COMPONENT_NAMES), None):
            raise NotMyKindError(f"{named!r} begins with a component, as diffusers' keys do")
        return collect(readable, _bare)

    def scale_rule(self, readable: Readable, component: str | None) -> ScaleRule | None:
        """See `Dialect.scale_rule`."""
        stated = self.stated(readable, component)
        return from_peft_config(stated.config, stated.where) if stated else None

    def stated(self, readable: Readable, component: str | None) -> Stated | None:
        """See `Dialect.stated`."""
        if readable.configs:
            return stated_beside(readable, component)
        metadata = adapter_metadata(readable)
        return Stated(metadata, f"the header's {METADATA_KEY}") if metadata else None


def _prefixed(key: str) -> Entry | None:
    match = _PREFIXED.fullmatch(key)
    return Entry(match[1], match[2], SUFFIXES[match[3]]) if match else None


def _bare(key: str) -> Entry | None:
    match = _BARE.fullmatch(key)
    return Entry(None, match[2], SUFFIXES[match[3]]) if match else None
