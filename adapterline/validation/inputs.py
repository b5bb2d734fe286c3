"""What a model is fed to see what it computes: small, drawn from a seed, shaped by the model's own configuration.

Data: a line an argument of `forward`, a batch of one. A size is a number or the name of a field of the configuration
("caption_channels.0" is the first of a list). They are not what a pipeline would pass, only what the class takes: a
few latents, a few tokens. Classes that are not here are not run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_SEED = 20_250_101
_TEXT = 7  # tokens

#: A number, the name of a field, or what is computed from the configuration.
Size = int | str | Callable[[Any], int]
#: One argument, from a generator and a configuration.
Make = Callable[["torch.Generator", Any], Any]


def inputs_for(model: Any) -> dict[str, Any] | None:
    """The arguments of a forward of `model`, the same each time, on the CPU in float32; None if its class is unknown.

    What the configuration does not have (a size, a field) is an AttributeError, TypeError or IndexError.
    """
    import torch

    makers = INPUTS.get(type(model).__name__)
    if makers is None:
        return None
    return _made(makers, torch.Generator().manual_seed(_SEED), model.config)


def _made(makers: Mapping[str, Make], generator: torch.Generator, config: Any) -> dict[str, Any]:
    return {name: make(generator, config) for name, make in makers.items()}


# --- arguments --------------------------------------------------------------------------------------------------------


def _normal(*sizes: Size) -> Make:
    """[1, *sizes] of normal numbers."""

    def make(generator: torch.Generator, config: Any) -> Any:
        import torch

        return torch.randn((1, *(_size(size, config) for size in sizes)), generator=generator)

    return make


def _number(*values: float) -> Make:
    """A vector of these; whole numbers stay whole."""

    def make(generator: torch.Generator, config: Any) -> Any:
        import torch

        return torch.tensor(values)

    return make


def _ones(*sizes: int, like: str = "bool") -> Make:
    """A mask [1, *sizes] that hides nothing."""

    def make(generator: torch.Generator, config: Any) -> Any:
        import torch

        return torch.ones((1, *sizes), dtype=getattr(torch, like))

    return make


def _grid(*sizes: int, batch: bool = False, whole: bool = False) -> Make:
    """Positions [prod(sizes), len(sizes)], with a batch in front if asked for."""

    def make(generator: torch.Generator, config: Any) -> Any:
        import torch

        grid = torch.cartesian_prod(*(torch.arange(size) for size in sizes)).reshape(-1, len(sizes))
        grid = grid if whole else grid.float()
        return grid[None] if batch else grid

    return make


def _fixed(value: Any) -> Make:
    return lambda generator, config: value


def _if(field: str, make: Make) -> Make:
    """None where the configuration's field is empty or absent."""
    return lambda generator, config: make(generator, config) if getattr(config, field, None) else None


def _each(**makers: Make) -> Make:
    """A dictionary of arguments."""
    return lambda generator, config: _made(makers, generator, config)


def _list(*makers: Make) -> Make:
    return lambda generator, config: [make(generator, config) for make in makers]


def _unbatched(make: Make) -> Make:
    return lambda generator, config: make(generator, config)[0]


def _stack(*makers: Make, dim: int = 0) -> Make:
    def make(generator: torch.Generator, config: Any) -> Any:
        import torch

        return torch.cat([each(generator, config) for each in makers], dim)

    return make


def _scaled(make: Make, factor: float) -> Make:
    return lambda generator, config: make(generator, config) * factor


def _arange(count: int) -> Make:
    def make(generator: torch.Generator, config: Any) -> Any:
        import torch

        return torch.arange(count)

    return make


def _prompt(generator: torch.Generator, config: Any) -> Any:
    """CLIP's tokens, [1, positions]: a start, a text, and ends up to the last position, as its tokenizer pads."""
    import torch

    positions = config.max_position_embeddings
    tokens = torch.randint(0, config.vocab_size - 2, (1, positions), generator=generator)
    tokens[0, 0], tokens[0, min(_TEXT + 1, positions - 1) :] = config.bos_token_id, config.eos_token_id
    return tokens


def _size(size: Size, config: Any) -> int:
    if isinstance(size, str):
        name, _, index = size.partition(".")
        value = getattr(config, name)
        return int(value[int(index)] if index else value)
    return size(config) if callable(size) else size


# --- classes ----------------------------------------------------------------------------------------------------------

_CLIP: Mapping[str, Make] = {"input_ids": _prompt}
_VIDEO: Mapping[str, Make] = {
    "hidden_states": _normal("in_channels", 2, 4, 4),
    "encoder_hidden_states": _normal(_TEXT, "text_dim"),
    "timestep": _number(400),
}
#: CLIP's tokens of one image, or of the first and the last frame.
_WAN: Mapping[str, Make] = {
    **_VIDEO,
    "encoder_hidden_states_image": _if(
        "image_dim", _normal(lambda config: getattr(config, "pos_embed_seq_len", None) or 257, "image_dim")
    ),
}
_FLUX: Mapping[str, Make] = {
    "hidden_states": _normal(16, "in_channels"),
    "encoder_hidden_states": _normal(_TEXT, "joint_attention_dim"),
    "timestep": _number(0.5),
}
_FLUX1: Mapping[str, Make] = {**_FLUX, "img_ids": _grid(1, 4, 4), "txt_ids": _scaled(_grid(_TEXT, 1, 1), 0)}


def _pooled_width(config: Any) -> int:
    """Of SDXL's pooled text: what its six sizes leave of the input of `add_embedding`."""
    return int(config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim)


INPUTS: Mapping[str, Mapping[str, Make]] = {
    "CLIPTextModel": _CLIP,
    "CLIPTextModelWithProjection": _CLIP,
    "UNet2DConditionModel": {
        "sample": _normal("in_channels", 16, 16),
        "timestep": _number(17),
        "encoder_hidden_states": _normal(_TEXT, "cross_attention_dim"),
        "added_cond_kwargs": _if(
            "addition_embed_type",
            _each(text_embeds=_normal(_pooled_width), time_ids=_scaled(_ones(6, like="float32"), 64)),
        ),
    },
    "SD3Transformer2DModel": {
        "hidden_states": _normal("in_channels", 16, 16),
        "encoder_hidden_states": _normal(_TEXT, "joint_attention_dim"),
        "pooled_projections": _normal("pooled_projection_dim"),
        "timestep": _number(400.0),
    },
    "FluxTransformer2DModel": {
        **_FLUX1,
        "pooled_projections": _normal("pooled_projection_dim"),
        "guidance": _if("guidance_embeds", _number(3.5)),
    },
    "ChromaTransformer2DModel": {**_FLUX1, "attention_mask": _ones(_TEXT + 16)},
    "Flux2Transformer2DModel": {
        **_FLUX,
        "guidance": _if("guidance_embeds", _number(3.5)),
        "img_ids": _grid(1, 4, 4, 1, batch=True, whole=True),
        "txt_ids": _grid(1, 1, 1, _TEXT, batch=True, whole=True),
    },
    "Flux3Transformer2DModel": {
        "hidden_states": _normal(4, "in_channels"),
        "encoder_hidden_states": _normal(_TEXT, "joint_attention_dim"),
        "timestep": _number(0.5),
        "img_ids": _grid(1, 2, 2, 1),
        "txt_ids": _grid(1, 1, 1, _TEXT),
        "image_cond_hidden_states": _normal(4, "cond_in_channels"),
        "image_cond_ids": _grid(1, 2, 2, 1),
    },
    "QwenImageTransformer2DModel": {
        **_FLUX,
        "encoder_hidden_states_mask": _ones(_TEXT, like="int64"),
        "img_shapes": _fixed([[(1, 4, 4)]]),
        "guidance": _if("guidance_embeds", _number(3.5)),
        "additional_t_cond": _if("use_additional_t_cond", _number(0)),
    },
    "ZImageTransformer2DModel": {
        "x": _list(_unbatched(_normal("in_channels", 1, 4, 4))),
        "cap_feats": _list(_unbatched(_normal(_TEXT, "cap_feat_dim"))),
        "t": _number(0.3),
    },
    "Lumina2Transformer2DModel": {
        "hidden_states": _normal("in_channels", 8, 8),
        "encoder_hidden_states": _normal(_TEXT, "cap_feat_dim"),
        "timestep": _number(0.4),
        "encoder_attention_mask": _ones(_TEXT),
    },
    "SanaTransformer2DModel": {
        "hidden_states": _normal("in_channels", 8, 8),
        "encoder_hidden_states": _normal(_TEXT, "caption_channels"),
        "timestep": _number(400),
        "guidance": _if("guidance_embeds", _number(0.45)),
    },
    "AuraFlowTransformer2DModel": {
        "hidden_states": _normal("in_channels", 8, 8),
        "encoder_hidden_states": _normal(_TEXT, "joint_attention_dim"),
        "timestep": _number(0.5),
    },
    "CogView4Transformer2DModel": {
        "hidden_states": _normal("in_channels", 8, 8),
        "encoder_hidden_states": _normal(_TEXT + 1, "text_embed_dim"),
        "timestep": _number(400),
        "original_size": _scaled(_ones(2, like="float32"), 64),
        "target_size": _scaled(_ones(2, like="float32"), 64),
        "crop_coords": _scaled(_ones(2, like="float32"), 0),
    },
    "HiDreamImageTransformer2DModel": {
        "hidden_states": _normal("in_channels", 8, 8),
        "encoder_hidden_states_t5": _normal(_TEXT, "caption_channels.0"),
        "encoder_hidden_states_llama3": lambda generator, config: _normal(
            len(config.llama_layers), 1, _TEXT, config.caption_channels[-1]
        )(generator, config)[0],
        "pooled_embeds": _normal("text_emb_dim"),
        "timesteps": _number(400),
    },
    "Krea2Transformer2DModel": {
        "hidden_states": _normal(4, "in_channels"),
        "encoder_hidden_states": _normal(4, "num_text_layers", "text_hidden_dim"),
        "timestep": _number(0.5),
        "position_ids": _stack(_scaled(_grid(4, 1, 1), 0), _grid(1, 2, 2)),
    },
    "ErnieImageTransformer2DModel": {
        "hidden_states": _normal("in_channels", 4, 4),
        "timestep": _number(1.0),
        "text_bth": _normal(_TEXT, "text_in_dim"),
        "text_lens": _number(_TEXT),
    },
    "BriaFibo2Transformer2DModel": {
        "hidden_states": _normal("in_channels", 4, 4),
        "timestep": _number(0.5),
        "encoder_hidden_states": _normal("n_layers", _TEXT - 1, "cap_feat_dim"),
    },
    "UVit2DModel": {
        "input_ids": lambda generator, config: _arange(16)(generator, config).reshape(1, 4, 4),
        "encoder_hidden_states": _normal(_TEXT, "encoder_hidden_size"),
        "pooled_text_emb": _normal("cond_embed_dim"),
        "micro_conds": _normal(lambda config: config.micro_cond_embed_dim // config.micro_cond_encode_dim),
    },
    "WanTransformer3DModel": _WAN,
    "WanVACETransformer3DModel": {**_WAN, "control_hidden_states": _normal("vace_in_channels", 2, 4, 4)},
    "SkyReelsV2Transformer3DModel": _WAN,
    "HeliosTransformer3DModel": {
        **_VIDEO,
        "hidden_states": _normal("in_channels", 2, 8, 8),
        "indices_hidden_states": _ones(2, like="float32"),
        "indices_latents_history_short": _ones(1, like="float32"),
        "indices_latents_history_mid": _ones(1, like="float32"),
        "indices_latents_history_long": _ones(4, like="float32"),
        "latents_history_short": _normal("in_channels", 1, 8, 8),
        "latents_history_mid": _normal("in_channels", 1, 8, 8),
        "latents_history_long": _normal("in_channels", 4, 8, 8),
    },
    "HunyuanVideoTransformer3DModel": {
        "hidden_states": _normal("in_channels", 2, 4, 4),
        "encoder_hidden_states": _normal(_TEXT, "text_embed_dim"),
        "timestep": _number(400),
        "pooled_projections": _normal("pooled_projection_dim"),
        "encoder_attention_mask": _ones(_TEXT, like="float32"),
        "guidance": _if("guidance_embeds", _number(6000)),
    },
    "CosmosTransformer3DModel": {
        "hidden_states": _normal("in_channels", 2, 4, 4),
        "encoder_hidden_states": _normal(_TEXT, "text_embed_dim"),
        "timestep": _number(400),
        "padding_mask": _if("concat_padding_mask", _ones(1, 4, 4, like="float32")),
    },
    "AnimaTextConditioner": {
        "source_hidden_states": _normal(_TEXT, "source_dim"),
        "target_input_ids": lambda generator, config: _arange(4)(generator, config)[None],
    },
    "LTXVideoTransformer3DModel": {
        "hidden_states": _normal(32, "in_channels"),
        "encoder_hidden_states": _normal(_TEXT, "caption_channels"),
        "timestep": _number(400),
        "encoder_attention_mask": _ones(_TEXT),
        "num_frames": _fixed(2),
        "height": _fixed(4),
        "width": _fixed(4),
    },
    "LTX2VideoTransformer3DModel": {
        "hidden_states": _normal(32, "in_channels"),
        "audio_hidden_states": _normal(3, "audio_in_channels"),
        "encoder_hidden_states": _normal(_TEXT, "caption_channels"),
        "audio_encoder_hidden_states": _normal(_TEXT, "caption_channels"),
        "timestep": _number(400.0),
        "encoder_attention_mask": _ones(_TEXT),
        "num_frames": _fixed(2),
        "height": _fixed(4),
        "width": _fixed(4),
        "audio_num_frames": _fixed(3),
    },
    "CogVideoXTransformer3DModel": {
        "hidden_states": _normal(lambda config: config.patch_size_t or 1, "in_channels", 8, 8),
        "encoder_hidden_states": _normal("max_text_seq_length", "text_embed_dim"),
        "timestep": _number(400),
    },
    "MochiTransformer3DModel": {
        "hidden_states": _normal("in_channels", 2, 4, 4),
        "encoder_hidden_states": _normal(_TEXT, "text_embed_dim"),
        "timestep": _number(400),
        "encoder_attention_mask": _ones(_TEXT),
    },
    "Kandinsky5Transformer3DModel": {
        "hidden_states": _normal(
            1, 4, 4, lambda config: config.in_visual_dim * (2 if config.visual_cond else 1) + bool(config.visual_cond)
        ),
        "encoder_hidden_states": _normal(_TEXT, "in_text_dim"),
        "timestep": _number(400.0),
        "pooled_projections": _normal("in_text_dim2"),
        "visual_rope_pos": _list(_arange(1), _arange(2), _arange(2)),
        "text_rope_pos": _arange(_TEXT),
    },
}
