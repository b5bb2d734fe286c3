"""What trainers call the layers of a model: a few of each kind for each family, written down from their sources.

A `Layer` has the name as the trainer spells it, with dots, and the modules of diffusers' model that it is: several for
a fused layer, whose output rows are theirs in this order. `swapped`: the halves of the rows change places.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Layer:
    component: str
    name: str
    modules: tuple[str, ...]
    swapped: bool = False


def own(component: str, *modules: str) -> tuple[Layer, ...]:
    """Layers that the trainer calls by diffusers' names."""
    return tuple(Layer(component, module, (module,)) for module in modules)


def clip(component: str) -> tuple[Layer, ...]:
    """A CLIP text encoder: files keep `text_model.`, which adapterline's module names do not have."""
    modules = ("encoder.layers.0.self_attn.q_proj", "encoder.layers.1.mlp.fc1")
    return tuple(Layer(component, f"text_model.{module}", (module,)) for module in modules)


def t5(component: str) -> tuple[Layer, ...]:
    return own(component, "encoder.block.0.layer.0.SelfAttention.q", "encoder.block.1.layer.1.DenseReluDense.wo")


def _renamed(*pairs: tuple[str, str], component: str = "transformer") -> tuple[Layer, ...]:
    return tuple(Layer(component, name, tuple(modules.split())) for name, modules in pairs)


_SD_BLOCK = "down_blocks.1.attentions.0"
#: By family: the denoiser's layers under diffusers' names.
DIFFUSERS: dict[str, tuple[Layer, ...]] = {
    "sd15": own(
        "unet",
        f"{_SD_BLOCK}.transformer_blocks.0.attn1.to_q",
        f"{_SD_BLOCK}.transformer_blocks.0.attn2.to_k",
        f"{_SD_BLOCK}.transformer_blocks.0.attn2.to_out.0",
        f"{_SD_BLOCK}.transformer_blocks.0.ff.net.0.proj",
        f"{_SD_BLOCK}.proj_in",
    ),
    "sdxl": own(
        "unet",
        "down_blocks.2.attentions.0.transformer_blocks.1.attn1.to_q",
        f"{_SD_BLOCK}.transformer_blocks.0.attn2.to_v",
        "mid_block.attentions.0.transformer_blocks.0.ff.net.2",
        "up_blocks.0.attentions.1.proj_out",
        "add_embedding.linear_1",
    ),
    "sd3": own(
        "transformer",
        "transformer_blocks.0.attn.to_q",
        "transformer_blocks.0.attn.add_k_proj",
        "transformer_blocks.0.attn.to_out.0",
        "transformer_blocks.0.ff.net.0.proj",
        "transformer_blocks.0.norm1.linear",
    ),
    "flux": own(
        "transformer",
        "transformer_blocks.0.attn.to_k",
        "transformer_blocks.0.attn.to_add_out",
        "transformer_blocks.0.ff_context.net.2",
        "single_transformer_blocks.0.attn.to_q",
        "single_transformer_blocks.0.proj_mlp",
        "single_transformer_blocks.0.proj_out",
    ),
    "flux2": own(
        "transformer",
        "transformer_blocks.0.attn.to_q",
        "transformer_blocks.0.ff.linear_in",
        "single_transformer_blocks.0.attn.to_qkv_mlp_proj",
        "single_transformer_blocks.0.attn.to_out",
    ),
    "qwenimage": own(
        "transformer",
        "transformer_blocks.0.attn.to_q",
        "transformer_blocks.0.attn.add_v_proj",
        "transformer_blocks.0.attn.to_out.0",
        "transformer_blocks.0.img_mlp.net.0.proj",
        "transformer_blocks.0.txt_mod.1",
    ),
    "z_image": own(
        "transformer",
        "layers.0.attention.to_q",
        "layers.0.attention.to_out.0",
        "layers.0.feed_forward.w2",
        "noise_refiner.0.attention.to_k",
    ),
    "lumina2": own(
        "transformer",
        *("layers.0.attn.to_q", "layers.0.attn.to_v", "layers.0.attn.to_out.0", "layers.0.feed_forward.linear_1"),
    ),
    "wan": own("transformer", "blocks.0.attn1.to_q", "blocks.0.attn2.to_v", "blocks.0.ffn.net.0.proj"),
    "hunyuan_video": own(
        "transformer",
        "transformer_blocks.0.attn.to_q",
        "transformer_blocks.0.ff_context.net.2",
        "single_transformer_blocks.0.attn.to_v",
        "single_transformer_blocks.0.proj_out",
    ),
    "sana": own(
        "transformer",
        "transformer_blocks.0.attn1.to_q",
        "transformer_blocks.0.attn2.to_out.0",
        "transformer_blocks.0.ff.conv_inverted",
        "transformer_blocks.0.ff.conv_point",
    ),
    "kandinsky5": own(
        "transformer",
        "visual_transformer_blocks.0.self_attention.to_query",
        "visual_transformer_blocks.1.feed_forward.in_layer",
    ),
    "krea2": own(
        "transformer",
        "transformer_blocks.0.attn.to_q",
        "transformer_blocks.0.attn.to_out.0",
        "transformer_blocks.0.ff.down",
    ),
    "cogvideox": own(
        "transformer",
        *("transformer_blocks.0.attn1.to_q", "transformer_blocks.1.attn1.to_out.0", "transformer_blocks.0.ff.net.2"),
    ),
    "ltx_video": own(
        "transformer",
        *("transformer_blocks.0.attn1.to_q", "transformer_blocks.0.attn2.to_k", "transformer_blocks.0.ff.net.2"),
    ),
    "mochi": own("transformer", "transformer_blocks.0.attn1.to_q", "transformer_blocks.0.ff.net.2"),
    "hidream": own(
        "transformer", "double_stream_blocks.0.block.attn1.to_q", "single_stream_blocks.0.block.attn1.to_out"
    ),
    "auraflow": own("transformer", "joint_transformer_blocks.0.attn.to_q", "single_transformer_blocks.0.attn.to_k"),
    "cogview4": own("transformer", "transformer_blocks.0.attn1.to_q", "transformer_blocks.1.ff.net.2"),
    "ernie_image": own("transformer", "layers.0.self_attention.to_q", "layers.0.mlp.linear_fc2"),
}  # fmt: skip

#: Convolutions with kernels, which only UNets have in what trainers adapt.
CONVOLUTIONS: dict[str, tuple[Layer, ...]] = {
    "sd15": own("unet", "down_blocks.0.resnets.0.conv1", "down_blocks.0.downsamplers.0.conv"),
    "sdxl": own("unet", "down_blocks.0.resnets.0.conv1", "up_blocks.0.upsamplers.0.conv"),
}
DEPTHWISE = own("transformer", "transformer_blocks.0.ff.conv_depth")

_LDM, _BLOCK, _SECOND = "input_blocks.4.1", "transformer_blocks.0", "transformer_blocks.1"
_QKV = " ".join(f"transformer_blocks.0.attn.to_{x}" for x in "qkv")
_ADDED_QKV = " ".join(f"transformer_blocks.0.attn.add_{x}_proj" for x in "qkv")
_QKV_MLP = " ".join(f"single_transformer_blocks.0.{x}" for x in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"))
_MMDIT = "joint_blocks.0.x_block"
#: By family: the denoiser's layers under the names of the model's original implementation.
#: SDXL, SD3, FLUX, Lumina, Anima: sd-scripts library/*_models.py and sdxl_original_unet.py. Wan, HunyuanVideo,
#: Ideogram 4: musubi-tuner. FLUX.2, Krea 2: OneTrainer's diffusers_to_original.
ORIGINAL: dict[str, tuple[Layer, ...]] = {
    "sdxl": _renamed(
        (f"input_blocks.7.1.{_SECOND}.attn1.to_q", f"down_blocks.2.attentions.0.{_SECOND}.attn1.to_q"),
        (f"{_LDM}.{_BLOCK}.ff.net.0.proj", f"{_SD_BLOCK}.{_BLOCK}.ff.net.0.proj"),
        ("middle_block.1.proj_in", "mid_block.attentions.0.proj_in"),
        (f"output_blocks.1.1.{_BLOCK}.attn2.to_k", f"up_blocks.0.attentions.1.{_BLOCK}.attn2.to_k"),
        ("label_emb.0.0", "add_embedding.linear_1"),
        component="unet",
    ),
    "sd3": (
        *_renamed(
            (f"{_MMDIT}.attn.qkv", _QKV),
            ("joint_blocks.0.context_block.attn.qkv", _ADDED_QKV),
            (f"{_MMDIT}.attn.proj", "transformer_blocks.0.attn.to_out.0"),
            (f"{_MMDIT}.mlp.fc1", "transformer_blocks.0.ff.net.0.proj"),
            (f"{_MMDIT}.adaLN_modulation.1", "transformer_blocks.0.norm1.linear"),
        ),
        Layer("transformer", "final_layer.adaLN_modulation.1", ("norm_out.linear",), swapped=True),
    ),
    "flux": (
        *_renamed(
            ("double_blocks.0.img_attn.qkv", _QKV),
            ("double_blocks.0.txt_attn.qkv", _ADDED_QKV),
            ("double_blocks.0.img_attn.proj", "transformer_blocks.0.attn.to_out.0"),
            ("double_blocks.0.txt_mlp.0", "transformer_blocks.0.ff_context.net.0.proj"),
            ("single_blocks.0.linear1", _QKV_MLP),
            ("single_blocks.0.linear2", "single_transformer_blocks.0.proj_out"),
            ("double_blocks.0.img_mod.lin", "transformer_blocks.0.norm1.linear"),
        ),
        Layer("transformer", "final_layer.adaLN_modulation.1", ("norm_out.linear",), swapped=True),
    ),
    "flux2": _renamed(
        ("double_blocks.0.img_attn.qkv", _QKV),
        ("double_blocks.0.txt_attn.proj", "transformer_blocks.0.attn.to_add_out"),
        ("double_blocks.0.img_mlp.0", "transformer_blocks.0.ff.linear_in"),
        ("single_blocks.0.linear1", "single_transformer_blocks.0.attn.to_qkv_mlp_proj"),
        ("single_blocks.0.linear2", "single_transformer_blocks.0.attn.to_out"),
    ),
    "lumina2": _renamed(
        ("layers.0.attention.qkv", " ".join(f"layers.0.attn.to_{x}" for x in "qkv")),
        ("layers.0.attention.out", "layers.0.attn.to_out.0"),
        ("layers.0.feed_forward.w1", "layers.0.feed_forward.linear_1"),
        ("layers.0.feed_forward.w2", "layers.0.feed_forward.linear_2"),
        ("layers.0.adaLN_modulation.1", "layers.0.norm1.linear"),
    ),
    "wan": _renamed(
        ("blocks.0.self_attn.q", "blocks.0.attn1.to_q"),
        ("blocks.0.self_attn.o", "blocks.0.attn1.to_out.0"),
        ("blocks.1.cross_attn.v", "blocks.1.attn2.to_v"),
        ("blocks.0.ffn.0", "blocks.0.ffn.net.0.proj"),
        ("blocks.0.ffn.2", "blocks.0.ffn.net.2"),
    ),
    "hunyuan_video": _renamed(
        ("double_blocks.0.img_attn_qkv", _QKV),
        ("double_blocks.0.txt_attn_proj", "transformer_blocks.0.attn.to_add_out"),
        ("double_blocks.0.img_mlp.fc1", "transformer_blocks.0.ff.net.0.proj"),
        ("single_blocks.0.linear1", _QKV_MLP),
        ("single_blocks.0.linear2", "single_transformer_blocks.0.proj_out"),
    ),
    "anima": _renamed(
        ("blocks.0.self_attn.q_proj", "transformer_blocks.0.attn1.to_q"),
        ("blocks.1.cross_attn.k_proj", "transformer_blocks.1.attn2.to_k"),
        ("blocks.0.cross_attn.output_proj", "transformer_blocks.0.attn2.to_out.0"),
        ("blocks.0.mlp.layer1", "transformer_blocks.0.ff.net.0.proj"),
    ),
    "ideogram4": _renamed(
        ("layers.0.attention.qkv", "layers.0.attention.to_q layers.0.attention.to_k layers.0.attention.to_v"),
        ("layers.0.attention.o", "layers.0.attention.to_out.0"),
        ("layers.0.feed_forward.w3", "layers.0.feed_forward.w3"),
    ),
    "krea2": _renamed(
        ("blocks.0.attn.wq", "transformer_blocks.0.attn.to_q"),
        ("blocks.0.attn.wo", "transformer_blocks.0.attn.to_out.0"),
        ("blocks.0.mlp.down", "transformer_blocks.0.ff.down"),
        ("txtfusion.refiner_blocks.0.attn.wk", "text_fusion.refiner_blocks.0.attn.to_k"),
    ),
}  # fmt: skip
#: Both of Wan 2.2's models in ai-toolkit's DualWanTransformer3DModel.
WAN_TWO = _renamed(
    ("transformer_1.blocks.0.self_attn.q", "blocks.0.attn1.to_q"),
    ("transformer_1.blocks.1.ffn.0", "blocks.1.ffn.net.0.proj"),
) + _renamed(
    ("transformer_2.blocks.0.self_attn.q", "blocks.0.attn1.to_q"),
    ("transformer_2.blocks.0.cross_attn.o", "blocks.0.attn2.to_out.0"),
    component="transformer_2",
)
#: Convolutions under the original names, for the same.
ORIGINAL_CONVOLUTIONS = {
    "sdxl": _renamed(
        ("input_blocks.1.0.in_layers.2", "down_blocks.0.resnets.0.conv1"),
        ("output_blocks.2.2.conv", "up_blocks.0.upsamplers.0.conv"),
        component="unet",
    ),
}
