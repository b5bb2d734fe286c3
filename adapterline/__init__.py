"""From a training checkpoint to a published, proven LoRA."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adapterline.api import audit, doctor, export, inspect, listen, notify, promote, prune, sweep, validate

__all__ = ["audit", "doctor", "export", "inspect", "listen", "notify", "promote", "prune", "sweep", "validate"]


def __getattr__(name: str) -> Any:
    """The calls of `adapterline.api`, when they are first used: importing adapterline costs nothing."""
    if name in __all__:
        import importlib

        return getattr(importlib.import_module("adapterline.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
