"""Sana and Sana Sprint (NVlabs/Sana)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adapterline.families.originals.base import Rename, rename, within

_BLOCK = (
    rename("attn.qkv", "attn1.to_q", "attn1.to_k", "attn1.to_v"),
    rename("attn.proj", "attn1.to_out.0"),
    rename("cross_attn.q_linear", "attn2.to_q"),
    rename("cross_attn.kv_linear", "attn2.to_k", "attn2.to_v"),
    rename("cross_attn.proj", "attn2.to_out.0"),
    rename("mlp.inverted_conv.conv", "ff.conv_inverted"),
    rename("mlp.depth_conv.conv", "ff.conv_depth"),
    rename("mlp.point_conv.conv", "ff.conv_point"),
)

_EMBEDDER = (rename("mlp.0", "linear_1"), rename("mlp.2", "linear_2"))

_REST = (
    rename("x_embedder.proj", "patch_embed.proj"),
    rename("t_block.1", "time_embed.linear"),
    rename("y_embedder.y_proj.fc1", "caption_projection.linear_1"),
    rename("y_embedder.y_proj.fc2", "caption_projection.linear_2"),
    *within("blocks.{}", "transformer_blocks.{}", _BLOCK),
    rename("final_layer.linear", "proj_out"),
)


def sana(config: Mapping[str, Any]) -> tuple[Rename, ...]:
    """The table of SanaTransformer2DModel; with `guidance_embeds` it is a Sprint, whose time embedding differs."""
    if config.get("guidance_embeds"):
        return (
            *_REST,
            *within("t_embedder", "time_embed.timestep_embedder", _EMBEDDER),
            *within("cfg_embedder", "time_embed.guidance_embedder", _EMBEDDER),
        )
    return (*_REST, *within("t_embedder", "time_embed.emb.timestep_embedder", _EMBEDDER))
