"""Krea 2 (krea-ai/krea-2)."""

from __future__ import annotations

from adapterline.families.originals.base import rename, within

_BLOCK = (
    rename("attn.wq", "attn.to_q"),
    rename("attn.wk", "attn.to_k"),
    rename("attn.wv", "attn.to_v"),
    rename("attn.wo", "attn.to_out.0"),
    rename("attn.gate", "attn.to_gate"),
    rename("mlp.gate", "ff.gate"),
    rename("mlp.up", "ff.up"),
    rename("mlp.down", "ff.down"),
)

KREA2 = (
    rename("first", "img_in"),
    rename("tmlp.0", "time_embed.linear_1"),
    rename("tmlp.2", "time_embed.linear_2"),
    rename("tproj.1", "time_mod_proj"),
    rename("txtmlp.1", "txt_in.linear_1"),
    rename("txtmlp.3", "txt_in.linear_2"),
    rename("txtfusion.projector", "text_fusion.projector"),
    *within("txtfusion.layerwise_blocks.{}", "text_fusion.layerwise_blocks.{}", _BLOCK),
    *within("txtfusion.refiner_blocks.{}", "text_fusion.refiner_blocks.{}", _BLOCK),
    *within("blocks.{}", "transformer_blocks.{}", _BLOCK),
    rename("last.linear", "final_layer.linear"),
)
