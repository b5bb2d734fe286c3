"""A component's name in front, as diffusers has it, with suffixes that diffusers does not have.

    transformer.transformer_blocks.0.attn.to_q.lokr_w1, .alpha                 ai-toolkit
    transformer.transformer_blocks.0.attn.to_q.lora_A.weight, .magnitude       ai-toolkit's DoRA
    transformer.transformer_blocks.0.attn.to_q.lora_down.weight, .alpha        OneTrainer's backups
    transformer.transformer_blocks.0.attn.to_q.lora_A.weight, .alpha           SimpleTuner's `--lora_format=comfyui`
    lora_te1.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight        ai-toolkit's CLIP, beside a transformer

The scale is alpha / rank, and 1 without an alpha tensor: ai-toolkit folds it into the factors when it saves LoRA.
"""

from __future__ import annotations

import re
from functools import partial

from adapterline.checkpoints.containers.base import NotMyKindError
from adapterline.checkpoints.dialects.base import Entry, Readable, ScaleRule, Stated, alpha_rule, collect, refusal_of
from adapterline.checkpoints.dialects.diffusers import METADATA_KEY, adapter_metadata, is_diffusers
from adapterline.checkpoints.dialects.dotted import split
from adapterline.checkpoints.scales import from_peft_config, unit
from adapterline.errors import CheckpointError
from adapterline.families import COMPONENT_NAMES

_KEY = re.compile(rf"({'|'.join(sorted(COMPONENT_NAMES, key=len, reverse=True))})\.(.+)")
#: toolkit/lora_special.py keeps sd-scripts' prefix of text encoders, also where it writes PEFT's suffixes.
_TEXT_ENCODER = re.compile(r"lora_te([12]?)\.(.+)")
_ROUNDING = 1e-6
_NUMBERED = {"": "text_encoder", "1": "text_encoder", "2": "text_encoder_2"}


class AiToolkit:
    """Reads files of ai-toolkit, and OneTrainer's of the same kind."""

    name = "ai-toolkit"

    def entries(self, readable: Readable) -> dict[str, Entry]:
        """See `Dialect.entries`."""
        named = [key for key in readable.tensors if _KEY.fullmatch(key)]
        if any(map(_TEXT_ENCODER.fullmatch, readable.tensors)):
            return collect(readable, _entry)
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
        rule = alpha_rule(readable, self.entries(readable), component, without=unit)
        metadata = adapter_metadata(readable)
        if not metadata:
            return rule
        own = {
            key.removeprefix(f"{component}."): value
            for key, value in metadata.items()
            if key.startswith(f"{component}.")
        }
        # SimpleTuner's has no component in front
        return partial(_agreeing, rule, from_peft_config(own or metadata, f"the header's {METADATA_KEY}"))

    def stated(self, readable: Readable, component: str | None) -> Stated | None:
        """None: alpha is in the tensors, or 1."""
        return None


def _agreeing(rule: ScaleRule, stated: ScaleRule, module: str, rank: int | None) -> float:
    scale, other = rule(module, rank), stated(module, rank)
    if abs(scale - other) > _ROUNDING * abs(scale):
        raise CheckpointError(
            f"The scale of {module} is stated twice: {scale:g} by alpha tensors, and {other:g} by the header's "
            f"{METADATA_KEY}.",
            expected="the same",
            remedy="Save the adapter without one of the two.",
        )
    return scale


def _entry(key: str) -> Entry | None:
    if text := _TEXT_ENCODER.fullmatch(key):
        found = split(text[2])
        return Entry(_NUMBERED[text[1]], *found) if found else None
    match = _KEY.fullmatch(key)
    found = split(match[2]) if match else None
    return Entry(match[1], *found) if match and found else None
