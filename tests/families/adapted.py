"""A tiny model adapted with PEFT, and the comparison of what two adapted models compute."""

from __future__ import annotations

import re
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer

from adapterline.families.skeleton import build_pipeline, plain_name
from tests.bases import wrap
from tests.line import Exported

KINDS = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
#: Names of layers of a model.
Choice = Callable[[torch.nn.Module], list[str]]


@contextmanager
def _quiet() -> Iterator[None]:
    """peft says that it cannot merge a grouped convolution, which nobody wants."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "LoRA adapter added to ConvNd layer with groups > 1")
        yield


def one_of_each(model: torch.nn.Module) -> list[str]:
    """A layer of each name, whatever the number of its block: the middle one of those that have several."""
    found: dict[str, list[str]] = {}
    for name, module in model.named_modules():
        if isinstance(module, KINDS):
            found.setdefault(re.sub(r"\b\d+\b", "*", name), []).append(name)
    return [names[len(names) // 2] for names in found.values()]


def train(model: Any, out: Path, choose: Choice = one_of_each, rank: int = 4, alpha: float = 7) -> Any:
    """The adapted model; its adapter lies in `out` as PEFT saves it. The rank of a grouped layer is their number."""
    layers = dict(model.named_modules())
    names = choose(model)
    grouped = {name: getattr(layers[name], "groups", 1) for name in names}
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules="|".join(map(re.escape, names)),
        rank_pattern={f"^{re.escape(name)}$": count for name, count in grouped.items() if rank % count},
        init_lora_weights=False,
    )
    with torch.random.fork_rng(devices=[]), _quiet():
        torch.manual_seed(zlib.crc32(out.name.encode()))  # each component's own
        wrapped = wrap(model, config)
        for name, parameter in wrapped.named_parameters():
            if ".lora_" in name:
                torch.nn.init.normal_(parameter, std=0.15)
        wrapped.save_pretrained(out)
    return wrapped.get_base_model().eval()


def load(exported: Exported, models: dict[str, Any]) -> Any:
    """The pipeline after the calls that are printed."""
    pipeline = build_pipeline(exported.base, models)
    with _quiet():
        for call in exported.plan.loads:
            attrgetter(call.method)(pipeline)(str(exported.folder), weight_name=call.weight_name, **call.kwargs)
    return pipeline


def layers_of(model: torch.nn.Module) -> dict[str, Any]:
    return {plain_name(name): module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def same_layers(trained: torch.nn.Module, loaded: torch.nn.Module) -> None:
    """Each adapted layer adds the same to an input, and something."""
    wanted, found = layers_of(trained), layers_of(loaded)
    assert set(wanted) == set(found)
    assert wanted
    for name, layer in wanted.items():
        weight = layer.get_base_layer().weight
        inputs = weight.shape[1] * getattr(layer.get_base_layer(), "groups", 1)
        shape = (2, inputs) if weight.dim() == 2 else (1, inputs, *(2 * size + 1 for size in weight.shape[2:]))
        x = torch.randn(shape, generator=torch.Generator().manual_seed(5))
        with torch.no_grad():
            base = layer.get_base_layer()(x)
            close(found[name](x) - base, layer(x) - base)


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert wanted.norm() > 0
    assert (found - wanted).norm() <= 1e-4 * wanted.norm()
