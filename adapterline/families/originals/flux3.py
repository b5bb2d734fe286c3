"""FLUX.3, whose blocks, embedders and modulations come one for each mode."""

from __future__ import annotations

from adapterline.families.originals.base import rename, within

_BLOCK = (
    rename("q_proj", "attn.to_q"),
    rename("k_proj", "attn.to_k"),
    rename("v_proj", "attn.to_v"),
    rename("attn_out", "attn.to_out.0"),
    rename("mlp_in", "ff.linear_in"),
    rename("mlp_out", "ff.linear_out"),
)

_EMBEDDER = (rename("in_layer", "linear_1"), rename("out_layer", "linear_2"))

#: The modes that Flux3Transformer2DModel builds, whatever its configuration.
_MODES = ("image", "image_cond")

FLUX3 = (
    *(rename(f"emb_in.{mode}", f"x_embedders.{mode}") for mode in _MODES),
    rename("txt_in", "context_embedder"),
    *within("time_in", "timestep_embedder", _EMBEDDER),
    *within("ref_time_in", "target_timestep_embedder", _EMBEDDER),
    *(
        rename(f"{stage}_stream_modulations.{mode}.lin", f"{stage}_stream_modulations.{mode}.linear")
        for stage in ("early", "single")
        for mode in (*_MODES, "txt")
    ),
    *(
        item
        for mode in _MODES
        for item in within(f"content_mode_blocks.{mode}.{{}}", f"mode_blocks.{mode}.{{}}", _BLOCK)
    ),
    *within("txt_mode_blocks.{}", "txt_mode_blocks.{}", _BLOCK),
    *within("single_blocks.{}", "single_transformer_blocks.{}", _BLOCK),
    rename("final_layer.image.adaLN_modulation.1", "norm_out.linear", swapped=True),
    rename("final_layer.image.linear", "proj_out"),
)
