"""The demo's training run: PEFT on the UNet and the text encoder, and a folder that says so as PEFT says it.

It is a real one, cut short: the loss of denoising, AdamW, a fixed batch. What it learns is not worth having; that its
two adapters have different ranks and an alpha that differs from the rank is, because that is what exporters get wrong.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from adapterline.demo.base import writing
from adapterline.errors import CheckpointError
from adapterline.families.skeleton import quiet_libraries

if TYPE_CHECKING:
    import torch

PROMPTS = ("a photo of a sks dog", "a sks dog on the beach")


@dataclass(frozen=True)
class AdapterSettings:
    """What PEFT's `LoraConfig` gets for one component. The consumer has to scale by alpha / rank."""

    rank: int
    alpha: int
    targets: str  # a regular expression: PEFT writes a list of names in a random order

    def wrap(self, model: torch.nn.Module) -> Any:
        """`model` with a new adapter, whose parameters alone are trainable."""
        from peft import LoraConfig, get_peft_model

        # PEFT would write the folder of a text encoder into the config, whose bytes then depend on where the base lies.
        model.__dict__.pop("name_or_path", None)
        config = LoraConfig(r=self.rank, lora_alpha=self.alpha, target_modules=self.targets)
        with warnings.catch_warnings():
            # peft 0.21 asks transformers 5 models for it; it is no business of who runs the demo.
            warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
            return get_peft_model(model, config)


#: By component, q, k, v and out of every attention: 128 modules of the UNet, 8 of the text encoder.
ADAPTERS = {
    "unet": AdapterSettings(rank=4, alpha=6, targets=r".*\.(to_q|to_k|to_v|to_out\.0)"),
    "text_encoder": AdapterSettings(rank=8, alpha=4, targets=r".*\.(q_proj|k_proj|v_proj|out_proj)"),
}


class Training(TypedDict):
    """What there is to print of a training run."""

    steps: int
    seed: int
    prompts: list[str]
    losses: list[float]  # before each step
    components: dict[str, dict[str, Any]]  # the fields of AdapterSettings


def train(base: Path, out: Path, steps: int = 4, seed: int = 0) -> Training:
    """Trains both adapters on `base` and writes `out/unet` and `out/text_encoder`, each a PEFT adapter folder.

    `base` is what `build_base` wrote. The same base, steps and seed give the same weights and configs, byte for byte,
    with the same libraries and number of threads. The caller's random state is left as it was.

    Raises:
        CheckpointError: `base` is not a Stable Diffusion folder.
        MachineError: `out` cannot be written.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = _load(base)
        models = {name: settings.wrap(parts[name]) for name, settings in ADAPTERS.items()}
        losses = list(_fit(models, parts["scheduler"], parts["tokenizer"], steps))
    with writing(out):
        for name, model in models.items():
            model.save_pretrained(out / name)
    components = {name: asdict(settings) for name, settings in ADAPTERS.items()}
    return {"steps": steps, "seed": seed, "prompts": list(PROMPTS), "losses": losses, "components": components}


def _load(base: Path) -> dict[str, Any]:
    from diffusers import DDIMScheduler, UNet2DConditionModel
    from safetensors import SafetensorError
    from transformers import CLIPTextModel, CLIPTokenizer

    classes = {
        "unet": UNet2DConditionModel,
        "text_encoder": CLIPTextModel,
        "scheduler": DDIMScheduler,
        "tokenizer": CLIPTokenizer,
    }
    try:
        with quiet_libraries():
            # A str: peft would write a Path into its model card as a Python object, which it then cannot read.
            return {
                name: kind.from_pretrained(str(base / name), local_files_only=True) for name, kind in classes.items()
            }
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"{base} is not a whole Stable Diffusion 1.5 folder.",
            expected="a folder that adapterline.demo.base.build_base wrote",
            remedy="Build the base again.",
        ) from error


def _fit(models: dict[str, Any], scheduler: Any, tokenizer: Any, steps: int) -> Iterator[float]:
    """Yields the loss before each step, which it then takes."""
    import torch
    from torch.nn.functional import mse_loss

    # 16 x 16 latents, so that the middle block sees more than one position: with one, softmax is constant and its
    # self-attention's q and k never get a gradient.
    latents = torch.randn(len(PROMPTS), 4, 16, 16)
    noise = torch.randn_like(latents)
    timesteps = torch.randint(0, scheduler.config.num_train_timesteps, (len(PROMPTS),))
    noisy = scheduler.add_noise(latents, noise, timesteps)
    tokens = tokenizer(list(PROMPTS), padding="max_length", truncation=True, return_tensors="pt").input_ids

    trainable = [p for model in models.values() for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-2)
    for model in models.values():
        model.train()
    for _ in range(steps):
        states = models["text_encoder"](input_ids=tokens).last_hidden_state
        loss = mse_loss(models["unet"](noisy, timesteps, states).sample, noise)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        yield float(loss.detach())
