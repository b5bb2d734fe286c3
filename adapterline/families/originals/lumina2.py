"""Lumina-Image 2.0 (Alpha-VLLM/Lumina-Image-2.0)."""

from __future__ import annotations

from adapterline.families.originals.base import rename, within

_BLOCK = (
    # Grouped queries: the fused rows are those of 24 query, 8 key and 8 value heads.
    rename("attention.qkv", "attn.to_q", "attn.to_k", "attn.to_v"),
    rename("attention.out", "attn.to_out.0"),
    rename("feed_forward.w1", "feed_forward.linear_1"),
    rename("feed_forward.w2", "feed_forward.linear_2"),
    rename("feed_forward.w3", "feed_forward.linear_3"),
)

_MODULATED = (*_BLOCK, rename("adaLN_modulation.1", "norm1.linear"))

LUMINA2 = (
    rename("t_embedder.mlp.0", "time_caption_embed.timestep_embedder.linear_1"),
    rename("t_embedder.mlp.2", "time_caption_embed.timestep_embedder.linear_2"),
    rename("cap_embedder.1", "time_caption_embed.caption_embedder.1"),
    *within("noise_refiner.{}", "noise_refiner.{}", _MODULATED),
    *within("context_refiner.{}", "context_refiner.{}", _BLOCK),
    *within("layers.{}", "layers.{}", _MODULATED),
    # The final modulation is a scale alone, so there are no halves to swap.
    rename("final_layer.adaLN_modulation.1", "norm_out.linear_1"),
    rename("final_layer.linear", "norm_out.linear_2"),
)
