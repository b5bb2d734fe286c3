"""The names that a model's modules have in its original implementation, a file a family.

Names are dotted module paths without the prefix that a file puts before them (`diffusion_model.`, `lora_unet_`);
trainers that flatten dots to underscores flatten these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from adapterline.families.originals.ace_step import ACE_STEP
from adapterline.families.originals.auraflow import AURAFLOW
from adapterline.families.originals.base import Rename, rename
from adapterline.families.originals.clip import OPEN_CLIP
from adapterline.families.originals.cosmos import cosmos
from adapterline.families.originals.flux import CHROMA, FLUX, PARTS
from adapterline.families.originals.flux2 import FLUX2
from adapterline.families.originals.flux3 import FLUX3
from adapterline.families.originals.hunyuan_video import (
    COMFY_HUNYUAN_VIDEO,
    COMFY_HUNYUAN_VIDEO_15,
    HUNYUAN_VIDEO,
    HUNYUAN_VIDEO_15,
)
from adapterline.families.originals.ideogram4 import IDEOGRAM4
from adapterline.families.originals.krea2 import KREA2
from adapterline.families.originals.ltx2 import LTX2, LTX2_CONNECTORS
from adapterline.families.originals.ltx_video import LTX_VIDEO
from adapterline.families.originals.lumina2 import LUMINA2
from adapterline.families.originals.minimax_h3 import MINIMAX_H3
from adapterline.families.originals.mochi import mochi
from adapterline.families.originals.qwen_image import QWEN_IMAGE_21
from adapterline.families.originals.sana import sana
from adapterline.families.originals.sd3 import sd3
from adapterline.families.originals.unet import unet
from adapterline.families.originals.wan import WAN, WAN_ANIMATE, WAN_ANIMATE_2, WAN_VACE
from adapterline.families.originals.z_image import Z_IMAGE

__all__ = ["ORIGINALS", "Rename", "comfy_renames", "parts", "rename", "renames"]

#: By model class; a function where the names depend on the configuration.
#:
#: Absent because the original names are diffusers' own: Ernie-Image, HiDream-I1, Kandinsky 5, Qwen-Image, Bria, T5.
#: FramePack is absent although HunyuanVideo's adapters fit it: it was written with diffusers' names.
#: The motion modules of AnimateDiff, Sana Video and Kandinsky 3 are absent for want of a map that is known for certain.
#: CogVideoX, ConsisID and CogView4 are absent because their originals (SAT) have an adapter format of their own, and
#: every trainer that writes LoRA names diffusers' modules.
ORIGINALS: Mapping[str, tuple[Rename, ...] | Callable[[Mapping[str, Any]], tuple[Rename, ...]]] = {
    "AceStepTransformer1DModel": ACE_STEP,
    "AnyFlowFARTransformer3DModel": WAN,
    "AnyFlowTransformer3DModel": WAN,
    "AuraFlowTransformer2DModel": AURAFLOW,
    "CLIPTextModel": OPEN_CLIP,
    "CLIPTextModelWithProjection": OPEN_CLIP,
    "ChromaTransformer2DModel": CHROMA,
    "ChronoEditTransformer3DModel": WAN,
    "CosmosTransformer3DModel": cosmos,
    "Flux2Transformer2DModel": FLUX2,
    "Flux3Transformer2DModel": FLUX3,
    "FluxTransformer2DModel": FLUX,
    "HeliosTransformer3DModel": WAN,
    "HunyuanVideo15Transformer3DModel": HUNYUAN_VIDEO_15,
    "HunyuanVideoTransformer3DModel": HUNYUAN_VIDEO,
    "Ideogram4Transformer2DModel": IDEOGRAM4,
    "Krea2Transformer2DModel": KREA2,
    "LTX2TextConnectors": LTX2_CONNECTORS,
    "LTX2VideoTransformer3DModel": LTX2,
    "LTXVideoTransformer3DModel": LTX_VIDEO,
    "Lumina2Transformer2DModel": LUMINA2,
    "MiniMaxH3Transformer3DModel": MINIMAX_H3,
    "MochiTransformer3DModel": mochi,
    "QwenImage21Transformer2DModel": QWEN_IMAGE_21,
    "SD3Transformer2DModel": sd3,
    "SanaTransformer2DModel": sana,
    "SkyReelsV2Transformer3DModel": WAN,
    "UNet2DConditionModel": unet,
    # Takes the adapters of Stable Diffusion; of its motion modules the table says nothing.
    "UNetMotionModel": unet,
    "WanAnimate2Transformer3DModel": WAN_ANIMATE_2,
    "WanAnimateTransformer3DModel": WAN_ANIMATE,
    "WanTransformer3DModel": WAN,
    "WanVACETransformer3DModel": WAN_VACE,
    "ZImageTransformer2DModel": Z_IMAGE,
}


def renames(model_class: str, config: Mapping[str, Any]) -> tuple[Rename, ...]:
    """What this model's modules are called in its original implementation.

    Module names are those of the model class, of a CLIP text encoder without `text_model.`. A module that no entry
    names has the same name in the original, or only diffusers has it. Empty for a class whose original names are
    diffusers' own. An entry may name modules that this configuration does not have.
    """
    table = ORIGINALS.get(model_class, ())
    return table(config) if callable(table) else table


#: By model class, where ComfyUI gave the original's modules names of its own.
COMFY: Mapping[str, tuple[Rename, ...]] = {
    "HunyuanVideo15Transformer3DModel": COMFY_HUNYUAN_VIDEO_15,
    "HunyuanVideoTransformer3DModel": COMFY_HUNYUAN_VIDEO,
}


def comfy_renames(model_class: str, config: Mapping[str, Any]) -> tuple[Rename, ...]:
    """What this model's modules are called in ComfyUI, where that is neither the original's name nor diffusers'."""
    return COMFY.get(model_class, ())


def parts(model_class: str) -> tuple[Rename, ...]:
    """Names of some rows of a fused layer, by which a trainer adapts those alone."""
    return PARTS if model_class == "FluxTransformer2DModel" else ()
