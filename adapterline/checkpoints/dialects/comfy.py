"""ComfyUI's keys: `diffusion_model.` and the module's name, `text_encoders.clip_l.transformer.` for a text encoder.

    diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight    the original implementation's names
    diffusion_model.transformer_blocks.0.attn.to_q.lora_A.weight  diffusers' names: ai-toolkit, musubi-tuner's `other`
    diffusion_model.transformer_2.blocks.0.self_attn.q....        both of Wan 2.2's models in one file: ai-toolkit
    text_encoders.clip_l.transformer.text_model.encoder....       OneTrainer

Suffixes are lora_A and lora_B, or lora_down and lora_up, or LyCORIS's. With an alpha tensor the scale is alpha / rank,
without one it is 1 (comfy.weight_adapter.lora).
"""

from __future__ import annotations

import re

from adapterline.checkpoints.containers.base import NotMyKindError
from adapterline.checkpoints.dialects.base import DENOISER, Entry, Readable, ScaleRule, Stated, alpha_rule, collect
from adapterline.checkpoints.dialects.dotted import split, with_full_ranks
from adapterline.checkpoints.dialects.flat import flat_entry
from adapterline.checkpoints.scales import unit

_DENOISER = re.compile(r"(?:model\.)?diffusion_model\.(.+)")
#: ai-toolkit's DualWanTransformer3DModel counts from 1; the model for high noise comes first.
_ONE_OF_TWO = re.compile(r"diffusion_model\.transformer_([12])\.(.+)")
_TWO = {"1": "transformer", "2": "transformer_2"}
_TEXT_ENCODER = re.compile(r"text_encoders\.([A-Za-z0-9_]+)\.(?:transformer\.)?(?:model\.(?=layers\.))?(.+)")


class Comfy:
    """Reads files that were written for ComfyUI."""

    name = "comfy"

    def entries(self, readable: Readable) -> dict[str, Entry]:
        """See `Dialect.entries`."""
        if not any(_DENOISER.match(key) or _TEXT_ENCODER.match(key) for key in readable.tensors):
            raise NotMyKindError("no key begins with diffusion_model. or text_encoders.")
        return with_full_ranks(collect(readable, _entry), readable.header)

    def scale_rule(self, readable: Readable, component: str | None) -> ScaleRule | None:
        """See `Dialect.scale_rule`."""
        entries = self.entries(readable)
        return alpha_rule(readable, entries, component, without=unit)

    def stated(self, readable: Readable, component: str | None) -> Stated | None:
        """None: alpha is in the tensors, or 1."""
        return None


def _entry(key: str) -> Entry | None:
    if flat := flat_entry(key):  # text encoders beside `diffusion_model.`, in sd-scripts' spelling
        return flat
    if match := _ONE_OF_TWO.fullmatch(key):
        found = split(match[2])
        return Entry(_TWO[match[1]], *found) if found else None
    for pattern in (_DENOISER, _TEXT_ENCODER):
        match = pattern.fullmatch(key)
        found = split(match[match.lastindex or 0]) if match else None
        if match and found:
            return Entry(DENOISER if pattern is _DENOISER else match[1], *found)
    return None
