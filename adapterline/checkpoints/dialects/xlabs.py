"""XLabs' keys: LoRA for FLUX.1 by x-flux, as processors of the original implementation's blocks.

    double_blocks.0.processor.qkv_lora1.down.weight     img_attn.qkv      qkv_lora2: txt_attn.qkv
    double_blocks.0.processor.proj_lora1.up.weight      img_attn.proj     proj_lora2: txt_attn.proj
    single_blocks.0.processor.qkv_lora.down.weight      the q, k and v rows of linear1, and not those of its MLP
    single_blocks.0.processor.proj_lora.up.weight       linear2, with all its inputs: attention and MLP

`diffusion_model.` may come first. Nothing says a scale: x-flux's processors have network_alpha None and lora_weight 1
unless told otherwise, and diffusers (`_convert_xlabs_flux_lora_to_diffusers`) takes it for 1 too.
"""

from __future__ import annotations

import re
from typing import Final

from adapterline.checkpoints.containers.base import NotMyKindError
from adapterline.checkpoints.dialects.base import DENOISER, Entry, Readable, ScaleRule, Stated, collect
from adapterline.checkpoints.scales import unit
from adapterline.errors import CheckpointError, ConversionError

_LAYERS: Final = {
    "double.qkv_lora1": "img_attn.qkv", "double.proj_lora1": "img_attn.proj",
    "double.qkv_lora2": "txt_attn.qkv", "double.proj_lora2": "txt_attn.proj",
    "single.qkv_lora": "linear1.qkv", "single.proj_lora": "linear2",
}  # fmt: skip
_PARTS: Final = {"down": "a", "up": "b"}
_BLOCK = r"(?:(?:model\.)?diffusion_model\.)?((double|single)_blocks\.\d+)\.processor\."
_KEY = re.compile(rf"{_BLOCK}(\w+)\.(down|up)\.weight")
_MINE = re.compile(_BLOCK)


class XLabs:
    """Reads FLUX LoRA files of x-flux."""

    name = "xlabs"

    def entries(self, readable: Readable) -> dict[str, Entry]:
        """See `Dialect.entries`."""
        mine = sorted(filter(_MINE.match, readable.tensors))
        if not mine:
            raise NotMyKindError("no key is double_blocks.0.processor.… or single_blocks.0.processor.…")
        if image := next((key for key in mine if ".ip_adapter_" in key), None):
            raise ConversionError(
                f"{image!r} is of an IP-Adapter: layers of its own, which read the embedding of an image.",
                expected="LoRA layers, which change those of the model",
            )
        return collect(readable, _entry)

    def scale_rule(self, readable: Readable, component: str | None) -> ScaleRule | None:
        """See `Dialect.scale_rule`."""
        if readable.configs:
            raise CheckpointError(
                "The keys are XLabs', which means scale 1, and there is an adapter_config.json too.",
                expected="no other statement of the scale",
                remedy="Export the file alone, without --adapter-config.",
            )
        return unit

    def stated(self, readable: Readable, component: str | None) -> Stated | None:
        """None: the format has no configuration."""
        return None


def _entry(key: str) -> Entry | None:
    match = _KEY.fullmatch(key)
    layer = _LAYERS.get(f"{match[2]}.{match[3]}") if match else None
    return Entry(DENOISER, f"{match[1]}.{layer}", _PARTS[match[4]]) if match and layer else None
