"""diffusers' keys from before 0.22, when a LoRA was an attention processor with layers of its own.

    unet.down_blocks.0. ... .attn1.processor.to_q_lora.down.weight            save_lora_weights
    down_blocks.0. ... .attn1.processor.to_q_lora.down.weight                 unet.save_attn_procs
    mid_block.attentions.0.processor.add_k_proj_lora.down.weight              UNets with added keys and values
    text_encoder.text_model. ... .self_attn.to_q_lora.down.weight             at first; CLIP calls it q_proj
    text_encoder.text_model. ... .q_proj.lora_linear_layer.down.weight        later, in the same file

All processors, plain, for xFormers and for PyTorch 2, have the same names (diffusers.models.attention_processor of
0.21). A file says no scale: whoever loads it has network_alpha None, which means 1. Where a converter added an alpha
tensor, the scale is alpha / rank (LoRALinearLayer.forward).
"""

from __future__ import annotations

import re

from adapterline.checkpoints.containers.base import NotMyKindError
from adapterline.checkpoints.dialects.base import Entry, Readable, ScaleRule, Stated, alpha_rule, collect
from adapterline.checkpoints.dialects.diffusers import Diffusers
from adapterline.checkpoints.dialects.peft import Peft
from adapterline.checkpoints.scales import from_peft_config, unit
from adapterline.errors import CheckpointError, ConversionError
from adapterline.families import COMPONENT_NAMES

_COMPONENT = rf"(?:({'|'.join(sorted(COMPONENT_NAMES, key=len, reverse=True))})\.)?"
_PARTS = {"down.weight": "a", "up.weight": "b", "alpha": "alpha"}
_PART = "|".join(map(re.escape, _PARTS))
_OLD = re.compile(rf"{_COMPONENT}(.+?)(?:\.processor)?\.(to_q|to_k|to_v|to_out|add_k_proj|add_v_proj)_lora\.({_PART})")
#: What diffusers wrote beside them: the text encoders' later spelling, and that of layers which are no attention.
_NEWER = re.compile(rf"{_COMPONENT}(.+?)\.(?:lora_linear_layer|lora)\.({_PART})")
_IN_CLIP = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
_IN_UNET = {"to_out": "to_out.0"}


class AttentionProcessors:
    """Reads files of diffusers whose LoRA layers are attention processors'."""

    name = "attention-processors"

    def entries(self, readable: Readable) -> dict[str, Entry]:
        """See `Dialect.entries`."""
        if custom := next((key for key in sorted(readable.tensors) if "_custom_diffusion." in key), None):
            raise ConversionError(
                f"{custom!r} is of Custom Diffusion, which trains the weights of keys and values whole.",
                expected="LoRA layers",
                remedy="What changed is only known against the base weights. unet.load_attn_procs loads the file as it "
                "is.",
            )
        if not any(map(_OLD.fullmatch, readable.tensors)):
            raise NotMyKindError("no key is {attention}.processor.to_q_lora.down.weight or the like")
        return collect(readable, _entry)

    def scale_rule(self, readable: Readable, component: str | None) -> ScaleRule | None:
        """See `Dialect.scale_rule`."""
        entries = self.entries(readable)
        stated = self.stated(readable, component)
        if stated is None:
            return alpha_rule(readable, entries, component, without=unit)
        if any(entry.part == "alpha" for entry in entries.values()):
            raise CheckpointError(
                f"The scale is stated twice: by alpha tensors and by {stated.where}.",
                expected="one of them",
                remedy="Save the adapter without one of the two.",
            )
        return from_peft_config(stated.config, stated.where)

    def stated(self, readable: Readable, component: str | None) -> Stated | None:
        """See `Dialect.stated`. diffusers of today reads its metadata in such a file too."""
        newer = Peft() if component is None else Diffusers()
        return newer.stated(readable, component)


def _entry(key: str) -> Entry | None:
    if match := _OLD.fullmatch(key):
        component, attention, layer, part = match.groups()
        names = _IN_CLIP if attention.endswith("self_attn") else _IN_UNET
        return Entry(component, f"{attention}.{names.get(layer, layer)}", _PARTS[part])
    match = _NEWER.fullmatch(key)
    return Entry(match[1], match[2], _PARTS[match[3]]) if match else None
