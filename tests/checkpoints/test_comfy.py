"""What ComfyUI's key names mean."""

from __future__ import annotations

import pytest

from adapterline.checkpoints.dialects.base import DENOISER, Entry
from adapterline.checkpoints.dialects.comfy import Comfy
from adapterline.errors import CheckpointError
from tests.checkpoints.tables import Keys, layer

QKV = "double_blocks.0.img_attn.qkv"


@pytest.mark.parametrize(
    ("key", "entry"),
    [
        (f"diffusion_model.{QKV}.lora_A.weight", Entry(DENOISER, QKV, "a")),
        (f"diffusion_model.{QKV}.lora_up.weight", Entry(DENOISER, QKV, "b")),
        (f"model.diffusion_model.{QKV}.alpha", Entry(DENOISER, QKV, "alpha")),
        (f"diffusion_model.{QKV}.dora_scale", Entry(DENOISER, QKV, "dora_scale")),
        (f"diffusion_model.{QKV}.lokr_w2_a", Entry(DENOISER, QKV, "w2_b")),
        (f"diffusion_model.{QKV}.diff", Entry(DENOISER, QKV, "diff")),
        ("diffusion_model.transformer_1.blocks.0.ffn.0.lora_A.weight", Entry("transformer", "blocks.0.ffn.0", "a")),
        ("diffusion_model.transformer_2.blocks.0.ffn.2.alpha", Entry("transformer_2", "blocks.0.ffn.2", "alpha")),
        ("diffusion_model.transformer_blocks.0.x.lora_A.weight", Entry(DENOISER, "transformer_blocks.0.x", "a")),
        ("text_encoders.clip_l.transformer.text_model.x.lora_B.weight", Entry("clip_l", "text_model.x", "b")),
        ("text_encoders.t5xxl.transformer.encoder.x.lora_A.weight", Entry("t5xxl", "encoder.x", "a")),
        ("text_encoders.qwen25_7b.transformer.model.layers.0.x.lora_A.weight", Entry("qwen25_7b", "layers.0.x", "a")),
        ("lora_te1_text_model_encoder_x.lora_down.weight", Entry("text_encoder", "text_model_encoder_x", "a")),
    ],
)  # fmt: skip
def test_key_has_its_place(key: str, entry: Entry) -> None:
    keys = Keys.of(key, *layer("diffusion_model.other", "lora_A.weight", "lora_B.weight"))
    assert Comfy().entries(keys)[key] == entry


@pytest.mark.parametrize("beside", [f"diffusion_model.{QKV}.weight", "vae.x.lora_A.weight", "bundle_emb.mine.clip_l"])
def test_what_is_no_part_of_a_layer_is_refused_by_name(beside: str) -> None:
    with pytest.raises(CheckpointError, match=beside):
        Comfy().entries(Keys.of(*layer(f"diffusion_model.{QKV}", "lora_A.weight", "lora_B.weight"), beside))


def test_scale_is_alpha_over_rank_and_one_without_alphas() -> None:
    stem = f"diffusion_model.{QKV}"
    plain = Comfy().scale_rule(Keys.of(*layer(stem, "lora_A.weight", "lora_B.weight")), DENOISER)
    assert plain is not None
    assert plain(QKV, 8) == 1.0
    scaled = Keys.of(*layer(stem, "lora_A.weight", "lora_B.weight", "alpha"))
    rule = Comfy().scale_rule(Keys(scaled.tensors, scalar=lambda key: 4.0), DENOISER)
    assert rule is not None
    assert rule(QKV, 8) == 0.5
