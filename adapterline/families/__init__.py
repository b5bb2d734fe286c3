"""What adapterline knows of each family of pipelines: data, one entry for each LoRA mixin of diffusers.

A pipeline belongs to the family whose mixin comes first in its class's method resolution order, so that image-to-image,
inpainting and control pipelines need no entry of their own.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Component:
    """A model of a pipeline that an adapter may change.

    `loads` is False for one that trainers adapt and `load_lora_weights` drops without a word. `text_model` is True for
    a CLIP text encoder, whose keys carry `text_model.` in files, whatever the installed transformers calls its modules.
    """

    name: str
    models: tuple[str, ...]
    loads: bool = True
    text_model: bool = False


@dataclass(frozen=True)
class Family:
    """A family of pipelines that one mixin loads LoRA weights into.

    `marks` are regular expressions on `component.module`; all must occur in an adapter, and none of `never`, for
    `inspect` to name the family without a base. They are evidence, not proof: the skeleton decides.
    """

    name: str
    title: str
    mixin: str
    pipeline: str
    components: tuple[Component, ...]
    tags: tuple[str, ...]
    marks: tuple[str, ...]
    never: tuple[str, ...] = ()

    def component(self, name: str) -> Component | None:
        """The component of this name, or None."""
        return next((component for component in self.components if component.name == name), None)


def _clip(name: str, *models: str) -> Component:
    return Component(name, models, text_model=True)


FAMILIES: tuple[Family, ...] = (
    Family(
        name="sd15",
        title="Stable Diffusion 1.x and 2.x",
        mixin="StableDiffusionLoraLoaderMixin",
        pipeline="StableDiffusionPipeline",
        components=(Component("unet", ("UNet2DConditionModel",)), _clip("text_encoder", "CLIPTextModel")),
        tags=("stable-diffusion", "stable-diffusion-diffusers", "text-to-image"),
        marks=(r"unet\.(down_blocks\.0\.attentions|up_blocks\.3\.attentions)",),
        never=(r"unet\..*\.transformer_blocks\.[1-9]", r"text_encoder_2\."),
    ),
    Family(
        name="sdxl",
        title="Stable Diffusion XL",
        mixin="StableDiffusionXLLoraLoaderMixin",
        pipeline="StableDiffusionXLPipeline",
        components=(
            Component("unet", ("UNet2DConditionModel",)),
            _clip("text_encoder", "CLIPTextModel"),
            _clip("text_encoder_2", "CLIPTextModelWithProjection"),
        ),
        tags=("stable-diffusion-xl", "stable-diffusion-xl-diffusers", "text-to-image"),
        marks=(r"unet\..*\.transformer_blocks\.[1-9]",),
        never=(r"unet\.down_blocks\.0\.attentions",),
    ),
    Family(
        name="sd3",
        title="Stable Diffusion 3 and 3.5",
        mixin="SD3LoraLoaderMixin",
        pipeline="StableDiffusion3Pipeline",
        components=(
            Component("transformer", ("SD3Transformer2DModel",)),
            _clip("text_encoder", "CLIPTextModelWithProjection"),
            _clip("text_encoder_2", "CLIPTextModelWithProjection"),
            Component("text_encoder_3", ("T5EncoderModel",), loads=False),
        ),
        tags=("sd3", "sd3-diffusers", "text-to-image"),
        marks=(r"transformer\.transformer_blocks\.\d+\.(attn2|ff_context|attn\.(to_|add_))",),
        never=(
            r"transformer\.single_transformer_blocks",
            r"transformer\.transformer_blocks\.\d+\.(img_m|txt_m)",
            r"transformer\.transformer_blocks\.[4-9]\d",
        ),
    ),
    Family(
        name="flux",
        title="FLUX.1",
        mixin="FluxLoraLoaderMixin",
        pipeline="FluxPipeline",
        components=(
            Component("transformer", ("FluxTransformer2DModel",)),
            _clip("text_encoder", "CLIPTextModel"),
            Component("text_encoder_2", ("T5EncoderModel",), loads=False),
        ),
        tags=("flux", "flux-diffusers", "text-to-image"),
        marks=(r"transformer\.single_transformer_blocks\.\d+\.(attn\.to_[qkv]|proj_mlp|proj_out|norm\.linear)",),
        never=(r"transformer\.single_transformer_blocks\.\d+\.attn\.to_(qkv_mlp_proj|out)",),
    ),
    Family(
        name="flux2",
        title="FLUX.2",
        mixin="Flux2LoraLoaderMixin",
        pipeline="Flux2Pipeline",
        components=(Component("transformer", ("Flux2Transformer2DModel",)),),
        tags=("flux2", "flux2-diffusers", "text-to-image"),
        marks=(r"transformer\.single_transformer_blocks\.\d+\.attn\.to_(qkv_mlp_proj|out)",),
    ),
    Family(
        name="qwenimage",
        title="Qwen-Image",
        mixin="QwenImageLoraLoaderMixin",
        pipeline="QwenImagePipeline",
        components=(Component("transformer", ("QwenImageTransformer2DModel",)),),
        tags=("qwen-image", "qwen-image-diffusers", "text-to-image"),
        marks=(r"transformer\.transformer_blocks\.\d+\.(img_m|txt_m|attn\.(to_|add_))",),
        never=(
            r"transformer\.single_transformer_blocks",
            r"transformer\.transformer_blocks\.\d+\.(attn2|ff|norm1)",
            r"text_encoder",
        ),
    ),
)

#: Every name that a component of a supported pipeline can have: what a key or a sub-folder may begin with.
COMPONENT_NAMES: tuple[str, ...] = tuple(
    dict.fromkeys(component.name for family in FAMILIES for component in family.components)
)


def family_named(name: str) -> Family:
    """The family of this name. KeyError if there is none."""
    return {family.name: family for family in FAMILIES}[name]
