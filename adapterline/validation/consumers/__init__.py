"""What loads an exported file, by its layout. Each is a file; adding one is a line here."""

from __future__ import annotations

from adapterline.validation.consumers.base import Consumer, Loaded, LoadedLayer
from adapterline.validation.consumers.diffusers import Diffusers
from adapterline.validation.consumers.kohya import KohyaRules
from adapterline.validation.consumers.peft import Peft

__all__ = ["CONSUMERS", "Consumer", "Loaded", "LoadedLayer"]

CONSUMERS: dict[str, tuple[Consumer, ...]] = {
    "diffusers": (Diffusers(),),
    "kohya": (Diffusers(), KohyaRules("comfyui"), KohyaRules("sd-scripts"), KohyaRules("musubi-tuner")),
    "peft": (Peft(),),
}
