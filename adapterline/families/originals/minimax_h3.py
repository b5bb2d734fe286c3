"""MiniMax-H3, as the reference implementation and ComfyUI hold it in memory.

The shards on disk interleave the rows of `qkv_proj` by head, and DiffSynth-Studio trains on them as they lie: its files
(PEFT's `.default.` in the keys) need the rows put in order before this table holds.
"""

from __future__ import annotations

from adapterline.families.originals.base import rename, within

_BLOCK = (
    rename("attn.qkv_proj", "attn.to_q", "attn.to_k", "attn.to_v"),
    rename("attn.out_proj", "attn.to_out.0"),
    # Gated feed-forward: the original gates with the first half of the rows, diffusers with the second.
    rename("mlp.fc1", "ff.net.0.proj", swapped=True),
    rename("mlp.fc2", "ff.net.2"),
)

MINIMAX_H3 = (
    rename("video_patch_proj", "proj_in"),
    rename("audio_patch_proj", "audio_proj_in"),
    rename("condition_proj", "context_embedder"),
    rename("time_embedder.proj_in", "time_embedder.linear_1"),
    rename("time_embedder.proj_out", "time_embedder.linear_2"),
    *within("token_refiner.blocks.{}", "token_refiner.refiner_blocks.{}", _BLOCK),
    *within("blocks.{}", "transformer_blocks.{}", _BLOCK),
    rename("blocks.{}.adaln_proj.linear", "transformer_blocks.{}.adaln_proj.linear"),
    rename("final_layer.adaln_proj.linear", "norm_out.linear"),
    rename("final_layer.video_out", "proj_out"),
    rename("final_layer.audio_out", "audio_proj_out"),
)
