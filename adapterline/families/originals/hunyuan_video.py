"""HunyuanVideo and HunyuanVideo 1.5 (Tencent-Hunyuan), as their authors and musubi-tuner name them.

ComfyUI renamed the modules once more after FLUX's (`img_attn.qkv`), fused those of 1.5, and maps the authors' names to
its own on loading; adapters name its own (comfy/ldm/hunyuan_video/model.py).
"""

from __future__ import annotations

from adapterline.families.originals.base import rename, within

_FEED_FORWARD = (rename("fc1", "net.0.proj"), rename("fc2", "net.2"))

_DOUBLE = (
    rename("img_mod.linear", "norm1.linear"),
    rename("img_attn_qkv", "attn.to_q", "attn.to_k", "attn.to_v"),
    rename("img_attn_proj", "attn.to_out.0"),
    *within("img_mlp", "ff", _FEED_FORWARD),
    rename("txt_mod.linear", "norm1_context.linear"),
    rename("txt_attn_qkv", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    rename("txt_attn_proj", "attn.to_add_out"),
    *within("txt_mlp", "ff_context", _FEED_FORWARD),
)

_SINGLE = (
    rename("linear1", "attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    rename("linear2", "proj_out"),
    rename("modulation.linear", "norm.linear"),
)

_REFINER = (
    rename("self_attn_qkv", "attn.to_q", "attn.to_k", "attn.to_v"),
    rename("self_attn_proj", "attn.to_out.0"),
    *within("mlp", "ff", _FEED_FORWARD),
    # Two gates, of attention and of the feed-forward, in the same order in both.
    rename("adaLN_modulation.1", "norm_out.linear"),
)

_TIMESTEP = (rename("mlp.0", "linear_1"), rename("mlp.2", "linear_2"))

_TEXT = (
    rename("input_embedder", "proj_in"),
    *within("t_embedder", "time_text_embed.timestep_embedder", _TIMESTEP),
    rename("c_embedder.linear_1", "time_text_embed.text_embedder.linear_1"),
    rename("c_embedder.linear_2", "time_text_embed.text_embedder.linear_2"),
    *within("individual_token_refiner.blocks.{}", "token_refiner.refiner_blocks.{}", _REFINER),
)

HUNYUAN_VIDEO = (
    rename("img_in.proj", "x_embedder.proj"),
    *within("txt_in", "context_embedder", _TEXT),
    *within("time_in", "time_text_embed.timestep_embedder", _TIMESTEP),
    *within("guidance_in", "time_text_embed.guidance_embedder", _TIMESTEP),
    rename("vector_in.in_layer", "time_text_embed.text_embedder.linear_1"),
    rename("vector_in.out_layer", "time_text_embed.text_embedder.linear_2"),
    *within("double_blocks.{}", "transformer_blocks.{}", _DOUBLE),
    *within("single_blocks.{}", "single_transformer_blocks.{}", _SINGLE),
    rename("final_layer.adaLN_modulation.1", "norm_out.linear", swapped=True),
    rename("final_layer.linear", "proj_out"),
)

# Queries, keys and values are layers of their own here, and there are no single blocks.
_DOUBLE_15 = (
    rename("img_mod.linear", "norm1.linear"),
    rename("img_attn_q", "attn.to_q"),
    rename("img_attn_k", "attn.to_k"),
    rename("img_attn_v", "attn.to_v"),
    rename("img_attn_proj", "attn.to_out.0"),
    *within("img_mlp", "ff", _FEED_FORWARD),
    rename("txt_mod.linear", "norm1_context.linear"),
    rename("txt_attn_q", "attn.add_q_proj"),
    rename("txt_attn_k", "attn.add_k_proj"),
    rename("txt_attn_v", "attn.add_v_proj"),
    rename("txt_attn_proj", "attn.to_add_out"),
    *within("txt_mlp", "ff_context", _FEED_FORWARD),
)

HUNYUAN_VIDEO_15 = (
    rename("img_in.proj", "x_embedder.proj"),
    *within("txt_in", "context_embedder", _TEXT),
    *(rename(f"byt5_in.fc{layer}", f"context_embedder_2.linear_{layer}") for layer in (1, 2, 3)),
    rename("vision_in.proj.1", "image_embedder.linear_1"),
    rename("vision_in.proj.3", "image_embedder.linear_2"),
    *within("time_in", "time_embed.timestep_embedder", _TIMESTEP),
    *within("time_r_in", "time_embed.timestep_embedder_r", _TIMESTEP),
    *within("double_blocks.{}", "transformer_blocks.{}", _DOUBLE_15),
    rename("final_layer.adaLN_modulation.1", "norm_out.linear", swapped=True),
    rename("final_layer.linear", "proj_out"),
)

_COMFY_FEED_FORWARD = (rename("0", "net.0.proj"), rename("2", "net.2"))

_COMFY_DOUBLE = (
    rename("img_mod.lin", "norm1.linear"),
    rename("img_attn.qkv", "attn.to_q", "attn.to_k", "attn.to_v"),
    rename("img_attn.proj", "attn.to_out.0"),
    *within("img_mlp", "ff", _COMFY_FEED_FORWARD),
    rename("txt_mod.lin", "norm1_context.linear"),
    rename("txt_attn.qkv", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    rename("txt_attn.proj", "attn.to_add_out"),
    *within("txt_mlp", "ff_context", _COMFY_FEED_FORWARD),
)

_COMFY_SINGLE = (*_SINGLE[:2], rename("modulation.lin", "norm.linear"))

_COMFY_REFINER = (
    rename("self_attn.qkv", "attn.to_q", "attn.to_k", "attn.to_v"),
    rename("self_attn.proj", "attn.to_out.0"),
    *within("mlp", "ff", _COMFY_FEED_FORWARD),
    _REFINER[-1],
)

_COMFY_EMBEDDER = (rename("in_layer", "linear_1"), rename("out_layer", "linear_2"))

_COMFY_TEXT = (
    rename("input_embedder", "proj_in"),
    *within("t_embedder", "time_text_embed.timestep_embedder", _COMFY_EMBEDDER),
    *within("c_embedder", "time_text_embed.text_embedder", _COMFY_EMBEDDER),
    *within("individual_token_refiner.blocks.{}", "token_refiner.refiner_blocks.{}", _COMFY_REFINER),
)

COMFY_HUNYUAN_VIDEO = (
    rename("img_in.proj", "x_embedder.proj"),
    *within("txt_in", "context_embedder", _COMFY_TEXT),
    *within("time_in", "time_text_embed.timestep_embedder", _COMFY_EMBEDDER),
    *within("vector_in", "time_text_embed.text_embedder", _COMFY_EMBEDDER),
    *within("guidance_in", "time_text_embed.guidance_embedder", _COMFY_EMBEDDER),
    *within("double_blocks.{}", "transformer_blocks.{}", _COMFY_DOUBLE),
    *within("single_blocks.{}", "single_transformer_blocks.{}", _COMFY_SINGLE),
    rename("final_layer.adaLN_modulation.1", "norm_out.linear", swapped=True),
    rename("final_layer.linear", "proj_out"),
)

# Of 1.5, the blocks alone are known for certain: musubi-tuner's convert_hunyuan_video_1_5_lora_to_comfy.py.
COMFY_HUNYUAN_VIDEO_15 = within("double_blocks.{}", "transformer_blocks.{}", _COMFY_DOUBLE)
