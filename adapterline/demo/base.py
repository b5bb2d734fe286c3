"""The demo's base model: Stable Diffusion 1.5 in every block, tiny in every width, random in every weight.

An adapter for it has the module names of an adapter for the real one: q, k, v and out of all 16 transformer blocks.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterline.errors import from_os_error
from adapterline.families.skeleton import quiet_libraries

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

#: The side of an image that it renders by default, in pixels: 8 x 8 latents, one at the bottom of the UNet.
IMAGE_SIZE = 64

_WIDTH = 32  # of the text encoder, and so of the cross attention
_START, _END = "<|startoftext|>", "<|endoftext|>"

_UNET: dict[str, Any] = {
    "sample_size": IMAGE_SIZE // 8,
    "block_out_channels": (16, 32, 32, 32),
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": 4,
    "cross_attention_dim": _WIDTH,
    "norm_num_groups": 8,
}
_TEXT_ENCODER: dict[str, Any] = {
    "hidden_size": _WIDTH,
    "projection_dim": _WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
_VAE: dict[str, Any] = {
    "sample_size": IMAGE_SIZE,
    "block_out_channels": (8, 8, 16, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 4,
}
_SCHEDULER: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def build_base(folder: Path, seed: int = 0) -> None:
    """Writes a whole `StableDiffusionPipeline` to `folder`: under 5 MB, without a safety checker.

    The same seed gives the same weights. The caller's random state is left as it was.

    Raises:
        MachineError: `folder` cannot be written.
    """
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = build_tokenizer()
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = StableDiffusionPipeline(
            unet=UNet2DConditionModel(**_UNET),
            text_encoder=CLIPTextModel(CLIPTextConfig(vocab_size=len(tokenizer), **special, **_TEXT_ENCODER)),
            vae=AutoencoderKL(**_VAE),
            tokenizer=tokenizer,
            scheduler=DDIMScheduler(**_SCHEDULER),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    with writing(folder), quiet_libraries():
        pipeline.save_pretrained(folder)
        _write_vocabulary(tokenizer, folder / "tokenizer")


def build_tokenizer() -> CLIPTokenizer:
    """CLIP's byte-level tokenizer without its merges: 514 tokens, one for each byte, so that no text is unknown."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), _START, _END]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=77)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """MachineError for whatever the operating system has against what the block writes to `folder`."""
    from safetensors import SafetensorError

    try:
        yield
    except OSError as error:
        raise from_os_error(error, f"Writing {folder}") from error
    except SafetensorError as error:
        # It has the errno in its text alone: "... No space left on device (os error 28)".
        code = re.search(r"\(os error (\d+)\)", str(error))
        if code is None:
            raise
        number = int(code[1])
        raise from_os_error(OSError(number, os.strerror(number)), f"Writing {folder}") from error


def _write_vocabulary(tokenizer: CLIPTokenizer, folder: Path) -> None:
    # transformers 5 writes tokenizer.json alone; these two are what every other reader of CLIP's tokenizer opens.
    vocabulary = dict(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]))
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
