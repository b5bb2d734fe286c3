"""A component's name in front, as diffusers has it, with suffixes that diffusers does not have.

    transformer.transformer_blocks.0.attn.to_q.lokr_w1, .alpha                 ai-toolkit
    transformer.transformer_blocks.0.attn.to_q.lora_A.weight, .magnitude       ai-toolkit's DoRA
    transformer.transformer_blocks.0.attn.to_q.lora_down.weight, .alpha        OneTrainer's backups

The scale is alpha / rank, and 1 without an alpha tensor: ai-toolkit folds it into the factors when it saves LoRA.
"""

from __future__ import annotations

import re

from adapterline.checkpoints.containers.base import NotMyKindError
from adapterline.checkpoints.dialects.base import Entry, Readable, ScaleRule, Stated, alpha_rule, collect, refusal_of
from adapterline.checkpoints.dialects.diffusers import METADATA_KEY, is_diffusers
from adapterline.checkpoints.dialects.dotted import split
from adapterline.checkpoints.scales import unit
from adapterline.errors import CheckpointError
from adapterline.families import COMPONENT_NAMES

_KEY = re.compile(rf"({'|'.join(sorted(COMPONENT_NAMES, key=len, reverse=True))})\.(.+)")


class AiToolkit:
    """Reads files of ai-toolkit, and OneTrainer's of the same kind."""

    name = "ai-toolkit"

    def entries(self, readable: Readable) -> dict[str, Entry]:
        """See `Dialect.entries`."""
        named = [key for key in readable.tensors if _KEY.fullmatch(key)]
        if not named:
            raise NotMyKindError("no key begins with the name of a component")
        if any("base_model.model." in key for key in readable.tensors):
            raise NotMyKindError("keys with 'base_model.model.' are PEFT's")
        if all(map(is_diffusers, named)):
            raise NotMyKindError("all suffixes are diffusers' own")
        if not any(split(key) and not is_diffusers(key) for key in named):
            if why := refusal_of(named):
                raise why
            raise NotMyKindError("no suffix is .alpha, .magnitude, .lora_down.weight or LyCORIS's")
        return collect(readable, _entry)

    def scale_rule(self, readable: Readable, component: str | None) -> ScaleRule | None:
        """See `Dialect.scale_rule`."""
        if METADATA_KEY in readable.header:
            raise CheckpointError(
                f"The scale is stated twice: by alpha tensors and by the header's {METADATA_KEY}.",
                expected="one of them",
                remedy="Save the adapter without one of the two.",
            )
        entries = self.entries(readable)
        return alpha_rule(readable, entries, component, without=unit)

    def stated(self, readable: Readable, component: str | None) -> Stated | None:
        """None: alpha is in the tensors, or 1."""
        return None


def _entry(key: str) -> Entry | None:
    match = _KEY.fullmatch(key)
    found = split(match[2]) if match else None
    return Entry(match[1], *found) if match and found else None
