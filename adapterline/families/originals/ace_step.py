"""ACE-Step 1.5: the decoder (`decoder.` in the original checkpoint, the root of what its trainers adapt)."""

from __future__ import annotations

from adapterline.families.originals.base import rename, within

_ATTENTION = (
    rename("q_proj", "to_q"),
    rename("k_proj", "to_k"),
    rename("v_proj", "to_v"),
    rename("o_proj", "to_out.0"),
)

# `proj_out.1` is absent: it is a transposed convolution, which no trainer adapts.
ACE_STEP = (
    rename("proj_in.1", "proj_in_conv"),
    *within("layers.{}.self_attn", "layers.{}.self_attn", _ATTENTION),
    *within("layers.{}.cross_attn", "layers.{}.cross_attn", _ATTENTION),
)
