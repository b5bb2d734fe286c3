"""The consumer: a file is loaded as its `loads` say, by diffusers' own code, onto a skeleton; then it is looked at."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterline.deltas import Kronecker, LowRank, whole
from adapterline.families.base import Base
from adapterline.families.skeleton import build_model, build_pipeline, plain_name, quiet_libraries
from adapterline.values import LoadCall

if TYPE_CHECKING:
    import torch

ADAPTER_NAME = "adapterline"


@dataclass(frozen=True)
class LoadedLayer:
    """One layer after loading. `delta.scale` is peft's `scaling`; `active` is False if a forward would skip it.

    `parts` are the tensors that peft has of it.
    """

    delta: LowRank | Kronecker
    active: bool
    use_dora: bool
    parts: tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Loaded:
    """The layers by component and module name without `text_model.`, or what the loader raised."""

    components: Mapping[str, Mapping[str, LoadedLayer]]
    error: str = ""
    norms: Mapping[str, Mapping[str, torch.Tensor]] = field(default_factory=dict)

    @property
    def tensors(self) -> dict[str, int]:
        """How many tensors arrived, by component. A norm's weight has, if it is no longer the skeleton's zero."""
        return {
            name: sum(map(_count, layers.values())) + sum(bool(w.any()) for w in self.norms.get(name, {}).values())
            for name, layers in self.components.items()
        }

    def without_padding(self, written: Mapping[str, Collection[str]]) -> Loaded:
        """Less the layers that are in no file, by component and module, and change nothing.

        Wan's loader gives an image-to-video model zeros for the image keys and values that a text-to-video adapter has
        no factors for (`_maybe_expand_t2v_lora_for_i2v`).
        """
        return replace(
            self,
            components={
                name: {
                    module: layer
                    for module, layer in layers.items()
                    if module in written.get(name, ()) or not _is_zero(layer)
                }
                for name, layers in self.components.items()
            },
        )


def _count(layer: LoadedLayer) -> int:
    return len(layer.parts)


def _is_zero(layer: LoadedLayer) -> bool:
    return layer.delta.magnitude is None and not any(part.is_meta or bool(part.any()) for part in layer.parts)


def load_into_skeleton(
    folder: Path,
    loads: tuple[LoadCall, ...],
    base: Base,
    components: tuple[str, ...],
    norms: Mapping[str, Collection[str]],
) -> Loaded:
    """Executes `loads`, all of them on one pipeline of the base, with skeletons of these components.

    `norms` names the weights, by component, that the files replace. Never raises for what the loader makes of the
    file: that is the finding.
    """
    models = {name: build_model(base.models[name]) for name in components}
    replaced = {name: _real(models[name], norms.get(name, ())) for name in models}
    pipelines = {name: build_pipeline(base, models, name) for name in dict.fromkeys(load.pipeline for load in loads)}
    for load in loads:
        try:
            with quiet_libraries():
                arguments = {"weight_name": load.weight_name, "adapter_name": ADAPTER_NAME, **load.kwargs}
                attrgetter(load.method)(pipelines[load.pipeline])(str(folder), **arguments)
        except Exception as error:  # whatever it is, the consumer would meet it too
            return Loaded({}, f"{type(error).__name__}: {error}")
    return Loaded({name: _layers(model) for name, model in models.items()}, norms=replaced)


def _real(model: Any, names: Collection[str]) -> dict[str, torch.Tensor]:
    """These parameters, with memory of their own so that a loader can write into them."""
    parameters = dict(model.named_parameters())
    for name in names:
        if name in parameters:
            parameters[name].data = parameters[name].data.clone(memory_format=_contiguous())
    return {name: parameters[name].data for name in names if name in parameters}


def _contiguous() -> torch.memory_format:
    import torch

    return torch.contiguous_format


def _layers(model: Any) -> dict[str, LoadedLayer]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {
        plain_name(name): _layer(module) for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)
    }


def _layer(module: Any) -> LoadedLayer:
    active = ADAPTER_NAME in module.active_adapters and not module.disable_adapters and not module.merged
    if hasattr(module, "lokr_w1"):
        return _lokr_layer(module, active)
    a, b = module.lora_A[ADAPTER_NAME], module.lora_B[ADAPTER_NAME]
    magnitudes = getattr(module, "lora_magnitude_vector", {})
    magnitude: torch.Tensor | None = magnitudes[ADAPTER_NAME].weight if ADAPTER_NAME in magnitudes else None
    groups = int(getattr(b, "groups", 1))
    delta = LowRank(
        a.weight.detach(), b.weight.detach(), float(module.scaling[ADAPTER_NAME]), magnitude, b.bias, groups
    )
    parts = tuple(part for part in (delta.a, delta.b, magnitude, delta.bias) if part is not None)
    return LoadedLayer(delta, active, bool(module.use_dora[ADAPTER_NAME]), parts)


def _lokr_layer(module: Any, active: bool) -> LoadedLayer:
    """peft.tuners.lokr.layer.LoKrLayer: each factor is whole, or the product of two."""
    stored = {
        name: getattr(module, f"lokr_{name}")[ADAPTER_NAME].detach()
        for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")
        if ADAPTER_NAME in getattr(module, f"lokr_{name}")
    }
    if "t2" in stored:
        raise ValueError("a Tucker core, which diffusers builds for no linear layer")
    (a1, b1), (a2, b2) = (
        whole(stored[name]) if name in stored else (stored[f"{name}_b"], stored[f"{name}_a"]) for name in ("w1", "w2")
    )
    delta = Kronecker(a1, b1, a2, b2, float(module.scaling[ADAPTER_NAME]))
    return LoadedLayer(delta, active, False, tuple(stored.values()))
