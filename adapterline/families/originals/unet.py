"""The UNet of Stable Diffusion 1.x, 2.x and XL: LDM's (CompVis/latent-diffusion) and SGM's names.

There, all layers of a direction count as one list, each with its parts by position: a resnet, then an attention if the
layer has one, then an upsampler; a downsampler is a layer of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from adapterline.families.originals.base import Rename, rename, within

_RESNET = (
    rename("in_layers.2", "conv1"),
    rename("emb_layers.1", "time_emb_proj"),
    rename("out_layers.3", "conv2"),
)

_SHORTCUT = rename("skip_connection", "conv_shortcut")

# The same names in both, but an entry each: what they lie in has another name.
_ATTENTION = tuple(
    rename(name, name)
    for name in (
        "proj_in",
        "proj_out",
        *(
            f"transformer_blocks.{{}}.{attention}.{layer}"
            for attention in ("attn1", "attn2")
            for layer in ("to_q", "to_k", "to_v", "to_out.0")
        ),
        "transformer_blocks.{}.ff.net.0.proj",
        "transformer_blocks.{}.ff.net.2",
    )
)

_MIDDLE = (
    *within("middle_block.0", "mid_block.resnets.0", _RESNET),
    *within("middle_block.1", "mid_block.attentions.0", _ATTENTION),
    *within("middle_block.2", "mid_block.resnets.1", _RESNET),
)


#: What diffusers takes where a configuration is silent.
_DEFAULTS = {
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
    "layers_per_block": 2,
}


def unet(config: Mapping[str, Any]) -> tuple[Rename, ...]:
    """The table of UNet2DConditionModel, from its blocks, layers and channels."""
    config = {**_DEFAULTS, **config}
    return tuple((*_outside(config), *_inputs(config), *_MIDDLE, *_outputs(config)))


def _outside(config: Mapping[str, Any]) -> Iterator[Rename]:
    yield rename("input_blocks.0.0", "conv_in")
    yield rename("time_embed.0", "time_embedding.linear_1")
    yield rename("time_embed.2", "time_embedding.linear_2")
    yield rename("out.2", "conv_out")
    # One name for what diffusers has two modules for, of which no model has both: SDXL's sizes, SD 2's unCLIP's noise.
    if config.get("addition_embed_type") == "text_time":
        yield rename("label_emb.0.0", "add_embedding.linear_1")
        yield rename("label_emb.0.2", "add_embedding.linear_2")
    elif config.get("class_embed_type") in ("timestep", "projection"):
        yield rename("label_emb.0.0", "class_embedding.linear_1")
        yield rename("label_emb.0.2", "class_embedding.linear_2")


def _inputs(config: Mapping[str, Any]) -> Iterator[Rename]:
    types, channels = config["down_block_types"], config["block_out_channels"]
    index = 1
    for block, layers in enumerate(_layers(config)):
        for layer in range(layers):
            yield from within(f"input_blocks.{index}.0", f"down_blocks.{block}.resnets.{layer}", _RESNET)
            if layer == 0 and channels[block] != channels[max(block - 1, 0)]:
                yield from within(f"input_blocks.{index}.0", f"down_blocks.{block}.resnets.0", (_SHORTCUT,))
            if "CrossAttn" in types[block]:
                yield from within(f"input_blocks.{index}.1", f"down_blocks.{block}.attentions.{layer}", _ATTENTION)
            index += 1
        if block < len(types) - 1:
            yield rename(f"input_blocks.{index}.0.op", f"down_blocks.{block}.downsamplers.0.conv")
            index += 1


def _outputs(config: Mapping[str, Any]) -> Iterator[Rename]:
    types = config["up_block_types"]
    index = 0
    for block, layers in enumerate(reversed(_layers(config))):
        attends = "CrossAttn" in types[block]
        for layer in range(layers + 1):
            # Every layer of this direction is given the output of one of the other, so it always has a shortcut.
            yield from within(f"output_blocks.{index}.0", f"up_blocks.{block}.resnets.{layer}", (*_RESNET, _SHORTCUT))
            if attends:
                yield from within(f"output_blocks.{index}.1", f"up_blocks.{block}.attentions.{layer}", _ATTENTION)
            index += 1
        if block < len(types) - 1:
            place = 2 if attends else 1
            yield rename(f"output_blocks.{index - 1}.{place}.conv", f"up_blocks.{block}.upsamplers.0.conv")


def _layers(config: Mapping[str, Any]) -> tuple[int, ...]:
    layers = config["layers_per_block"]
    return (layers,) * len(config["down_block_types"]) if isinstance(layers, int) else tuple(layers)
