"""Keys whose module names have underscores for dots: `lora_unet_down_blocks_0_..._to_q.lora_down.weight`.

    lora_unet_   lora_transformer_   lycoris_      the model that denoises
    lora_te_     lora_te1_   lora_te2_   lora_te3_ the text encoders

The names are diffusers' or the original implementation's, flattened; which ones is for the base to say. Each module has
its alpha in a tensor of its own, and the scale is alpha / rank.
"""

from __future__ import annotations

import functools
import re

from adapterline.checkpoints.dialects.base import DENOISER, Entry
from adapterline.checkpoints.forms import SUFFIXES

COMPONENTS = {
    "lora_unet": DENOISER, "lora_transformer": DENOISER, "lycoris": DENOISER, "lora_prior": DENOISER,
    "lora_te": "text_encoder", "lora_te1": "text_encoder", "lora_te2": "text_encoder_2", "lora_te3": "text_encoder_3",
}  # fmt: skip
#: diffusers' convert_state_dict_to_kohya leaves these suffixes on a UNet's keys, with an underscore.
_HALF_CONVERTED = {"_lora.down.weight": "a", "_lora.up.weight": "b"}
_KEY = re.compile(
    rf"({'|'.join(sorted(COMPONENTS, key=len, reverse=True))})_([^.]+?)"
    rf"(?:\.({'|'.join(map(re.escape, SUFFIXES))})|({'|'.join(map(re.escape, _HALF_CONVERTED))}))"
)
_PREFIX = re.compile(rf"(?:{'|'.join(COMPONENTS)}|oft_unet|oft_te\d?)_[^.]+\.")


def is_flat(key: str) -> bool:
    """Does a key begin as these do, whatever follows?"""
    return _PREFIX.match(key) is not None


@functools.lru_cache(maxsize=1 << 15)  # a file's keys are gone through for each of its components
def flat_entry(key: str) -> Entry | None:
    """Where the tensor belongs; None if its suffix is unknown."""
    match = _KEY.fullmatch(key)
    if match is None:
        return None
    part = SUFFIXES[match[3]] if match[3] else _HALF_CONVERTED[match[4]]
    return Entry(COMPONENTS[match[1]], match[2], part)
