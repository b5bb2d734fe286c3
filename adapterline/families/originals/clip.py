"""The text encoders of OpenCLIP: those of Stable Diffusion 2.x, and the larger one of SDXL and SD3.

The CLIP of Stable Diffusion 1.x is used through transformers by its original too, so its own names are diffusers'.
"""

from __future__ import annotations

from adapterline.families.originals.base import rename, within

_BLOCK = (
    rename("attn.in_proj", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    rename("attn.out_proj", "self_attn.out_proj"),
    rename("mlp.c_fc", "mlp.fc1"),
    rename("mlp.c_proj", "mlp.fc2"),
)

# `text_projection` is absent: in OpenCLIP it is a bare matrix, and transposed.
OPEN_CLIP = within("transformer.resblocks.{}", "encoder.layers.{}", _BLOCK)
