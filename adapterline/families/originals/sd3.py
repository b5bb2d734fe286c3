"""Stable Diffusion 3 and 3.5 (Stability-AI/sd3.5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adapterline.families.originals.base import Rename, rename, within

_BLOCK = (
    rename("x_block.attn.qkv", "attn.to_q", "attn.to_k", "attn.to_v"),
    rename("x_block.attn.proj", "attn.to_out.0"),
    rename("x_block.attn2.qkv", "attn2.to_q", "attn2.to_k", "attn2.to_v"),
    rename("x_block.attn2.proj", "attn2.to_out.0"),
    rename("x_block.mlp.fc1", "ff.net.0.proj"),
    rename("x_block.mlp.fc2", "ff.net.2"),
    rename("x_block.adaLN_modulation.1", "norm1.linear"),
    rename("context_block.attn.qkv", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    rename("context_block.attn.proj", "attn.to_add_out"),
    rename("context_block.mlp.fc1", "ff_context.net.0.proj"),
    rename("context_block.mlp.fc2", "ff_context.net.2"),
)

_EMBEDDER = (rename("mlp.0", "linear_1"), rename("mlp.2", "linear_2"))

_REST = (
    rename("x_embedder.proj", "pos_embed.proj"),
    *within("t_embedder", "time_text_embed.timestep_embedder", _EMBEDDER),
    *within("y_embedder", "time_text_embed.text_embedder", _EMBEDDER),
    *within("joint_blocks.{}", "transformer_blocks.{}", _BLOCK),
    rename("final_layer.adaLN_modulation.1", "norm_out.linear", swapped=True),
    rename("final_layer.linear", "proj_out"),
)


def sd3(config: Mapping[str, Any]) -> tuple[Rename, ...]:
    """The table of SD3Transformer2DModel; `num_layers` says which block is the last."""
    last = config.get("num_layers", 18) - 1
    # The last block has no use for the text any more: of its modulation, shift and scale of the one norm are left, and
    # those are what diffusers swaps.
    contexts = (
        rename(
            f"joint_blocks.{block}.context_block.adaLN_modulation.1",
            f"transformer_blocks.{block}.norm1_context.linear",
            swapped=block == last,
        )
        for block in range(last + 1)
    )
    return (*_REST, *contexts)
