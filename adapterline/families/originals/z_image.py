"""Z-Image, as its single-file checkpoints and ComfyUI name it."""

from __future__ import annotations

from adapterline.families.originals.base import rename, within

_ATTENTION = (rename("qkv", "to_q", "to_k", "to_v"), rename("out", "to_out.0"))

_STACKS = ("noise_refiner", "context_refiner", "layers")

Z_IMAGE = (
    # diffusers has an embedder and a final layer for each pair of patch sizes; the original has those of 2 by 2 by 1.
    rename("x_embedder", "all_x_embedder.2-1"),
    rename("final_layer.linear", "all_final_layer.2-1.linear"),
    rename("final_layer.adaLN_modulation.1", "all_final_layer.2-1.adaLN_modulation.1"),
    *(item for stack in _STACKS for item in within(f"{stack}.{{}}.attention", f"{stack}.{{}}.attention", _ATTENTION)),
)
