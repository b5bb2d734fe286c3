"""Cosmos 1.0, 2.0 and 2.5 (nvidia-cosmos), and Anima, which is a Cosmos 2.0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adapterline.families.originals.base import Rename, rename, within

_TIME = (
    rename("t_embedder.1.linear_1", "time_embed.t_embedder.linear_1"),
    rename("t_embedder.1.linear_2", "time_embed.t_embedder.linear_2"),
    rename("x_embedder.proj.1", "patch_embed.proj"),
    rename("final_layer.linear", "proj_out"),
)

_MODULATION = (rename("1", "linear_1"), rename("2", "linear_2"))

_ATTENTION_1 = (
    rename("to_q.0", "to_q"),
    rename("to_k.0", "to_k"),
    rename("to_v.0", "to_v"),
    rename("to_out.0", "to_out.0"),
)

_BLOCK_1 = (
    *within("blocks.0.block.attn", "attn1", _ATTENTION_1),
    *within("blocks.1.block.attn", "attn2", _ATTENTION_1),
    rename("blocks.2.block.layer1", "ff.net.0.proj"),
    rename("blocks.2.block.layer2", "ff.net.2"),
    *within("blocks.0.adaLN_modulation", "norm1", _MODULATION),
    *within("blocks.1.adaLN_modulation", "norm2", _MODULATION),
    *within("blocks.2.adaLN_modulation", "norm3", _MODULATION),
)

COSMOS_1 = (
    *_TIME,
    *within("blocks.block{}", "transformer_blocks.{}", _BLOCK_1),
    *within("final_layer.adaLN_modulation", "norm_out", _MODULATION),
)

_ATTENTION_2 = (
    rename("q_proj", "to_q"),
    rename("k_proj", "to_k"),
    rename("v_proj", "to_v"),
    rename("output_proj", "to_out.0"),
)

_BLOCK_2 = (
    *within("self_attn", "attn1", _ATTENTION_2),
    *within("cross_attn", "attn2", _ATTENTION_2),
    rename("mlp.layer1", "ff.net.0.proj"),
    rename("mlp.layer2", "ff.net.2"),
    *within("adaln_modulation_self_attn", "norm1", _MODULATION),
    *within("adaln_modulation_cross_attn", "norm2", _MODULATION),
    *within("adaln_modulation_mlp", "norm3", _MODULATION),
)

COSMOS_2 = (
    *_TIME,
    *within("blocks.{}", "transformer_blocks.{}", _BLOCK_2),
    *within("final_layer.adaln_modulation", "norm_out", _MODULATION),
)


def cosmos(config: Mapping[str, Any]) -> tuple[Rename, ...]:
    """The table of CosmosTransformer3DModel: of its generations, only 1.0 learns its position embedding."""
    return COSMOS_1 if config.get("extra_pos_embed_type", "learnable") else COSMOS_2
