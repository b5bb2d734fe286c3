"""LTX-Video (Lightricks/LTX-Video), which was written with diffusers' attention and feed-forward."""

from __future__ import annotations

from adapterline.families.originals.base import rename

#: The layers of an adaptive norm (`AdaLayerNormSingle`), the same in the original and in diffusers.
ADALN = ("emb.timestep_embedder.linear_1", "emb.timestep_embedder.linear_2", "linear")

LTX_VIDEO = (
    rename("patchify_proj", "proj_in"),
    *(rename(f"adaln_single.{layer}", f"time_embed.{layer}") for layer in ADALN),
)
