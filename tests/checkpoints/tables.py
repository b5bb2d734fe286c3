"""One small file of each dialect as a table of keys, for telling dialects apart: nothing else of a file decides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from adapterline.checkpoints.dialects import identify
from adapterline.values import TensorInfo


def _no_value(key: str) -> float:
    raise KeyError(key)


@dataclass(frozen=True)
class Keys:
    """What a dialect looks at."""

    tensors: Mapping[str, TensorInfo]
    header: Mapping[str, str] = field(default_factory=dict)
    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    scalar: Callable[[str], float] = _no_value

    @classmethod
    def of(cls, *names: str, header: Mapping[str, str] | None = None, configs: Mapping[str, Any] | None = None) -> Keys:
        """A file with these keys: alphas have the shape [], everything else is [4, 4]."""
        shapes = {name: () if name.endswith("alpha") else (4, 4) for name in names}
        return cls({name: TensorInfo("F32", shape) for name, shape in shapes.items()}, header or {}, configs or {})


def layer(stem: str, *suffixes: str) -> tuple[str, ...]:
    """The keys of one layer."""
    return tuple(f"{stem}.{suffix}" for suffix in suffixes)


_AB = ("lora_A.weight", "lora_B.weight")
_DOWN_UP = ("lora_down.weight", "lora_up.weight")
_LOKR = ("lokr_w1", "lokr_w2_a", "lokr_w2_b")
_Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
_CLIP = "text_encoder.text_model.encoder.layers.0.self_attn"

FILES: dict[str, tuple[Keys, ...]] = {
    "xlabs": (
        Keys.of(*layer("double_blocks.0.processor.qkv_lora1", "down.weight", "up.weight")),
        Keys.of(
            *layer("diffusion_model.double_blocks.0.processor.proj_lora2", "down.weight", "up.weight"),
            *layer("diffusion_model.single_blocks.0.processor.qkv_lora", "down.weight", "up.weight"),
        ),
    ),
    "attention-processors": (
        Keys.of(*layer(f"unet.{_Q}.processor.to_q_lora", "down.weight", "up.weight")),
        Keys.of(*layer(f"{_Q}.processor.to_out_lora", "down.weight", "up.weight")),
        Keys.of(
            *layer(f"unet.{_Q}.processor.to_q_lora", "down.weight", "up.weight"),
            *layer(f"{_CLIP}.q_proj.lora_linear_layer", "down.weight", "up.weight"),
        ),
        Keys.of(*layer(f"{_CLIP}.to_q_lora", "down.weight", "up.weight")),
    ),
    "original": (
        Keys.of(*layer("double_blocks.0.img_attn.qkv", *_AB, "alpha")),
        Keys.of(*layer("joint_blocks.0.x_block.attn.qkv", *_AB, "alpha", "dora_scale")),
        Keys.of(*layer("input_blocks.1.1.transformer_blocks.0.attn1.to_q", *_LOKR, "alpha")),
        Keys.of(*layer("net.blocks.0.self_attn.q_proj", *_AB, "alpha")),
        Keys.of(*layer("transformer_blocks.0.attn.to_q", *_DOWN_UP, "alpha")),
    ),
    "diffusers": (
        Keys.of(*layer(f"unet.{_Q}.to_q", *_AB)),
        Keys.of(*layer(f"unet.{_Q}.to_q", "lora.down.weight", "lora.up.weight")),
        Keys.of(*layer(f"{_CLIP}.q_proj", "lora_linear_layer.down.weight", "lora_linear_layer.up.weight")),
    ),
    "peft": (
        Keys.of(*layer("base_model.model.double_blocks.0.img_attn.qkv", *_AB)),
        Keys.of(*layer("double_blocks.0.img_attn.qkv", *_AB)),
        Keys.of(*layer("double_blocks.0.img_attn.qkv", *_AB, "lora_B.bias")),
        Keys.of(*layer(f"{_Q}.to_q", *_AB)),
        Keys.of(
            *layer(f"base_model.model.{_Q}.to_q", *_AB), configs={"": {"peft_type": "LORA", "r": 4, "lora_alpha": 8}}
        ),
    ),
    "kohya": (
        Keys.of(*layer("lora_unet_down_blocks_0_attentions_0_to_q", *_DOWN_UP, "alpha")),
        Keys.of(*layer("lora_unet_double_blocks_0_img_attn_qkv", *_DOWN_UP, "alpha")),
    ),
    "lycoris": (
        Keys.of(*layer("lora_unet_down_blocks_0_attentions_0_to_q", *_LOKR, "alpha")),
        Keys.of(*layer("lycoris_transformer_blocks_0_attn_to_q", *_LOKR, "alpha")),
    ),
    "ai-toolkit": (
        Keys.of(*layer("transformer.transformer_blocks.0.attn.to_q", *_LOKR, "alpha")),
        Keys.of(*layer("transformer.transformer_blocks.0.attn.to_q", *_DOWN_UP, "alpha")),
    ),
    "comfy": (
        Keys.of(*layer("diffusion_model.double_blocks.0.img_attn.qkv", *_AB)),
        Keys.of(*layer("diffusion_model.double_blocks.0.img_attn.qkv", *_AB, "alpha")),
    ),
}


def reads_alone(file: Keys) -> str:
    """The name of the one dialect that reads the file, having given every key a place."""
    dialect, entries = identify(file)
    assert set(entries) == set(file.tensors)
    return dialect.name
