"""sd-scripts' keys: how each model's layers are named in them, and which programs have a layer for which name.

A *stem* is a key up to its first dot: `lora_unet_double_blocks_0_img_attn_qkv`. Programs compare stems with the names
of their own modules, dots as underscores, and pass over what they do not have. So a file is right in a program if that
has all of its stems. Sources, by program:

    ComfyUI           comfy/lora.py (`model_lora_keys_unet`, `model_lora_keys_clip`) and the state dicts of comfy/ldm
    sd-scripts        networks/lora*.py, `create_network_from_weights`: the module classes that it looks into
    musubi-tuner      networks/lora*.py, likewise
    diffusers         loaders/lora_conversion_utils.py, the converters that `load_lora_weights` calls for such keys

Identifiers are those that sd-scripts (library/sai_model_spec.py) and musubi-tuner (utils/sai_model_spec.py) write; a
family has those of its first model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from adapterline.families import Family
from adapterline.families.base import Base
from adapterline.families.names import Piece, expanded
from adapterline.families.originals import comfy_renames, renames
from adapterline.families.originals.base import Rename
from adapterline.families.skeleton import targets


@dataclass(frozen=True)
class Kohya:
    """What is known of one model's adapters in sd-scripts' keys.

    `architecture` and `implementation` are ModelSpec's, `version` is `ss_base_model_version`, `v2` is `ss_v2` where it
    is asked for, `module` is `ss_network_module`. `prefixes` are the stems' beginnings by component; one that is not
    there has none. `renames` gives the names of the denoiser's layers that are not diffusers' own.

    `comfyui`, `trained` (by `trainer`) and `diffusers` are regular expressions of whole stems: those that the program
    loads right. `why` says what diffusers does with the others. `hands_on`: its converter hands alpha on to PEFT and
    knows one alpha and rank for a whole component; others multiply the factors by alpha / rank, in their own dtype.

    `together` are regular expressions of stems that a program takes together or not at all: all that match one, with
    the same text in its group if it has one.
    """

    implementation: str
    module: str
    comfyui: str
    architecture: str = ""
    version: str = ""
    trainer: str = ""
    trained: str = ""
    diffusers: str = ""
    why: str = "its loader has no converter for these keys"
    hands_on: bool = False
    prefixes: Mapping[str, str] = field(default_factory=lambda: {"transformer": "lora_unet"})
    v2: bool | None = None
    together: tuple[str, ...] = ()
    renames: Callable[[str, Mapping[str, Any]], tuple[Rename, ...]] = renames

    def carries(self, pattern: str, stems: Iterable[str]) -> bool:
        """Has a program all of these?"""
        return bool(pattern) and not beyond(pattern, stems)


def beyond(pattern: str, stems: Iterable[str]) -> list[str]:
    """The stems that the program of this pattern does not have, sorted."""
    compiled = re.compile(pattern)
    return sorted(stem for stem in stems if not compiled.fullmatch(stem))


def kohya_of(base: Base) -> Kohya | None:
    """What is known of this base's adapters in sd-scripts' keys; None if it cannot be shown what reads them."""
    for component in base.family.components:
        if model := base.models.get(component.name):
            known = _KNOWN.get((base.family.name, model.model_class))
            return _identified(known(model.config), base.family) if known else None
    return None


def _identified(known: Kohya, family: Family) -> Kohya:
    architecture, version = known.architecture or family.architecture, known.version or family.kohya_version
    return replace(known, architecture=architecture, version=version)


def stems(base: Base, known: Kohya, component: str) -> dict[str, tuple[Piece, ...]]:
    """How each layer of a component is written: stem -> the layers that it means, several where they are fused."""
    layers, model, prefix = targets(base, component), base.models[component], known.prefixes[component]
    if component.startswith("text_encoder"):
        return {f"{prefix}_{_flat(_in_text_model(module))}": (Piece(module),) for module in layers}
    found: dict[str, tuple[Piece, ...]] = {}
    named: set[str] = set()
    for rename in known.renames(model.model_class, model.config):
        for name, pieces in expanded(rename, layers):
            if named.isdisjoint(piece.module for piece in pieces):
                named |= {piece.module for piece in pieces}
                found[f"{prefix}_{_flat(name)}"] = pieces
    return found | {f"{prefix}_{_flat(module)}": (Piece(module),) for module in layers if module not in named}


def _in_text_model(module: str) -> str:
    """CLIPTextModelWithProjection has its projection beside `text_model`, not in it."""
    return module if module == "text_projection" else f"text_model.{module}"


def _flat(name: str) -> str:
    return name.replace(".", "_")


# --- what the programs have -------------------------------------------------------------------------------------------


def _own_names(model_class: str, config: Mapping[str, Any]) -> tuple[Rename, ...]:
    """The names are diffusers'."""
    return ()


def _clip(prefix: str) -> str:
    return rf"{prefix}_text_model_encoder_layers_\d+_(self_attn_(q|k|v|out)_proj|mlp_fc[12])"


def _denoiser(*names: str) -> str:
    return rf"lora_unet_({'|'.join(names)})"


#: OpenCLIP's attention is one module in A1111, which takes all four or none. And diffusers knows the names that its
#: converter gives to a text encoder's attention by those of `out_proj`.
_ATTENTION = r"(lora_te\d?_text_model_encoder_layers_\d+_self_attn)_(?:q|k|v|out)_proj"
_STABILITY = "https://github.com/Stability-AI/generative-models"


_LDM_BLOCKS = (r"input_blocks_(?!0_)\d+_\d+_.+", r"middle_block_\d_.+", r"output_blocks_\d+_\d+_.+")
_LDM_ENDS = (r"input_blocks_0_0", r"out_2", r"time_embed_[02]", r"label_emb_0_[02]")
_UNET_BLOCKS = r"((down|up)_blocks_\d+|mid_block)_(attentions|resnets|downsamplers|upsamplers)_\d+_.+"
_UNET_ENDS = (r"conv_(in|out)", r"time_embedding_linear_[12]")
#: ComfyUI takes a UNet's layers by either name (comfy/utils.py, `unet_to_diffusers`).
_UNET = _denoiser(*_LDM_BLOCKS, *_LDM_ENDS, _UNET_BLOCKS, *_UNET_ENDS, r"(class|add)_embedding_linear_[12]")


def _stable_diffusion(config: Mapping[str, Any]) -> Kohya:
    """1.x and 2.x: of the latter, those for 768 pixels predict v (Stability-AI/stablediffusion)."""
    v2 = config.get("cross_attention_dim") == 1024
    predicts_v = v2 and config.get("sample_size") == 96
    size = "768-v" if predicts_v else "512"
    return Kohya(
        architecture=f"stable-diffusion-v2-{size}/lora" if v2 else "",
        version=("sd_v2_v" if predicts_v else "sd_v2") if v2 else "",
        v2=v2,
        implementation="diffusers",
        module="networks.lora",
        prefixes={"unet": "lora_unet", "text_encoder": "lora_te"},
        renames=_own_names,
        comfyui=f"{_UNET}|{_clip('lora_te')}",
        trainer="sd-scripts",
        trained=f"{_denoiser(_UNET_BLOCKS)}|{_clip('lora_te')}",
        diffusers=f"{_denoiser(_UNET_BLOCKS, *_UNET_ENDS)}|{_clip('lora_te')}",
        why="its converter drops them, or takes them for others",
        hands_on=True,
        together=(_ATTENTION,),
    )


def _stable_diffusion_xl(config: Mapping[str, Any]) -> Kohya:
    encoders = f"{_clip('lora_te1')}|{_clip('lora_te2')}"
    return Kohya(
        v2=False,
        implementation=_STABILITY,
        module="networks.lora",
        prefixes={"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"},
        comfyui=f"{_UNET}|{encoders}|lora_te2_text_projection",
        trainer="sd-scripts",
        trained=f"{_denoiser(*_LDM_BLOCKS)}|{encoders}",
        diffusers=f"{_denoiser(*_LDM_BLOCKS, *_LDM_ENDS)}|{encoders}",
        why="its converter drops them, or takes them for others",
        hands_on=True,
        together=(_ATTENTION,),
    )


def _stable_diffusion_3(config: Mapping[str, Any]) -> Kohya:
    size = "3-5-large" if config.get("num_layers", 18) > 30 else "3-5-medium" if _has_dual(config) else "3-medium"
    encoders = f"{_clip('lora_te1')}|{_clip('lora_te2')}"
    blocks = r"joint_blocks_\d+_.+"
    ends = (r"x_embedder_proj", r"context_embedder", r"[ty]_embedder_mlp_[02]", r"final_layer_.+")
    return Kohya(
        architecture=f"stable-diffusion-{size}/lora",
        version=f"sd{size}",
        implementation="diffusers",
        module="networks.lora_sd3",
        prefixes={"transformer": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"},
        comfyui=f"{_denoiser(blocks, *ends)}|{encoders}|lora_te[12]_text_projection",
        trainer="sd-scripts",
        trained=f"{_denoiser(blocks)}|{encoders}",
    )


def _has_dual(config: Mapping[str, Any]) -> bool:
    return bool(config.get("dual_attention_layers"))


_FLUX_BLOCKS = (
    r"double_blocks_\d+_(img|txt)_(attn_(qkv|proj)|mlp_[02]|mod_lin)",
    r"single_blocks_\d+_(linear2|modulation_lin)",
)
_FUSED = r"single_blocks_\d+_linear1"
#: The converter splits `linear1` at FLUX's own sizes, whatever the model's are.
_FLUX_WIDTH = 3072


def _flux(config: Mapping[str, Any]) -> Kohya:
    ends = (r"(img|txt)_in", r"(time|vector|guidance)_in_(in|out)_layer", r"final_layer_(linear|adaLN_modulation_1)")
    encoder = _clip("lora_te1")
    return Kohya(
        architecture="" if config.get("guidance_embeds") else "flux-1-schnell/lora",
        implementation="https://github.com/black-forest-labs/flux",
        module="networks.lora_flux",
        prefixes={"transformer": "lora_unet", "text_encoder": "lora_te1"},
        comfyui=f"{_denoiser(*_FLUX_BLOCKS, _FUSED, *ends)}|{encoder}",
        trainer="sd-scripts",
        trained=f"{_denoiser(*_FLUX_BLOCKS, _FUSED)}|{encoder}",
        diffusers=f"{_denoiser(*_FLUX_BLOCKS, *_fused(config))}|{encoder}",
        why="its converter leaves out `transformer.` for some, and splits others at the sizes of FLUX.1-dev",
        together=(_ATTENTION,),
    )


def _fused(config: Mapping[str, Any]) -> tuple[str, ...]:
    width = config.get("num_attention_heads", 24) * config.get("attention_head_dim", 128)
    return (_FUSED,) if width == _FLUX_WIDTH else ()


def _chroma(config: Mapping[str, Any]) -> Kohya:
    ends = (r"(img|txt)_in", r"distilled_guidance_layer_.+", r"final_layer_linear")
    return Kohya(
        architecture="chroma/lora",
        version="chroma",
        implementation="https://huggingface.co/lodestones/Chroma",
        module="networks.lora_flux",
        comfyui=_denoiser(*_FLUX_BLOCKS, _FUSED, *ends),
        trainer="sd-scripts",
        trained=_denoiser(*_FLUX_BLOCKS, _FUSED),
        diffusers=_denoiser(*_FLUX_BLOCKS, *_fused(config)),
        why="its converter leaves out `transformer.` for some, and does not know others",
    )


def _flux2(config: Mapping[str, Any]) -> Kohya:
    heads = config.get("num_attention_heads", 48)
    klein = "4b" if heads <= 24 else "9b"
    dev = config.get("guidance_embeds", True)  # which klein distilled away
    blocks = (r"double_blocks_\d+_(img|txt)_(attn_(qkv|proj)|mlp_[02])", r"single_blocks_\d+_linear[12]")
    ends = (r"(img|txt)_in", r"time_in_(in|out)_layer", r"final_layer_linear")
    others = (
        r"guidance_in_(in|out)_layer",
        r"(double_stream_modulation_(img|txt)|single_stream_modulation)_lin",
        r"final_layer_adaLN_modulation_1",
    )
    return Kohya(
        architecture="" if dev else f"Flux.2-klein-{klein}/lora",
        version="" if dev else f"flux_2_klein_{klein}",
        implementation="https://github.com/black-forest-labs/flux2",
        module="networks.lora_flux_2",
        comfyui=_denoiser(*blocks, *ends, *others),
        trainer="musubi-tuner",
        trained=_denoiser(*blocks),
        diffusers=_denoiser(*blocks, *ends),
        why="its converter does not know them",
    )


def _qwen_image(config: Mapping[str, Any]) -> Kohya:
    blocks = r"transformer_blocks_\d+_.+"
    ends = (r"(img|txt)_in", r"proj_out", r"norm_out_linear", r"time_text_embed_timestep_embedder_linear_[12]")
    return Kohya(
        implementation="https://github.com/QwenLM/Qwen-Image",
        module="networks.lora_qwen_image",
        comfyui=_denoiser(blocks, *ends),
        trainer="musubi-tuner",
        trained=_denoiser(blocks),
        diffusers=_denoiser(blocks, *ends),
    )


_NEXT_DIT = (
    r"(layers|noise_refiner|context_refiner)_\d+_(attention_(qkv|out)|feed_forward_w[123]|adaLN_modulation_[01])"
)


def _z_image(config: Mapping[str, Any]) -> Kohya:
    """musubi-tuner names queries, keys and values apart, as diffusers does; ComfyUI has them fused alone."""
    inner, ends = (r"cap_embedder_1", r"t_embedder_mlp_[02]"), (r"x_embedder", r"final_layer_.+")
    return Kohya(
        implementation="https://github.com/Tongyi-MAI/Z-Image",
        module="networks.lora_zimage",
        comfyui=_denoiser(_NEXT_DIT, *inner, *ends),
        diffusers=_denoiser(_NEXT_DIT, *inner),
        why="its converter keeps their original names, of which the model has no layer",
    )


def _lumina2(config: Mapping[str, Any]) -> Kohya:
    ends = (r"x_embedder", r"cap_embedder_1", r"t_embedder_mlp_[02]")
    final = r"final_layer_(linear|adaLN_modulation_1)"
    return Kohya(
        implementation="https://github.com/Alpha-VLLM/Lumina-Image-2.0",
        module="networks.lora_lumina",
        comfyui=_denoiser(_NEXT_DIT, final, *ends),
        trainer="sd-scripts",
        trained=_denoiser(_NEXT_DIT, final),
    )


def _wan(config: Mapping[str, Any]) -> Kohya:
    layers = (r"blocks_\d+_(self|cross)_attn_[qkvo]", r"blocks_\d+_ffn_[02]")
    image = r"blocks_\d+_cross_attn_[kv]_img"
    ends = (
        r"(text|time)_embedding_[02]",
        r"time_projection_1",
        r"img_emb_proj_[13]",
        r"head_head",
        r"(vace_)?patch_embedding",
        r"vace_blocks_\d+_.+",
    )
    return Kohya(
        implementation="https://github.com/Wan-Video/Wan2.1",
        module="networks.lora_wan",
        prefixes={"transformer": "lora_unet", "transformer_2": "lora_unet"},
        comfyui=_denoiser(*layers, image, *ends),
        trainer="musubi-tuner",
        trained=_denoiser(*layers, image),
        diffusers=_denoiser(*layers, image),
        why="its converter does not know them",
        # diffusers' converter asks for every layer of every block.
        together=(_denoiser(*layers).replace("(", "(?:"), f"lora_unet_{image}"),
    )


def _hunyuan_video(config: Mapping[str, Any]) -> Kohya:
    """The names are ComfyUI's: musubi-tuner's differ, and its own scripts convert them."""
    return Kohya(
        implementation="https://github.com/Tencent/HunyuanVideo",
        module="networks.lora",
        renames=comfy_renames,
        comfyui=_denoiser(
            *_FLUX_BLOCKS,
            _FUSED,
            r"img_in_proj",
            r"(time|vector|guidance)_in_(in|out)_layer",
            r"final_layer_(linear|adaLN_modulation_1)",
            r"txt_in_(input_embedder|[tc]_embedder_(in|out)_layer)",
            r"txt_in_individual_token_refiner_blocks_\d+_(self_attn_(qkv|proj)|mlp_[02]|adaLN_modulation_1)",
        ),
    )


def _hunyuan_video_15(config: Mapping[str, Any]) -> Kohya:
    return Kohya(
        architecture="hunyuan-video-1.5/lora",
        version="hunyuan_video_1_5",
        implementation="https://github.com/Tencent-Hunyuan/HunyuanVideo-1.5",
        module="networks.lora_hv_1_5",
        renames=comfy_renames,
        comfyui=_denoiser(_FLUX_BLOCKS[0]),
    )


def _krea2(config: Mapping[str, Any]) -> Kohya:
    layers = r"(attn_(w[qkvo]|gate)|mlp_(gate|up|down))"
    blocks = rf"(blocks|txtfusion_(layerwise|refiner)_blocks)_\d+_{layers}"
    return Kohya(
        implementation="https://github.com/krea-ai/krea-2",
        module="networks.lora_krea2",
        comfyui=_denoiser(blocks),
        trainer="musubi-tuner",
        trained=_denoiser(blocks),
    )


def _ideogram4(config: Mapping[str, Any]) -> Kohya:
    blocks = r"layers_\d+_(attention_(qkv|o)|feed_forward_w[123]|adaln_modulation)"
    ends = (r"(input|llm_cond|adaln)_proj", r"t_embedding_mlp_(in|out)", r"final_layer_(linear|adaln_modulation)")
    return Kohya(
        implementation="https://huggingface.co/Comfy-Org/Ideogram-4",
        module="networks.lora_ideogram4",
        comfyui=_denoiser(blocks, *ends),
        trainer="musubi-tuner",
        trained=_denoiser(blocks),
    )


def _anima(config: Mapping[str, Any]) -> Kohya:
    layers = (
        r"blocks_\d+_(self|cross)_attn_(q|k|v|output)_proj",
        r"blocks_\d+_mlp_layer[12]",
        r"blocks_\d+_adaln_modulation_(self_attn|cross_attn|mlp)_[12]",
        r"x_embedder_proj_1",
        r"t_embedder_1_linear_[12]",
        r"final_layer_(linear|adaln_modulation_[12])",
    )
    return Kohya(
        implementation="https://huggingface.co/circlestone-labs/Anima",
        module="networks.lora_anima",
        comfyui=_denoiser(*layers),
        trainer="sd-scripts",
        trained=_denoiser(*layers),
    )


#: By family and class of the denoiser. Absent: what no trainer of such keys trains, or ComfyUI's names are not certain.
_KNOWN: Mapping[tuple[str, str], Callable[[Mapping[str, Any]], Kohya]] = {
    ("sd15", "UNet2DConditionModel"): _stable_diffusion,
    ("sd15", "UNetMotionModel"): _stable_diffusion,
    ("sdxl", "UNet2DConditionModel"): _stable_diffusion_xl,
    ("sd3", "SD3Transformer2DModel"): _stable_diffusion_3,
    ("flux", "FluxTransformer2DModel"): _flux,
    ("flux", "ChromaTransformer2DModel"): _chroma,
    ("flux2", "Flux2Transformer2DModel"): _flux2,
    ("qwenimage", "QwenImageTransformer2DModel"): _qwen_image,
    ("z_image", "ZImageTransformer2DModel"): _z_image,
    ("lumina2", "Lumina2Transformer2DModel"): _lumina2,
    ("wan", "WanTransformer3DModel"): _wan,
    ("wan", "WanVACETransformer3DModel"): _wan,
    ("hunyuan_video", "HunyuanVideoTransformer3DModel"): _hunyuan_video,
    ("hunyuan_video", "HunyuanVideo15Transformer3DModel"): _hunyuan_video_15,
    ("krea2", "Krea2Transformer2DModel"): _krea2,
    ("ideogram4", "Ideogram4Transformer2DModel"): _ideogram4,
    ("anima", "CosmosTransformer3DModel"): _anima,
}
