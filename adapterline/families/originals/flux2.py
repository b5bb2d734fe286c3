"""FLUX.2 (black-forest-labs/flux2)."""

from __future__ import annotations

from adapterline.families.originals.base import rename, within

_DOUBLE = (
    rename("img_attn.qkv", "attn.to_q", "attn.to_k", "attn.to_v"),
    rename("img_attn.proj", "attn.to_out.0"),
    rename("img_mlp.0", "ff.linear_in"),
    rename("img_mlp.2", "ff.linear_out"),
    rename("txt_attn.qkv", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    rename("txt_attn.proj", "attn.to_add_out"),
    rename("txt_mlp.0", "ff_context.linear_in"),
    rename("txt_mlp.2", "ff_context.linear_out"),
)

# Unlike in FLUX.1, diffusers kept the single blocks' layers fused.
_SINGLE = (rename("linear1", "attn.to_qkv_mlp_proj"), rename("linear2", "attn.to_out"))

_EMBEDDER = (rename("in_layer", "linear_1"), rename("out_layer", "linear_2"))

FLUX2 = (
    rename("img_in", "x_embedder"),
    rename("txt_in", "context_embedder"),
    *within("time_in", "time_guidance_embed.timestep_embedder", _EMBEDDER),
    *within("guidance_in", "time_guidance_embed.guidance_embedder", _EMBEDDER),
    rename("double_stream_modulation_img.lin", "double_stream_modulation_img.linear"),
    rename("double_stream_modulation_txt.lin", "double_stream_modulation_txt.linear"),
    rename("single_stream_modulation.lin", "single_stream_modulation.linear"),
    *within("double_blocks.{}", "transformer_blocks.{}", _DOUBLE),
    *within("single_blocks.{}", "single_transformer_blocks.{}", _SINGLE),
    rename("final_layer.adaLN_modulation.1", "norm_out.linear", swapped=True),
    rename("final_layer.linear", "proj_out"),
)
