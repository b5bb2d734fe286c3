"""Wan 2.1 and 2.2 (Wan-Video/Wan2.1), and what was built on them: VACE, Animate, SkyReels V2, ChronoEdit, Helios."""

from __future__ import annotations

from adapterline.families.originals.base import rename, within

_ATTENTION = (rename("q", "to_q"), rename("k", "to_k"), rename("v", "to_v"), rename("o", "to_out.0"))

_BLOCK = (
    *within("self_attn", "attn1", _ATTENTION),
    *within("cross_attn", "attn2", _ATTENTION),
    rename("cross_attn.k_img", "attn2.add_k_proj"),
    rename("cross_attn.v_img", "attn2.add_v_proj"),
    rename("ffn.0", "ffn.net.0.proj"),
    rename("ffn.2", "ffn.net.2"),
)

WAN = (
    rename("text_embedding.0", "condition_embedder.text_embedder.linear_1"),
    rename("text_embedding.2", "condition_embedder.text_embedder.linear_2"),
    rename("time_embedding.0", "condition_embedder.time_embedder.linear_1"),
    rename("time_embedding.2", "condition_embedder.time_embedder.linear_2"),
    rename("time_projection.1", "condition_embedder.time_proj"),
    rename("img_emb.proj.1", "condition_embedder.image_embedder.ff.net.0.proj"),
    rename("img_emb.proj.3", "condition_embedder.image_embedder.ff.net.2"),
    *within("blocks.{}", "blocks.{}", _BLOCK),
    rename("head.head", "proj_out"),
)

WAN_VACE = (
    *WAN,
    *within("vace_blocks.{}", "vace_blocks.{}", _BLOCK),
    rename("vace_blocks.{}.before_proj", "vace_blocks.{}.proj_in"),
    rename("vace_blocks.{}.after_proj", "vace_blocks.{}.proj_out"),
)

# The motion encoder is absent: its layers are neither Linear nor Conv2d, so no trainer adapts them.
WAN_ANIMATE = (
    *WAN,
    rename("face_encoder.conv1_local.conv", "face_encoder.conv1_local"),
    rename("face_encoder.conv2.conv", "face_encoder.conv2"),
    rename("face_encoder.conv3.conv", "face_encoder.conv3"),
    rename("face_adapter.fuser_blocks.{}.linear1_q", "face_adapter.{}.to_q"),
    rename("face_adapter.fuser_blocks.{}.linear1_kv", "face_adapter.{}.to_k", "face_adapter.{}.to_v"),
    rename("face_adapter.fuser_blocks.{}.linear2", "face_adapter.{}.to_out"),
)

# Its modules kept their names but for those of the attentions; the original wraps each block in another module.
WAN_ANIMATE_2 = (
    *within("blocks.{}.block.self_attn", "blocks.{}.self_attn", _ATTENTION),
    *within("blocks.{}.block.cross_attn", "blocks.{}.cross_attn", _ATTENTION),
    rename("blocks.{}.block.cross_attn.k_img", "blocks.{}.cross_attn.add_k_proj"),
    rename("blocks.{}.block.cross_attn.v_img", "blocks.{}.cross_attn.add_v_proj"),
    rename("blocks.{}.block.ffn.0", "blocks.{}.ffn.0"),
    rename("blocks.{}.block.ffn.2", "blocks.{}.ffn.2"),
)
