"""Norm weights that come with an adapter and take the place of the base's: Black Forest Labs' control LoRAs have them.

diffusers' loader for FLUX writes them into the transformer and keeps the old ones for `unload_lora_weights`
(diffusers.loaders.lora_pipeline FluxLoraLoaderMixin._load_norm_into_transformer).
"""

from __future__ import annotations

import re

from adapterline.families.family import Family

#: FluxLoraLoaderMixin._control_lora_supported_norm_keys
_LOADED = re.compile(r"(?:single_)?transformer_blocks\.\d+\.attn\.norm_(?:added_)?[qk]\.weight")
_DOUBLE = re.compile(r"double_blocks\.(\d+)\.(img|txt)_attn\.norm\.(query|key)_norm\.scale")
_SINGLE = re.compile(r"single_blocks\.(\d+)\.norm\.(query|key)_norm\.scale")


def norm_weight(spelled: str) -> str | None:
    """diffusers' name of a norm's weight, given that or the original implementation's; None if it is neither."""
    if _LOADED.fullmatch(spelled):
        return spelled
    if match := _DOUBLE.fullmatch(spelled):
        added = "added_" if match[2] == "txt" else ""
        return f"transformer_blocks.{match[1]}.attn.norm_{added}{match[3][0]}.weight"
    if match := _SINGLE.fullmatch(spelled):
        return f"single_transformer_blocks.{match[1]}.attn.norm_{match[2][0]}.weight"
    return None


def loads_norms(family: Family, component: str) -> bool:
    """Does the family's loader write norm weights into this component?"""
    return family.control is not None and family.control.component == component
