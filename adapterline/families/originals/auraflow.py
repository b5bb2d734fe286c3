"""AuraFlow (cloneofsimo/minRF)."""

from __future__ import annotations

from adapterline.families.originals.base import rename, within

_FEED_FORWARD = (rename("c_fc1", "linear_1"), rename("c_fc2", "linear_2"), rename("c_proj", "out_projection"))

_DOUBLE = (
    rename("modX.1", "norm1.linear"),
    rename("modC.1", "norm1_context.linear"),
    # 1 is the text here, 2 the image; in the single blocks 1 is all there is.
    rename("attn.w2q", "attn.to_q"),
    rename("attn.w2k", "attn.to_k"),
    rename("attn.w2v", "attn.to_v"),
    rename("attn.w2o", "attn.to_out.0"),
    rename("attn.w1q", "attn.add_q_proj"),
    rename("attn.w1k", "attn.add_k_proj"),
    rename("attn.w1v", "attn.add_v_proj"),
    rename("attn.w1o", "attn.to_add_out"),
    *within("mlpX", "ff", _FEED_FORWARD),
    *within("mlpC", "ff_context", _FEED_FORWARD),
)

_SINGLE = (
    rename("modCX.1", "norm1.linear"),
    rename("attn.w1q", "attn.to_q"),
    rename("attn.w1k", "attn.to_k"),
    rename("attn.w1v", "attn.to_v"),
    rename("attn.w1o", "attn.to_out.0"),
    *within("mlp", "ff", _FEED_FORWARD),
)

AURAFLOW = (
    rename("init_x_linear", "pos_embed.proj"),
    rename("cond_seq_linear", "context_embedder"),
    rename("t_embedder.mlp.0", "time_step_proj.linear_1"),
    rename("t_embedder.mlp.2", "time_step_proj.linear_2"),
    *within("double_layers.{}", "joint_transformer_blocks.{}", _DOUBLE),
    *within("single_layers.{}", "single_transformer_blocks.{}", _SINGLE),
    rename("modF.1", "norm_out.linear", swapped=True),
    rename("final_linear", "proj_out"),
)
