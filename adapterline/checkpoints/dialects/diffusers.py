"""diffusers' own keys: the component in front, as `save_lora_weights` writes them.

    unet.down_blocks.0. ... .to_q.lora_A.weight                         since 0.27, for every family
    unet.down_blocks.0. ... .to_q.lora.down.weight                      convert_state_dict_to_diffusers, SD and SDXL
    text_encoder. ... .q_proj.lora_linear_layer.down.weight             the same, text encoders

The scale is in the header's `lora_adapter_metadata` (diffusers.loaders.lora_base.LORA_ADAPTER_METADATA_KEY): a
LoraConfig for each component, its keys prefixed by the component's name. Without it the scale is 1: that is what the
format means.
"""

from __future__ import annotations

import json
import re
from typing import Any

from adapterline.checkpoints.containers.base import NotMyKindError
from adapterline.checkpoints.dialects.base import (
    NORM,
    Entry,
    Readable,
    ScaleRule,
    Stated,
    collect,
    stated_beside,
)
from adapterline.checkpoints.dialects.dotted import split, with_full_ranks
from adapterline.checkpoints.scales import from_peft_config, unit
from adapterline.errors import CheckpointError
from adapterline.families import COMPONENT_NAMES
from adapterline.families.norms import norm_weight

METADATA_KEY = "lora_adapter_metadata"
SUFFIXES: dict[str, str] = {
    "lora_A.weight": "a",
    "lora_B.weight": "b",
    "lora_B.bias": "bias",
    "lora.down.weight": "a",
    "lora.up.weight": "b",
    "lora_linear_layer.down.weight": "a",
    "lora_linear_layer.up.weight": "b",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
}
_KEY = re.compile(rf"({'|'.join(COMPONENT_NAMES)})\.(.+?)\.({'|'.join(map(re.escape, SUFFIXES))})")


class Diffusers:
    """Reads files of `save_lora_weights`."""

    name = "diffusers"

    def entries(self, readable: Readable) -> dict[str, Entry]:
        """See `Dialect.entries`."""
        if any("base_model.model." in key for key in readable.tensors):
            raise NotMyKindError("keys with 'base_model.model.' are PEFT's")
        if not any(map(is_diffusers, readable.tensors)):
            raise NotMyKindError("no key is {component}.{module}.lora_A.weight or the like")
        prefixes = {f"{name}." for name in COMPONENT_NAMES}
        for key in readable.tensors:
            if split(key) and not is_diffusers(key) and key[: key.find(".") + 1] in prefixes:
                raise NotMyKindError(f"{key!r} has a suffix that diffusers does not write")
        entries = collect(readable, _entry)
        return (
            entries
            if readable.configs or METADATA_KEY in readable.header
            else with_full_ranks(entries, readable.header)
        )

    def scale_rule(self, readable: Readable, component: str | None) -> ScaleRule | None:
        """See `Dialect.scale_rule`."""
        stated = self.stated(readable, component)
        return from_peft_config(stated.config, stated.where) if stated else unit

    def stated(self, readable: Readable, component: str | None) -> Stated | None:
        """See `Dialect.stated`. An adapter_config.json lies beside the file, or a user names one for a lost header."""
        metadata = adapter_metadata(readable)
        if metadata and readable.configs:
            raise CheckpointError(
                f"The scale is stated twice: by the header's {METADATA_KEY} and by an adapter_config.json.",
                expected="one of them",
                remedy="Export the file alone, without the configuration, if the header is right.",
            )
        if readable.configs:
            return stated_beside(readable, component)
        if not metadata:
            return None
        prefix = f"{component}."
        config = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}
        if not config:
            raise CheckpointError(
                f"The header's {METADATA_KEY} says nothing of {component}, which is in the file.",
                expected="a configuration of every component",
                remedy="diffusers refuses such a file too; save it with the metadata of all components.",
            )
        return Stated(config, f"the header's {METADATA_KEY} of {component}")


def adapter_metadata(readable: Readable) -> dict[str, Any]:
    """The header's LoraConfigs, flat; empty without any. CheckpointError if it is not JSON."""
    text = readable.header.get(METADATA_KEY)
    if not text:
        return {}
    try:
        metadata = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"The header's {METADATA_KEY} is not JSON: {error}.") from error
    if not isinstance(metadata, dict):
        raise CheckpointError(f"The header's {METADATA_KEY} is not a JSON object.")
    return metadata


def is_diffusers(key: str) -> bool:
    """Is it spelled as `save_lora_weights` spells one?"""
    return _KEY.fullmatch(key) is not None


def _entry(key: str) -> Entry | None:
    component, _, rest = key.partition(".")
    if component in COMPONENT_NAMES and norm_weight(rest) == rest:
        return Entry(component, rest, NORM)
    match = _KEY.fullmatch(key)
    return Entry(match[1], match[2], SUFFIXES[match[3]]) if match else None
