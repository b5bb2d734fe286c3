"""FLUX.1 (black-forest-labs/flux) and Chroma, which keeps its blocks and replaces their modulation."""

from __future__ import annotations

from adapterline.families.originals.base import rename, within

_DOUBLE = (
    rename("img_attn.qkv", "attn.to_q", "attn.to_k", "attn.to_v"),
    rename("img_attn.proj", "attn.to_out.0"),
    rename("img_mlp.0", "ff.net.0.proj"),
    rename("img_mlp.2", "ff.net.2"),
    rename("txt_attn.qkv", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    rename("txt_attn.proj", "attn.to_add_out"),
    rename("txt_mlp.0", "ff_context.net.0.proj"),
    rename("txt_mlp.2", "ff_context.net.2"),
)

_SINGLE = (
    rename("linear1", "attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    rename("linear2", "proj_out"),
)

#: x-flux's LoRA of a single block acts on the rows of q, k and v of its `linear1` alone.
PARTS = (
    rename(
        "single_blocks.{}.linear1.qkv",
        *(f"single_transformer_blocks.{{}}.attn.{name}" for name in ("to_q", "to_k", "to_v")),
    ),
)

_SHARED = (
    rename("img_in", "x_embedder"),
    rename("txt_in", "context_embedder"),
    *within("double_blocks.{}", "transformer_blocks.{}", _DOUBLE),
    *within("single_blocks.{}", "single_transformer_blocks.{}", _SINGLE),
    rename("final_layer.linear", "proj_out"),
)

_EMBEDDER = (rename("in_layer", "linear_1"), rename("out_layer", "linear_2"))

FLUX = (
    *_SHARED,
    *within("time_in", "time_text_embed.timestep_embedder", _EMBEDDER),
    *within("vector_in", "time_text_embed.text_embedder", _EMBEDDER),
    *within("guidance_in", "time_text_embed.guidance_embedder", _EMBEDDER),
    rename("double_blocks.{}.img_mod.lin", "transformer_blocks.{}.norm1.linear"),
    rename("double_blocks.{}.txt_mod.lin", "transformer_blocks.{}.norm1_context.linear"),
    rename("single_blocks.{}.modulation.lin", "single_transformer_blocks.{}.norm.linear"),
    rename("final_layer.adaLN_modulation.1", "norm_out.linear", swapped=True),
)

# Chroma's modulation comes out of `distilled_guidance_layer` for all blocks at once; none has a layer for it.
CHROMA = (*_SHARED, *within("distilled_guidance_layer.layers.{}", "distilled_guidance_layer.layers.{}", _EMBEDDER))
