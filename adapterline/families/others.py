"""Families of pipelines that make something else: music, proteins."""

from __future__ import annotations

from adapterline.families.family import Family, transformer

OTHERS: tuple[Family, ...] = (
    Family(
        name="ace_step",
        title="ACE-Step 1.5",
        mixin="AceStepLoraLoaderMixin",
        pipeline="AceStepPipeline",
        components=(transformer("AceStepTransformer1DModel"),),
        tags=("ace-step", "text-to-audio"),
        marks=(r"transformer\.layers\.\d+\.((self|cross)_attn\.to_|mlp\.down_proj)",),
    ),
    Family(
        name="rfd4_proteina",
        title="RFD4 Proteina",
        mixin="RFD4ProteinaLoraLoaderMixin",
        pipeline="RFD4ProteinaPipeline",
        components=(transformer("RFD4ProteinaTransformer"),),
        tags=("rfd4-proteina", "biology"),
        marks=(r"transformer\.(transformer_layers\.\d+\.(mhba|transition)|pair_update_layers)",),
    ),
)
