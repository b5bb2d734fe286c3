"""Mochi 1 (genmoai/mochi)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adapterline.families.originals.base import Rename, rename, within

_BLOCK = (
    rename("mod_x", "norm1.linear"),
    rename("attn.qkv_x", "attn1.to_q", "attn1.to_k", "attn1.to_v"),
    rename("attn.proj_x", "attn1.to_out.0"),
    rename("attn.qkv_y", "attn1.add_q_proj", "attn1.add_k_proj", "attn1.add_v_proj"),
    rename("attn.proj_y", "attn1.to_add_out"),
    # Gated feed-forward: the original gates with the first half of the rows, diffusers with the second.
    rename("mlp_x.w1", "ff.net.0.proj", swapped=True),
    rename("mlp_x.w2", "ff.net.2"),
    rename("mlp_y.w1", "ff_context.net.0.proj", swapped=True),
    rename("mlp_y.w2", "ff_context.net.2"),
)

_REST = (
    rename("x_embedder.proj", "patch_embed.proj"),
    rename("t_embedder.mlp.0", "time_embed.timestep_embedder.linear_1"),
    rename("t_embedder.mlp.2", "time_embed.timestep_embedder.linear_2"),
    rename("t5_y_embedder.to_kv", "time_embed.pooler.to_kv"),
    rename("t5_y_embedder.to_q", "time_embed.pooler.to_q"),
    rename("t5_y_embedder.to_out", "time_embed.pooler.to_out"),
    rename("t5_yproj", "time_embed.caption_proj"),
    *within("blocks.{}", "transformer_blocks.{}", _BLOCK),
    rename("final_layer.mod", "norm_out.linear", swapped=True),
    rename("final_layer.linear", "proj_out"),
)


def mochi(config: Mapping[str, Any]) -> tuple[Rename, ...]:
    """The table of MochiTransformer3DModel; `num_layers` says which block is the last."""
    last = config.get("num_layers", 48) - 1
    # The last block only scales the text, and diffusers calls the layer that computes the scale otherwise.
    contexts = (
        rename(f"blocks.{block}.mod_y", f"transformer_blocks.{block}.norm1_context.{name}")
        for block in range(last + 1)
        for name in ("linear_1" if block == last else "linear",)
    )
    return (*_REST, *contexts)
