"""The adapted layers of a model that peft put adapters into, as any consumer that builds on it leaves them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adapterline.deltas import Kronecker, LowRank, whole
from adapterline.families.skeleton import plain_name
from adapterline.validation.consumers.base import LoadedLayer

if TYPE_CHECKING:
    import torch


def layers_of(model: Any, adapter: str) -> dict[str, LoadedLayer]:
    """The layers of a model by module name without `text_model.`; `adapter` is what the adapter is called in it."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {
        plain_name(name): _layer(module, adapter)
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer)
    }


def _layer(module: Any, adapter: str) -> LoadedLayer:
    active = adapter in module.active_adapters and not module.disable_adapters and not module.merged
    if hasattr(module, "lokr_w1"):
        return _lokr_layer(module, adapter, active)
    a, b = module.lora_A[adapter], module.lora_B[adapter]
    magnitudes = getattr(module, "lora_magnitude_vector", {})
    magnitude: torch.Tensor | None = magnitudes[adapter].weight if adapter in magnitudes else None
    groups = int(getattr(b, "groups", 1))
    delta = LowRank(a.weight.detach(), b.weight.detach(), float(module.scaling[adapter]), magnitude, b.bias, groups)
    parts = tuple(part for part in (delta.a, delta.b, magnitude, delta.bias) if part is not None)
    return LoadedLayer(delta, active, bool(module.use_dora[adapter]), parts)


def _lokr_layer(module: Any, adapter: str, active: bool) -> LoadedLayer:
    """peft.tuners.lokr.layer.LoKrLayer: each factor is whole, or the product of two."""
    stored = {
        name: getattr(module, f"lokr_{name}")[adapter].detach()
        for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")
        if adapter in getattr(module, f"lokr_{name}")
    }
    if "t2" in stored:
        raise ValueError("a Tucker core, which diffusers builds for no linear layer")
    (a1, b1), (a2, b2) = (
        whole(stored[name]) if name in stored else (stored[f"{name}_b"], stored[f"{name}_a"]) for name in ("w1", "w2")
    )
    delta = Kronecker(a1, b1, a2, b2, float(module.scaling[adapter]))
    return LoadedLayer(delta, active, False, tuple(stored.values()))
