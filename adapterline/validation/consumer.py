"""The consumer: a file is loaded as its `loads` say, by diffusers' own code, onto a skeleton; then it is looked at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterline.deltas import LowRank
from adapterline.families.base import Base
from adapterline.families.skeleton import build_model, build_pipeline, plain_name, quiet_libraries
from adapterline.values import LoadCall

if TYPE_CHECKING:
    import torch

ADAPTER_NAME = "adapterline"


@dataclass(frozen=True)
class LoadedLayer:
    """One layer after loading. `delta.scale` is peft's `scaling`; `active` is False if a forward would skip it."""

    delta: LowRank
    active: bool
    use_dora: bool


@dataclass(frozen=True)
class Loaded:
    """The layers by component and module name without `text_model.`, or what the loader raised."""

    components: Mapping[str, Mapping[str, LoadedLayer]]
    error: str = ""

    @property
    def tensors(self) -> int:
        """How many tensors arrived."""
        return sum(
            sum(
                tensor is not None for tensor in (layer.delta.a, layer.delta.b, layer.delta.magnitude, layer.delta.bias)
            )
            for layers in self.components.values()
            for layer in layers.values()
        )


def load_into_skeleton(folder: Path, loads: tuple[LoadCall, ...], base: Base, components: tuple[str, ...]) -> Loaded:
    """Executes `loads` on the base's pipeline with skeletons of these components.

    Never raises for what the loader makes of the file: that is the finding.
    """
    models = {name: build_model(base.models[name]) for name in components}
    for load in loads:
        pipeline = build_pipeline(base, models, load.pipeline)
        try:
            with quiet_libraries():
                arguments = {"weight_name": load.weight_name, "adapter_name": ADAPTER_NAME, **load.kwargs}
                getattr(pipeline, load.method)(str(folder), **arguments)
        except Exception as error:  # whatever it is, the consumer would meet it too
            return Loaded({}, f"{type(error).__name__}: {error}")
    return Loaded({name: _layers(model) for name, model in models.items()})


def _layers(model: Any) -> dict[str, LoadedLayer]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {
        plain_name(name): _layer(module) for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)
    }


def _layer(module: Any) -> LoadedLayer:
    a, b = module.lora_A[ADAPTER_NAME], module.lora_B[ADAPTER_NAME]
    magnitudes = getattr(module, "lora_magnitude_vector", {})
    magnitude: torch.Tensor | None = magnitudes[ADAPTER_NAME].weight if ADAPTER_NAME in magnitudes else None
    delta = LowRank(a.weight.detach(), b.weight.detach(), float(module.scaling[ADAPTER_NAME]), magnitude, b.bias)
    active = ADAPTER_NAME in module.active_adapters and not module.disable_adapters and not module.merged
    return LoadedLayer(delta, active, bool(module.use_dora[ADAPTER_NAME]))
