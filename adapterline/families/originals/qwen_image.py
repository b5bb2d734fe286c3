"""Qwen-Image 2.1, as ComfyUI holds it. The names of Qwen-Image itself are diffusers' own everywhere."""

from __future__ import annotations

from adapterline.families.originals.base import rename

QWEN_IMAGE_21 = (
    rename(
        "transformer_blocks.{}.img_mlp.gate_up",
        "transformer_blocks.{}.img_mlp.gate_layer",
        "transformer_blocks.{}.img_mlp.proj",
    ),
)
