"""LTX-2 and 2.3 (Lightricks/LTX-2): the transformer, and the connectors between it and its text encoder."""

from __future__ import annotations

from adapterline.families.originals.base import rename
from adapterline.families.originals.ltx_video import ADALN

_NORMS = {
    "adaln_single": "time_embed",
    "audio_adaln_single": "audio_time_embed",
    "prompt_adaln_single": "prompt_adaln",
    "audio_prompt_adaln_single": "audio_prompt_adaln",
    "av_ca_video_scale_shift_adaln_single": "av_cross_attn_video_scale_shift",
    "av_ca_audio_scale_shift_adaln_single": "av_cross_attn_audio_scale_shift",
    "av_ca_a2v_gate_adaln_single": "av_cross_attn_video_a2v_gate",
    "av_ca_v2a_gate_adaln_single": "av_cross_attn_audio_v2a_gate",
}

LTX2 = (
    rename("patchify_proj", "proj_in"),
    rename("audio_patchify_proj", "audio_proj_in"),
    *(rename(f"{original}.{layer}", f"{norm}.{layer}") for original, norm in _NORMS.items() for layer in ADALN),
)

_LAYERS = (
    *("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn1.to_gate_logits"),
    *("ff.net.0.proj", "ff.net.2"),
)

LTX2_CONNECTORS = (
    rename("text_embedding_projection.aggregate_embed", "text_proj_in"),
    rename("text_embedding_projection.video_aggregate_embed", "video_text_proj_in"),
    rename("text_embedding_projection.audio_aggregate_embed", "audio_text_proj_in"),
    *(
        rename(
            f"{kind}_embeddings_connector.transformer_1d_blocks.{{}}.{layer}",
            f"{kind}_connector.transformer_blocks.{{}}.{layer}",
        )
        for kind in ("video", "audio")
        for layer in _LAYERS
    ),
)
