"""Module names with their dots, and LoRA's or LyCORIS's suffixes: what ComfyUI, ai-toolkit and OneTrainer share."""

from __future__ import annotations

import re

from adapterline.checkpoints.forms import SUFFIXES as FLAT_SUFFIXES

#: ai-toolkit calls DoRA's magnitude `.magnitude`.
SUFFIXES: dict[str, str] = {
    **FLAT_SUFFIXES,
    "lora_A.weight": "a", "lora_B.weight": "b", "lora_B.bias": "bias", "lora_up.bias": "bias",
    "lora.down.weight": "a", "lora.up.weight": "b", "magnitude": "magnitude",
    "lora_magnitude_vector": "magnitude", "lora_magnitude_vector.weight": "magnitude",
}  # fmt: skip
_KEY = re.compile(rf"(.+?)\.({'|'.join(map(re.escape, SUFFIXES))})")


def split(key: str) -> tuple[str, str] | None:
    """(module, part), or None if the suffix is unknown."""
    match = _KEY.fullmatch(key)
    return (match[1], SUFFIXES[match[2]]) if match else None
