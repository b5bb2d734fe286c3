"""Tiny pipelines with random weights for the tests, and the truth about an adapter on them.

`base_configs/{family}` has what makes a pipeline of that family: the real classes with the real module names, in small.
`sd15` and `sdxl` have every transformer block of the real models. `sd15_full` has the real widths too; it is for
skeletons and has neither weights nor the parts that no adapter touches.
"""

from __future__ import annotations

import functools
import importlib
import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import torch

CONFIGS = Path(__file__).parent / "base_configs"
FAMILIES = ("sd15", "sdxl", "sd3", "flux", "flux2", "qwenimage")

#: What a LoraConfig may say beside rank, alpha and targets, for modules of UNets, transformers and text encoders.
VARIANTS: dict[str, dict[str, Any]] = {
    "alpha": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "patterns": {
        "rank_pattern": {"(to_k|k_proj)": 2, r".*\.0\..*(to_v|v_proj)": 3},
        "alpha_pattern": {"(to_v|v_proj)": 1.5, r".*\.0\..*(to_q|q_proj)": 7},
    },
    "bias": {"lora_bias": True},
}

_TEXT_TOKENS = 7


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`base("flux")` is the folder of that family's pipeline, built once a session. Read only."""
    return functools.cache(lambda family: build_pipeline(family, tmp_path_factory.mktemp(family)))


@pytest.fixture(scope="session")
def sd15_base(base: Callable[[str], Path]) -> Path:
    return base("sd15")


# --- pipelines --------------------------------------------------------------------------------------------------------


def build_pipeline(family: str, folder: Path, seed: int = 0) -> Path:
    """Writes the family's pipeline to `folder`, so that `DiffusionPipeline.from_pretrained(folder)` loads it."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for component, cls in _components(CONFIGS / family):
            _build_component(cls, CONFIGS / family / component).save_pretrained(folder / component)
    shutil.copy(CONFIGS / family / "model_index.json", folder)
    return folder


def load_component(folder: Path, component: str) -> Any:
    """One part of a pipeline folder, by itself: a model is in fp32 and eval mode."""
    # A str: peft would write a Path into its model card as a Python object, which it then cannot read.
    return dict(_components(folder))[component].from_pretrained(str(folder / component))


def _components(folder: Path) -> Iterator[tuple[str, Any]]:
    index = json.loads((folder / "model_index.json").read_text())
    for name, entry in index.items():
        if isinstance(entry, list) and entry[0] is not None:
            yield name, getattr(importlib.import_module(entry[0]), entry[1])


def _build_component(cls: Any, configs: Path) -> Any:
    if cls.__name__ in _TOKENIZERS:
        return _TOKENIZERS[cls.__name__]()
    if cls.__module__.startswith("diffusers"):
        return cls.from_config(cls.load_config(configs))
    return cls(cls.config_class.from_pretrained(configs))


def _clip_tokenizer() -> Any:
    from adapterline.demo.base import build_tokenizer

    return build_tokenizer()


def _t5_tokenizer() -> Any:
    from transformers import T5Tokenizer

    return T5Tokenizer()


def _qwen_tokenizer() -> Any:
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    tokens = ["<|endoftext|>", *sorted(ByteLevel.alphabet())]
    return Qwen2Tokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[])


_TOKENIZERS = {"CLIPTokenizer": _clip_tokenizer, "T5Tokenizer": _t5_tokenizer, "Qwen2Tokenizer": _qwen_tokenizer}


# --- what a model computes --------------------------------------------------------------------------------------------


def forward(model: torch.nn.Module, seed: int = 0) -> torch.Tensor:
    """The model's main output on a random input that the seed and its config determine, in fp32.

    Of a CLIP text encoder: the last hidden state and, where it has one, the projection, in one row.
    """
    import torch

    draw = _Draw(torch.Generator().manual_seed(seed), next(model.parameters()).dtype)
    inputs = _INPUTS[type(model).__name__](draw, model.config)
    with torch.no_grad():
        output = model.eval()(**inputs)
    if hasattr(output, "sample"):
        return output.sample.float()
    parts = [output.last_hidden_state, getattr(output, "text_embeds", None)]
    return torch.cat([part.float().flatten() for part in parts if part is not None])


@dataclass(frozen=True)
class _Draw:
    generator: torch.Generator
    dtype: torch.dtype

    def normal(self, *shape: int) -> torch.Tensor:
        import torch

        return torch.randn(shape, generator=self.generator).to(self.dtype)

    def text(self, width: int) -> torch.Tensor:
        return self.normal(1, _TEXT_TOKENS, width)

    def tokens(self, count: int, vocabulary: int) -> torch.Tensor:
        import torch

        return torch.randint(0, vocabulary - 2, (1, count), generator=self.generator)

    def number(self, value: float) -> torch.Tensor:
        import torch

        return torch.tensor([value], dtype=self.dtype)


def _grid(*sizes: int) -> torch.Tensor:
    import torch

    return torch.cartesian_prod(*(torch.arange(size) for size in sizes))


def _unet(draw: _Draw, config: Any) -> dict[str, Any]:
    inputs = {
        "sample": draw.normal(1, config.in_channels, 16, 16),
        "timestep": draw.number(17),
        "encoder_hidden_states": draw.text(config.cross_attention_dim),
    }
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        sizes = draw.normal(1, 6).abs() * 64
        inputs["added_cond_kwargs"] = {"text_embeds": draw.normal(1, pooled), "time_ids": sizes}
    return inputs


def _sd3(draw: _Draw, config: Any) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(1, config.in_channels, 16, 16),
        "encoder_hidden_states": draw.text(config.joint_attention_dim),
        "pooled_projections": draw.normal(1, config.pooled_projection_dim),
        "timestep": draw.number(400),
    }


def _flux(draw: _Draw, config: Any) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(1, 16, config.in_channels),
        "encoder_hidden_states": draw.text(config.joint_attention_dim),
        "pooled_projections": draw.normal(1, config.pooled_projection_dim),
        "timestep": draw.number(0.5),
        "guidance": draw.number(3.5) if config.guidance_embeds else None,
        "img_ids": _grid(1, 4, 4),
        "txt_ids": _grid(1, 1, 1).repeat(_TEXT_TOKENS, 1),
    }


def _flux2(draw: _Draw, config: Any) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(1, 16, config.in_channels),
        "encoder_hidden_states": draw.text(config.joint_attention_dim),
        "timestep": draw.number(0.5),
        "guidance": draw.number(3.5) if config.guidance_embeds else None,
        "img_ids": _grid(1, 4, 4, 1)[None],
        "txt_ids": _grid(1, 1, 1, _TEXT_TOKENS)[None],
    }


def _qwen_image(draw: _Draw, config: Any) -> dict[str, Any]:
    import torch

    return {
        "hidden_states": draw.normal(1, 16, config.in_channels),
        "encoder_hidden_states": draw.text(config.joint_attention_dim),
        "encoder_hidden_states_mask": torch.ones(1, _TEXT_TOKENS, dtype=torch.long),
        "timestep": draw.number(0.4),
        "img_shapes": [[(1, 4, 4)]],
    }


def _clip(draw: _Draw, config: Any) -> dict[str, Any]:
    tokens = draw.tokens(77, config.vocab_size)
    tokens[0, 0], tokens[0, 20:] = config.bos_token_id, config.eos_token_id
    return {"input_ids": tokens}


def _t5(draw: _Draw, config: Any) -> dict[str, Any]:
    return {"input_ids": draw.tokens(16, config.vocab_size)}


_INPUTS: dict[str, Callable[[_Draw, Any], dict[str, Any]]] = {
    "UNet2DConditionModel": _unet,
    "SD3Transformer2DModel": _sd3,
    "FluxTransformer2DModel": _flux,
    "Flux2Transformer2DModel": _flux2,
    "QwenImageTransformer2DModel": _qwen_image,
    "CLIPTextModel": _clip,
    "CLIPTextModelWithProjection": _clip,
    "T5EncoderModel": _t5,
}


# --- an adapter with its truth ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PeftAdapter:
    """A PEFT adapter folder, and `forward(model)` of the very model that it was saved from, without and with it."""

    folder: Path
    base_output: torch.Tensor
    adapted_output: torch.Tensor


def peft_adapter(
    base_folder: Path,
    component: str,
    out: Path,
    r: int,
    lora_alpha: float,
    targets: list[str] | str,
    *,
    use_dora: bool = False,
    use_rslora: bool = False,
    rank_pattern: dict[str, int] | None = None,
    alpha_pattern: dict[str, float] | None = None,
    lora_bias: bool = False,
    seed: int = 0,
    dtype: torch.dtype | None = None,
) -> PeftAdapter:
    """Saves an adapter for `component` of a pipeline folder with PEFT, as if it had been trained: no B is zero.

    `dtype` is that of the saved tensors; the truth is computed in fp32 with the values that survive it.
    """
    import torch
    from peft import LoraConfig

    config = LoraConfig(
        r=r,
        lora_alpha=lora_alpha,
        target_modules=targets,
        use_dora=use_dora,
        use_rslora=use_rslora,
        rank_pattern=rank_pattern or {},
        alpha_pattern=alpha_pattern or {},
        lora_bias=lora_bias,
    )
    model = load_component(base_folder, component)
    base_output = forward(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        wrapped = wrap(model, config)
        trainable = {name: p for name, p in wrapped.named_parameters() if p.requires_grad}
        for name, parameter in trainable.items():
            _pretend_trained(name, parameter.data)
            parameter.data = parameter.data.to(dtype or parameter.dtype).float()
    adapted_output = forward(wrapped.get_base_model())
    for parameter in trainable.values():
        parameter.data = parameter.data.to(dtype or parameter.dtype)
    with _no_news():
        wrapped.save_pretrained(out)
    return PeftAdapter(out, base_output, adapted_output)


def wrap(model: Any, config: Any) -> Any:
    """`get_peft_model(model, config)`, without warnings that are no news here."""
    from peft import get_peft_model

    with _no_news():
        return get_peft_model(model, config)


@contextmanager
def _no_news() -> Iterator[None]:
    from peft.utils.warning import PeftWarning

    with warnings.catch_warnings():
        # peft 0.21 asks transformers 5 models for it.
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
        # A lora_B.bias on a layer that has none cannot be merged, which nobody does here, and peft 0.21 takes it for
        # the shard of a matrix when it saves it.
        warnings.filterwarnings("ignore", ".*(lora_bias=True|lora_B.bias)", PeftWarning)
        yield


def _pretend_trained(name: str, values: torch.Tensor) -> None:
    if "lora_B" in name:
        values.normal_(std=0.3)
    elif "lora_magnitude_vector" in name:
        values.mul_(values.new_empty(values.shape).uniform_(0.8, 1.2))
