"""Every family in small: configurations from which the real classes build models of a few thousand parameters.

Sizes are the smallest that the classes allow. What a forward of each takes is told beside its configuration.
"""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.bases import CONFIGS
from tests.bases import FAMILIES as WHOLE
from tests.bases import forward as whole_forward

#: Draws a normal tensor of this shape.
Draw = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Tiny:
    """One model: `library.model_class(**config)`, and the inputs of its forward."""

    model_class: str
    config: Mapping[str, Any]
    inputs: Callable[[Draw], Mapping[str, Any]] | None = None  # None: tests.bases knows them
    library: str = "diffusers"


@dataclass(frozen=True)
class Case:
    """A pipeline class of a family, and those of its models that can be adapted."""

    pipeline: str
    models: Mapping[str, Tiny]

    def write(self, folder: Path) -> Path:
        """The folder that a base is read from: configurations, no weights."""
        index: dict[str, Any] = {"_class_name": self.pipeline}
        for name, tiny in self.models.items():
            index[name] = [tiny.library, tiny.model_class]
            config = self.build(name).config.to_dict() if tiny.library == "transformers" else dict(tiny.config)
            (folder / name).mkdir(parents=True)
            (folder / name / "config.json").write_text(json.dumps(config))
        # A modular pipeline's index has where to load a component from as a third entry.
        modular = "Modular" in self.pipeline
        if modular:
            index |= {name: [*index[name], {"subfolder": name}] for name in self.models}
        (folder / ("modular_model_index.json" if modular else "model_index.json")).write_text(json.dumps(index))
        return folder

    def build(self, name: str) -> Any:
        """A model with random weights, the same ones each time, and its own."""
        tiny = self.models[name]
        cls = getattr(importlib.import_module(_MODULES.get(tiny.library, tiny.library)), tiny.model_class)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(list(self.models).index(name))
            if tiny.library == "transformers":
                return cls(cls.config_class.from_dict(dict(tiny.config))).eval()
            model = cls.from_config(dict(tiny.config)).eval()
            # Some start at zero (adaLN-Zero, scale-shift tables), and nothing would reach their outputs.
            for parameter in model.parameters():
                if parameter.numel() and not parameter.any():
                    torch.nn.init.normal_(parameter, std=0.2)
        return model

    def forward(self, name: str, model: torch.nn.Module) -> torch.Tensor:
        """All floating point outputs of the model, in one row."""
        tiny = self.models[name]
        if tiny.inputs is None:
            return whole_forward(model).flatten()
        generator = torch.Generator().manual_seed(1)
        inputs = tiny.inputs(lambda *shape: torch.randn(shape, generator=generator))
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "In CPU autocast, but the target dtype")  # Mochi's, of fp32
            output = model(**inputs)
        return torch.cat([tensor.float().flatten() for tensor in _tensors(output)])


_MODULES = {"ltx2": "diffusers.pipelines.ltx2"}


def _tensors(output: Any) -> list[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        return [output] if output.is_floating_point() else []
    parts = output.values() if isinstance(output, Mapping) else output
    return [tensor for part in parts if part is not None for tensor in _tensors(part)]


def _whole(family: str) -> Case:
    """One of the pipelines that other tests use: its models that adapters may change, with few blocks."""
    from adapterline.families import family_named

    index = json.loads((CONFIGS / family / "model_index.json").read_text())
    models = {}
    for component in family_named(family).components:
        library, model_class = index[component.name]
        config = json.loads((CONFIGS / family / component.name / "config.json").read_text())
        if family == "sdxl" and component.name == "unet":
            config["transformer_layers_per_block"] = [1, 1, 2]
        models[component.name] = Tiny(model_class, config, library=library)
    return Case(index["_class_name"], models)


def _grid(*sizes: int) -> torch.Tensor:
    return torch.cartesian_prod(*(torch.arange(size) for size in sizes)).float()


def _number(value: float) -> torch.Tensor:
    return torch.tensor([value])


def _video(draw: Draw, channels: int = 4, text: int = 16) -> dict[str, Any]:
    """What the video transformers of most families take."""
    return {
        "hidden_states": draw(1, channels, 2, 4, 4),
        "encoder_hidden_states": draw(1, 6, text),
        "timestep": torch.tensor([400]),
    }


_WAN = {
    "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4,
    "text_dim": 16, "freq_dim": 16, "ffn_dim": 32, "num_layers": 2, "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads", "rope_max_seq_len": 32,
}  # fmt: skip
_COSMOS = {
    "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 2,
    "mlp_ratio": 2, "text_embed_dim": 16, "adaln_lora_dim": 4, "max_size": (4, 32, 32), "patch_size": (1, 2, 2),
    "rope_scale": (2.0, 1.0, 1.0), "concat_padding_mask": False, "extra_pos_embed_type": None,
}  # fmt: skip
_MINIMAX = {
    "num_attention_heads": 2, "attention_head_dim": 16, "hidden_size": 24, "num_layers": 1, "num_refiner_layers": 1,
    "ffn_dim": 32, "in_channels": 4, "audio_in_channels": 6, "patch_size": (1, 2, 2), "text_dim": 8, "freq_dim": 8,
    "time_embed_hidden_dim": 24, "time_embed_dim": 16, "rope_freq_dim": 2,
}  # fmt: skip


def _minimax(draw: Draw) -> dict[str, Any]:
    text, audio, video = torch.arange(4), torch.arange(4, 10), torch.arange(10, 18)
    tags, steps = torch.zeros(18, dtype=torch.long), torch.zeros(18, dtype=torch.long)
    tags[text], tags[audio], steps[audio] = 1, 2, 1
    positions = torch.zeros(18, 3)
    positions[:, 0] = torch.arange(18)
    return {
        "hidden_states": draw(1, 8, 16),
        "audio_hidden_states": draw(1, 6, 6),
        "encoder_hidden_states": draw(1, 4, 8),
        "timestep": torch.tensor([0.7, 0.3]),
        "timestep_indices": steps,
        "token_tags": tags,
        "position_ids": positions,
        "video_indices": video,
        "audio_indices": audio,
        "text_indices": text,
    }


def _ideogram(draw: Draw) -> dict[str, Any]:
    from diffusers.models.transformers.transformer_ideogram4 import (
        IMAGE_POSITION_OFFSET,
        LLM_TOKEN_INDICATOR,
        OUTPUT_IMAGE_INDICATOR,
    )

    positions = torch.cat([torch.arange(4)[:, None].repeat(1, 3), _grid(1, 2, 2).long() + IMAGE_POSITION_OFFSET])
    return {
        "hidden_states": torch.cat([torch.zeros(1, 4, 16), draw(1, 4, 16)], 1),
        "encoder_hidden_states": torch.cat([draw(1, 4, 16), torch.zeros(1, 4, 16)], 1),
        "timestep": _number(0.5),
        "position_ids": positions[None],
        "segment_ids": torch.ones(1, 8, dtype=torch.long),
        "indicator": torch.tensor([[LLM_TOKEN_INDICATOR] * 4 + [OUTPUT_IMAGE_INDICATOR] * 4]),
    }


def _helios(draw: Draw) -> dict[str, Any]:
    return _video(draw) | {
        "indices_hidden_states": torch.ones(1, 2),
        "indices_latents_history_short": torch.ones(1, 1),
        "indices_latents_history_mid": torch.ones(1, 1),
        "indices_latents_history_long": torch.ones(1, 4),
        "latents_history_short": draw(1, 4, 1, 8, 8),
        "latents_history_mid": draw(1, 4, 1, 8, 8),
        "latents_history_long": draw(1, 4, 4, 8, 8),
        "hidden_states": draw(1, 4, 2, 8, 8),
    }


def _proteina(draw: Draw) -> dict[str, Any]:
    return {
        "bb_ca": draw(1, 5, 3),
        "local_latents": draw(1, 5, 4),
        "bb_ca_time": _number(0.3),
        "local_latents_time": _number(0.4),
        "padding_mask": torch.ones(1, 5, dtype=torch.bool),
        "token_type": torch.zeros(1, 5, dtype=torch.long),
        "conditioning": {
            "is_in_context_conditioning": torch.zeros(1, 5, dtype=torch.bool),
            "supports_local_latent": torch.ones(1, 5, dtype=torch.bool),
        },
    }


CASES: dict[str, Case] = {
    **{family: _whole(family) for family in WHOLE},
    "auraflow": Case("AuraFlowPipeline", {"transformer": Tiny(
        "AuraFlowTransformer2DModel",
        {"sample_size": 8, "patch_size": 2, "in_channels": 4, "num_mmdit_layers": 1, "num_single_dit_layers": 1,
         "attention_head_dim": 8, "num_attention_heads": 4, "caption_projection_dim": 32, "joint_attention_dim": 32,
         "out_channels": 4, "pos_embed_max_size": 64},
        lambda draw: {"hidden_states": draw(1, 4, 8, 8), "encoder_hidden_states": draw(1, 6, 32),
                      "timestep": _number(0.5)},
    )}),
    "amused": Case("AmusedPipeline", {"transformer": Tiny(
        "UVit2DModel",
        {"hidden_size": 32, "cond_embed_dim": 32, "micro_cond_encode_dim": 2, "micro_cond_embed_dim": 10,
         "encoder_hidden_size": 32, "vocab_size": 32, "codebook_size": 32, "in_channels": 32, "block_out_channels": 32,
         "num_res_blocks": 1, "downsample": True, "upsample": True, "block_num_heads": 1, "num_hidden_layers": 1,
         "num_attention_heads": 1, "intermediate_size": 32},
        lambda draw: {"input_ids": torch.arange(16).reshape(1, 4, 4), "encoder_hidden_states": draw(1, 6, 32),
                      "pooled_text_emb": draw(1, 32), "micro_conds": draw(1, 5)},
    )}),
    "cogvideox": Case("CogVideoXPipeline", {"transformer": Tiny(
        "CogVideoXTransformer3DModel",
        {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "out_channels": 4, "time_embed_dim": 2,
         "text_embed_dim": 8, "num_layers": 2, "sample_width": 8, "sample_height": 8, "sample_frames": 8,
         "patch_size": 2, "temporal_compression_ratio": 4, "max_text_seq_length": 8},
        lambda draw: {"hidden_states": draw(1, 1, 4, 8, 8), "encoder_hidden_states": draw(1, 8, 8),
                      "timestep": torch.tensor([400])},
    )}),
    "cogview4": Case("CogView4Pipeline", {"transformer": Tiny(
        "CogView4Transformer2DModel",
        {"patch_size": 2, "in_channels": 4, "num_layers": 2, "attention_head_dim": 4, "num_attention_heads": 4,
         "out_channels": 4, "text_embed_dim": 8, "time_embed_dim": 8, "condition_dim": 4},
        lambda draw: {"hidden_states": draw(1, 4, 8, 8), "encoder_hidden_states": draw(1, 8, 8),
                      "timestep": torch.tensor([400]), "original_size": torch.tensor([[64.0, 64.0]]),
                      "target_size": torch.tensor([[64.0, 64.0]]), "crop_coords": torch.zeros(1, 2)},
    )}),
    "mochi": Case("MochiPipeline", {"transformer": Tiny(
        "MochiTransformer3DModel",
        {"patch_size": 2, "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2,
         "pooled_projection_dim": 16, "in_channels": 4, "out_channels": None, "qk_norm": "rms_norm",
         "text_embed_dim": 16, "time_embed_dim": 4, "activation_fn": "swiglu", "max_sequence_length": 16},
        lambda draw: _video(draw) | {"encoder_attention_mask": torch.ones(1, 6, dtype=torch.bool)},
    )}),
    "ltx_video": Case("LTXPipeline", {"transformer": Tiny(
        "LTXVideoTransformer3DModel",
        {"in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 8,
         "cross_attention_dim": 16, "num_layers": 1, "qk_norm": "rms_norm_across_heads", "caption_channels": 16},
        lambda draw: {"hidden_states": draw(1, 32, 4), "encoder_hidden_states": draw(1, 6, 16),
                      "timestep": torch.tensor([400]), "encoder_attention_mask": torch.ones(1, 6, dtype=torch.bool),
                      "num_frames": 2, "height": 4, "width": 4},
    )}),
    "ltx2": Case("LTX2Pipeline", {
        "transformer": Tiny(
            "LTX2VideoTransformer3DModel",
            {"in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 8,
             "cross_attention_dim": 16, "audio_in_channels": 4, "audio_out_channels": 4,
             "audio_num_attention_heads": 2, "audio_attention_head_dim": 4, "audio_cross_attention_dim": 8,
             "num_layers": 1, "caption_channels": 16, "rope_double_precision": False},
            lambda draw: {"hidden_states": draw(1, 32, 4), "audio_hidden_states": draw(1, 3, 4),
                          "encoder_hidden_states": draw(1, 6, 16), "audio_encoder_hidden_states": draw(1, 6, 16),
                          "timestep": _number(400.0), "num_frames": 2, "height": 4, "width": 4,
                          "audio_num_frames": 3, "fps": 25.0,
                          "encoder_attention_mask": torch.ones(1, 6, dtype=torch.bool)},
        ),
        "connectors": Tiny(
            "LTX2TextConnectors",
            {"caption_channels": 16, "text_proj_in_factor": 2, "video_connector_num_attention_heads": 2,
             "video_connector_attention_head_dim": 8, "video_connector_num_layers": 1,
             "video_connector_num_learnable_registers": None, "audio_connector_num_attention_heads": 2,
             "audio_connector_attention_head_dim": 8, "audio_connector_num_layers": 1,
             "audio_connector_num_learnable_registers": None, "connector_rope_base_seq_len": 32,
             "rope_double_precision": False, "rope_type": "split"},
            lambda draw: {"text_encoder_hidden_states": draw(1, 6, 16, 2), "attention_mask": torch.ones(1, 6)},
            library="ltx2",
        ),
    }),
    "sana": Case("SanaPipeline", {"transformer": Tiny(
        "SanaTransformer2DModel",
        {"patch_size": 1, "in_channels": 4, "out_channels": 4, "num_layers": 1, "attention_head_dim": 4,
         "num_attention_heads": 2, "num_cross_attention_heads": 2, "cross_attention_head_dim": 4,
         "cross_attention_dim": 8, "caption_channels": 8, "sample_size": 8, "mlp_ratio": 1.0},
        lambda draw: {"hidden_states": draw(1, 4, 8, 8), "encoder_hidden_states": draw(1, 6, 8),
                      "timestep": torch.tensor([400])},
    )}),
    "helios": Case("HeliosPipeline", {"transformer": Tiny(
        "HeliosTransformer3DModel",
        {"patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4,
         "out_channels": 4, "text_dim": 16, "freq_dim": 16, "ffn_dim": 32, "num_layers": 1, "cross_attn_norm": True,
         "qk_norm": "rms_norm_across_heads", "rope_dim": (4, 4, 4), "has_multi_term_memory_patch": True,
         "guidance_cross_attn": True, "zero_history_timestep": True, "is_amplify_history": False},
        _helios,
    )}),
    "hunyuan_video": Case("HunyuanVideoPipeline", {"transformer": Tiny(
        "HunyuanVideoTransformer3DModel",
        {"in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 10, "num_layers": 1,
         "num_single_layers": 1, "num_refiner_layers": 1, "patch_size": 1, "patch_size_t": 1, "guidance_embeds": True,
         "text_embed_dim": 16, "pooled_projection_dim": 8, "rope_axes_dim": (2, 4, 4), "image_condition_type": None},
        lambda draw: _video(draw) | {"pooled_projections": draw(1, 8), "encoder_attention_mask": torch.ones(1, 6),
                                     "guidance": torch.tensor([6000])},
    )}),
    "lumina2": Case("Lumina2Pipeline", {"transformer": Tiny(
        "Lumina2Transformer2DModel",
        {"sample_size": 8, "patch_size": 2, "in_channels": 4, "hidden_size": 24, "num_layers": 2,
         "num_refiner_layers": 1, "num_attention_heads": 3, "num_kv_heads": 1, "multiple_of": 2,
         "axes_dim_rope": (4, 2, 2), "axes_lens": (128, 128, 128), "cap_feat_dim": 32},
        lambda draw: {"hidden_states": draw(1, 4, 8, 8), "encoder_hidden_states": draw(1, 6, 32),
                      "timestep": _number(0.4), "encoder_attention_mask": torch.ones(1, 6, dtype=torch.bool)},
    )}),
    "kandinsky5": Case("Kandinsky5T2VPipeline", {"transformer": Tiny(
        "Kandinsky5Transformer3DModel",
        {"in_visual_dim": 4, "in_text_dim": 16, "in_text_dim2": 8, "time_dim": 16, "out_visual_dim": 4,
         "patch_size": (1, 2, 2), "model_dim": 16, "ff_dim": 32, "num_text_blocks": 1, "num_visual_blocks": 2,
         "axes_dims": (2, 2, 4)},
        lambda draw: {"hidden_states": draw(1, 1, 4, 4, 4), "encoder_hidden_states": draw(1, 6, 16),
                      "timestep": _number(400.0), "pooled_projections": draw(1, 8),
                      "visual_rope_pos": [torch.arange(1), torch.arange(2), torch.arange(2)],
                      "text_rope_pos": torch.arange(6)},
    )}),
    "wan": Case("WanPipeline", {
        "transformer": Tiny("WanTransformer3DModel", _WAN, _video),
        "transformer_2": Tiny("WanTransformer3DModel", _WAN, _video),
    }),
    "skyreels_v2": Case("SkyReelsV2Pipeline", {"transformer": Tiny("SkyReelsV2Transformer3DModel", _WAN, _video)}),
    "hidream": Case("HiDreamImagePipeline", {"transformer": Tiny(
        "HiDreamImageTransformer2DModel",
        {"patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 1, "num_single_layers": 1,
         "attention_head_dim": 8, "num_attention_heads": 4, "caption_channels": [8, 4], "text_emb_dim": 8,
         "num_routed_experts": 2, "num_activated_experts": 2, "axes_dims_rope": (4, 2, 2), "max_resolution": (32, 32),
         "llama_layers": (0, 1), "force_inference_output": True},
        lambda draw: {"hidden_states": draw(1, 4, 8, 8), "encoder_hidden_states_t5": draw(1, 6, 8),
                      "encoder_hidden_states_llama3": draw(2, 1, 6, 4), "pooled_embeds": draw(1, 8),
                      "timesteps": torch.tensor([400])},
    )}),
    "krea2": Case("Krea2Pipeline", {"transformer": Tiny(
        "Krea2Transformer2DModel",
        {"in_channels": 16, "num_layers": 1, "attention_head_dim": 8, "num_attention_heads": 4,
         "num_key_value_heads": 2, "intermediate_size": 32, "timestep_embed_dim": 8, "text_hidden_dim": 16,
         "num_text_layers": 3, "text_num_attention_heads": 2, "text_num_key_value_heads": 1,
         "text_intermediate_size": 16, "num_layerwise_text_blocks": 1, "num_refiner_text_blocks": 1,
         "axes_dims_rope": (4, 2, 2), "rope_theta": 1000.0},
        lambda draw: {"hidden_states": draw(1, 4, 16), "encoder_hidden_states": draw(1, 4, 3, 16),
                      "timestep": _number(0.5), "position_ids": torch.cat([torch.zeros(4, 3), _grid(1, 2, 2)])},
    )}),
    "z_image": Case("ZImagePipeline", {"transformer": Tiny(
        "ZImageTransformer2DModel",
        {"all_patch_size": (2,), "all_f_patch_size": (1,), "in_channels": 16, "dim": 16, "n_layers": 1,
         "n_refiner_layers": 1, "n_heads": 1, "n_kv_heads": 2, "cap_feat_dim": 16, "axes_dims": [8, 4, 4],
         "axes_lens": [256, 32, 32]},
        lambda draw: {"x": [draw(16, 1, 4, 4)], "cap_feats": [draw(6, 16)], "t": _number(0.3)},
    )}),
    "anima": Case("AnimaModularPipeline", {
        "transformer": Tiny("CosmosTransformer3DModel", _COSMOS, _video),
        "text_conditioner": Tiny(
            "AnimaTextConditioner",
            {"source_dim": 16, "target_dim": 16, "model_dim": 16, "num_layers": 1, "num_attention_heads": 4,
             "target_vocab_size": 32, "min_sequence_length": 8},
            lambda draw: {"source_hidden_states": draw(1, 5, 16), "target_input_ids": torch.arange(4)[None]},
        ),
    }),
    "flux3": Case("Flux3ModularPipeline", {"transformer": Tiny(
        "Flux3Transformer2DModel",
        {"in_channels": 8, "cond_in_channels": 8, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 8,
         "num_attention_heads": 2, "joint_attention_dim": 16, "timestep_channels": 16, "mlp_ratio": 2.0,
         "axes_dims_rope": (2, 2, 2, 2)},
        lambda draw: {"hidden_states": draw(1, 4, 8), "encoder_hidden_states": draw(1, 6, 16),
                      "timestep": _number(0.5), "img_ids": _grid(1, 2, 2, 1), "txt_ids": _grid(1, 1, 1, 6),
                      "image_cond_hidden_states": draw(1, 4, 8), "image_cond_ids": _grid(1, 2, 2, 1)},
    )}),
    "bria_fibo2": Case("BriaFibo2Pipeline", {"transformer": Tiny(
        "BriaFibo2Transformer2DModel",
        {"in_channels": 4, "patch_size": 2, "dim": 32, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2,
         "cap_feat_dim": 8, "injection_layer_ids": (1,), "perceiver_num_layers": 1, "min_num_gist_tokens": 2,
         "max_num_gist_tokens": 4, "gist_step": 2, "gist_min_text_len": 2, "gist_max_text_len": 8,
         "axes_dims": (4, 6, 6), "axes_lens": (32, 16, 16)},
        lambda draw: {"hidden_states": draw(1, 4, 4, 4), "timestep": _number(0.5),
                      "encoder_hidden_states": draw(1, 2, 6, 8)},
    )}),
    "ideogram4": Case("Ideogram4Pipeline", {"transformer": Tiny(
        "Ideogram4Transformer2DModel",
        {"in_channels": 16, "num_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2,
         "intermediate_size": 32, "adaln_dim": 16, "llm_features_dim": 16, "rope_theta": 10_000,
         "mrope_section": (2, 1, 1)},
        _ideogram,
    )}),
    "ernie_image": Case("ErnieImagePipeline", {"transformer": Tiny(
        "ErnieImageTransformer2DModel",
        {"hidden_size": 16, "num_attention_heads": 1, "num_layers": 1, "ffn_hidden_size": 16, "in_channels": 16,
         "out_channels": 16, "patch_size": 1, "text_in_dim": 16, "rope_theta": 256, "rope_axes_dim": (8, 4, 4)},
        lambda draw: {"hidden_states": draw(1, 16, 4, 4), "timestep": _number(1.0), "text_bth": draw(1, 6, 16),
                      "text_lens": torch.tensor([6])},
    )}),
    "cosmos": Case("Cosmos2_5_PredictBasePipeline", {
        "transformer": Tiny("CosmosTransformer3DModel", _COSMOS, _video)
    }),
    "ace_step": Case("AceStepPipeline", {"transformer": Tiny(
        "AceStepTransformer1DModel",
        {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "head_dim": 8, "in_channels": 24, "audio_acoustic_hidden_dim": 8, "patch_size": 2,
         "sliding_window": 16},
        lambda draw: {"hidden_states": draw(1, 8, 8), "timestep": _number(0.5), "timestep_r": _number(0.2),
                      "encoder_hidden_states": draw(1, 6, 32), "context_latents": draw(1, 8, 16)},
    )}),
    "minimax_h3": Case("MiniMaxH3ModularPipeline", {
        "transformer": Tiny("MiniMaxH3Transformer3DModel", _MINIMAX, _minimax),
        "transformer_ref": Tiny("MiniMaxH3Transformer3DModel", _MINIMAX, _minimax),
    }),
    "rfd4_proteina": Case("RFD4ProteinaPipeline", {"transformer": Tiny(
        "RFD4ProteinaTransformer",
        {"nlayers": 2, "token_dim": 16, "nheads": 2, "dim_cond": 8, "pair_repr_dim": 8, "latent_dim": 4,
         "token_type_emb_dim": 4, "cath_emb_dim": 4, "t_emb_dim": 8, "seq_sep_dim": 8, "xt_pair_dist_dim": 6,
         "tri_mult_c": 8, "feats_seq": ("xt_bb_ca", "xt_local_latents", "token_type"),
         "feats_cond_seq": ("time_emb_bb_ca", "time_emb_local_latents"), "feats_pair_repr": ("xt_bb_ca_pair_dists",)},
        _proteina,
    )}),
}  # fmt: skip
