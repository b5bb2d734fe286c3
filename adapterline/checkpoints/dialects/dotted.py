"""Module names with their dots, and LoRA's or LyCORIS's suffixes: what ComfyUI, ai-toolkit and OneTrainer share."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from adapterline.checkpoints.dialects.base import Entry
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


def with_full_ranks(entries: Mapping[str, Entry], header: Mapping[str, str]) -> dict[str, Entry]:
    """The same, with `lora_A` as the whole change where no layer of a file of ai-toolkit has anything else.

    That is ai-toolkit's network type `fullrank`: its `lora_down` has the layer's own shape, and `lora_up` is the
    identity (toolkit/lora_special.py). The header has to say who wrote it: a LoRA that lost every lora_B looks alike
    where its rank is the layer's size.
    """
    if "ai-toolkit" not in header.get("software", "") or {entry.part for entry in entries.values()} != {"a"}:
        return dict(entries)
    return {key: replace(entry, part="diff") for key, entry in entries.items()}
