"""Good adapters to be broken: one of every family, and those whose form adds something that can break."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from adapterline.families import FAMILIES
from adapterline.families.base import Base, read_base
from adapterline.families.skeleton import Target, targets
from adapterline.values import ExportOptions
from tests.families.tiny import CASES, Case
from tests.line import Exported, run_line

#: How a file says its scale, and whose it is: `beside` has the manifest of the export beside it, `portable` has none.
MODES = ("portable", "header", "beside")
_WITH_MANIFEST = ("sd15", "sdxl", "flux", "wan")
_UP_AND_DOWN = {"down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"], "layers_per_block": 1,
                "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"]}  # fmt: skip
_FEW_BLOCKS: dict[str, dict[str, Any]] = {
    "sd15": {**_UP_AND_DOWN, "block_out_channels": [16, 32]},
    "sdxl": {**_UP_AND_DOWN, "block_out_channels": [8, 32], "transformer_layers_per_block": [1, 2],
             "attention_head_dim": [1, 4]},
}  # fmt: skip


@dataclass(frozen=True)
class Good:
    """An adapter, as PEFT saves it, for the small model of a family. `mixed`: ranks and alphas differ between layers.

    `form` names the tensors of another one, by their suffixes, in LyCORIS's spelling.
    """

    family: str
    kind: str = "LoRA"
    rank: int = 4
    alpha: float = 7  # a scale of 1.75: no dtype folds it exactly
    dtype: torch.dtype = torch.float32
    dora: bool = False
    bias: bool = False
    mixed: bool = False
    control: bool = False
    few: bool = False  # layers: some of the attention, some others
    form: str = ""
    options: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def name(self) -> str:
        return self.family if self.kind == "LoRA" else f"{self.family}, {self.kind}"

    @property
    def modes(self) -> tuple[str, ...]:
        """Of LoKr, the scale is always in the factors. A manifest is the same for every family."""
        left_out = {"header"} if self.options.get("keep_form") else set()
        if self in EVERY_FAMILY and self.family not in _WITH_MANIFEST:
            left_out.add("beside")
        return tuple(mode for mode in MODES if mode not in left_out)

    @property
    def case(self) -> Case:
        """The family's small model. Stable Diffusion's has all blocks of the real one, which few edits need."""
        whole = CASES[self.family]
        if self.family not in _FEW_BLOCKS:
            return whole
        unet = whole.models["unet"]
        few = replace(unet, config={**unet.config, **_FEW_BLOCKS[self.family]})
        return replace(whole, models={**whole.models, "unet": few})

    def export(self, mode: str, folder: Path) -> Exported:
        """What the line makes of it."""
        base = read_base(self.case.write(folder / "base"))
        checkpoint = self._write_form(base, folder) if self.form else self._write(base, folder / "trained")
        options = ExportOptions(**self.options, scale="header" if mode == "header" else "portable")
        return run_line(checkpoint, folder / "base", folder, options)

    def _write(self, base: Base, folder: Path) -> Path:
        for component in base.family.components:
            if component.loads and component.name in base.models:
                self._write_component(base, component.name, folder / component.name)
        return folder

    def _write_component(self, base: Base, component: str, folder: Path) -> None:
        layers = self._layers(base, component)
        ranks = {module: self._rank(number, target) for number, (module, target) in enumerate(layers.items())}
        alphas = {module: self.alpha - number % 3 if self.mixed else self.alpha for number, module in enumerate(layers)}
        draw = _Draw(f"{self.name} {component}", self.dtype)
        tensors = {}
        for module, target in layers.items():
            stem = f"base_model.model.{module}"
            tensors |= {f"{stem}.{part}": tensor for part, tensor in draw.factors(target, ranks[module]).items()}
            if self.bias:
                tensors[f"{stem}.lora_B.bias"] = draw.normal(target.shape[0])
            if self.dora:
                tensors[f"{stem}.lora_magnitude_vector"] = draw.normal(target.shape[0]).abs() + 1
        config = {
            "peft_type": "LORA",
            "r": self.rank,
            "lora_alpha": self.alpha,
            "rank_pattern": {_exactly(module): rank for module, rank in ranks.items() if rank != self.rank},
            "alpha_pattern": {_exactly(module): alpha for module, alpha in alphas.items() if alpha != self.alpha},
            "target_modules": sorted(layers),
            "use_dora": self.dora,
            "lora_bias": self.bias,
        }
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text(json.dumps(config))
        save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})

    def _layers(self, base: Base, component: str) -> dict[str, Target]:
        """One of each name, whatever the number of its block; of DoRA, those without groups."""
        found: dict[str, list[str]] = {}
        known = targets(base, component)
        for module, target in known.items():
            if target.groups == 1 or not self.dora:
                found.setdefault(re.sub(r"\b\d+\b", "*", module), []).append(module)
        layers = {names[len(names) // 2]: known[names[len(names) // 2]] for names in found.values()}
        if self.control and (control := base.family.control) and control.component == component:
            own = layers[control.layer]
            layers[control.layer] = Target(own.kind, (own.shape[0], 2 * own.shape[1]))
        return _some(layers) if self.few else layers

    def _rank(self, number: int, target: Target) -> int:
        rank = (self.rank, 2, 3)[number % 3] if self.mixed else self.rank
        return rank if rank % target.groups == 0 else target.groups

    def _write_form(self, base: Base, folder: Path) -> Path:
        """A file of the whole denoiser's linear layers in LyCORIS's form: LoHa or LoKr."""
        component = base.family.components[0].name
        layers = {m: t for m, t in self._layers(base, component).items() if len(t.shape) == 2}
        draw = _Draw(self.name, self.dtype)
        tensors = {}
        for module, target in layers.items():
            parts = draw.loha(target) if self.form == "loha" else draw.lokr(target)
            parts["alpha"] = torch.tensor(3.0)
            tensors |= {f"lycoris_{module.replace('.', '_')}.{part}": tensor for part, tensor in parts.items()}
        save_file(tensors, folder / "last.safetensors")
        return folder / "last.safetensors"


@dataclass
class _Draw:
    """Tensors that depend on a name alone."""

    name: str
    dtype: torch.dtype

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(zlib.crc32(self.name.encode()))

    def normal(self, *shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=self.generator) * 0.2).to(self.dtype)

    def factors(self, target: Target, rank: int) -> dict[str, torch.Tensor]:
        ones = [1] * (len(target.shape) - 2)
        return {
            "lora_A.weight": self.normal(rank, *target.change[1:]),
            "lora_B.weight": self.normal(target.shape[0], rank // target.groups, *ones),
        }

    def loha(self, target: Target) -> dict[str, torch.Tensor]:
        out, width = target.shape
        shapes = {"a": (out, 2), "b": (2, width)}
        return {f"hada_w{i}_{part}": self.normal(*shape) for i in "12" for part, shape in shapes.items()}

    def lokr(self, target: Target) -> dict[str, torch.Tensor]:
        out, width = target.shape
        second = {"lokr_w2_a": self.normal(out // 2, 2), "lokr_w2_b": self.normal(2, width // 2)}
        return {"lokr_w1": self.normal(2, 2), **second}


def _some(layers: dict[str, Target]) -> dict[str, Target]:
    attention = [module for module in layers if "attn" in module]
    others = [module for module in layers if "attn" not in module]
    chosen = {*attention[:3], *others[:: len(others) // 3 + 1]}
    return {module: target for module, target in layers.items() if module in chosen}


def _exactly(module: str) -> str:
    return f"^{re.escape(module)}$"


def _more() -> Iterator[Good]:
    yield Good("sd15", "DoRA", dora=True)
    yield Good("flux", "DoRA", dora=True)
    yield Good("sd15", "biases", bias=True)
    yield Good("sdxl", "mixed ranks", mixed=True)
    yield Good("wan", "mixed ranks", mixed=True)
    yield Good("flux", "a scale of 2", alpha=8)
    yield Good("wan", "a scale of 1", alpha=4, dtype=torch.bfloat16)
    yield Good("sd15", "fp16, alpha 1, rank 16", rank=16, alpha=1, dtype=torch.float16)
    yield Good("flux", "bf16, scale promoted to fp32", dtype=torch.bfloat16)
    yield Good("sdxl", "asked for bf16", options={"dtype": "bfloat16"})
    yield Good("flux", "control", control=True)
    yield Good("sd15", "LoHa", form="loha")
    yield Good("flux2", "LoKr, kept", form="lokr", options={"keep_form": True})


EVERY_FAMILY = tuple(Good(family.name) for family in FAMILIES)
ADAPTERS = (*EVERY_FAMILY, *_more())
