"""Skeletons: the real model classes, built from their configurations, with weights that take no memory.

Every parameter is a zero expanded to its shape. It is a real tensor, so adapters that are loaded on top of it are real
too; on the meta device, peft would create them on meta and there would be nothing to compare.
"""

from __future__ import annotations

import contextlib
import inspect
import threading
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from adapterline.errors import FamilyError
from adapterline.families.base import Base, ModelConfig

#: `torch.device` as a context and the libraries' verbosity are process-wide or thread-wide state.
_LOCK = threading.RLock()


@dataclass(frozen=True)
class Target:
    """A layer that an adapter can change: its kind, and the shape of its weight, [out, in / groups, *kernel]."""

    kind: str  # Linear, Conv1d, Conv2d or Conv3d
    shape: tuple[int, ...]
    groups: int = 1  # of a convolution

    @property
    def change(self) -> tuple[int, ...]:
        """[out, in, *kernel]: PEFT's A sees all inputs, also where the layer's groups each see their own."""
        return (self.shape[0], self.shape[1] * self.groups, *self.shape[2:])


def build_model(config: ModelConfig) -> Any:
    """One model as a skeleton, in fp32 and eval mode. FamilyError if the installed libraries cannot build it."""
    import importlib

    import torch

    library = importlib.import_module(config.library)
    cls = getattr(library, config.model_class, None)
    if not (isinstance(cls, type) and issubclass(cls, torch.nn.Module)):
        raise FamilyError(f"The installed {config.library} has no model class {config.model_class}.")
    try:
        with _LOCK, quiet_libraries(), torch.device("meta"):
            if config.library.startswith("diffusers"):
                model = cls.from_config(dict(config.config))  # type: ignore[attr-defined]
            else:
                model = cls(cls.config_class.from_dict(dict(config.config)))  # type: ignore[attr-defined]
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        raise FamilyError(f"{config.model_class} cannot be built from its configuration: {error}.") from error
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                zeros = torch.zeros((), dtype=torch.float32).expand(parameter.shape)
                module._parameters[name] = torch.nn.Parameter(zeros, requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.zeros((), dtype=buffer.dtype).expand(buffer.shape)
    return model.eval()


def build_pipeline(base: Base, components: Mapping[str, Any], pipeline: str | None = None) -> Any:
    """The base's pipeline class (or the one named) around these models, and None for everything else.

    The models are registered without the class's constructor: some want a VAE's configuration or fetch a safety
    checker, and loading LoRA needs neither.
    """
    import diffusers

    cls = getattr(diffusers, pipeline or base.pipeline)
    with quiet_libraries():
        if issubclass(cls, diffusers.ModularPipeline):
            built = cls()
            built.update_components(**components)
            return built
        parameters = inspect.signature(cls.__init__).parameters.values()
        required = [p.name for p in parameters if p.default is p.empty and p.name != "self"]
        names = dict.fromkeys((*required, *cls._optional_components, *components))
        built = cls.__new__(cls)
        built.register_modules(**{name: components.get(name) for name in names})
    return built


def targets(base: Base, component: str) -> dict[str, Target]:
    """The layers of a base's model that LoRA adapts, by module name without `text_model.`."""
    key = (base.architecture, component)
    if key not in _TARGETS:
        if len(_TARGETS) >= 64:
            _TARGETS.clear()
        _TARGETS[key] = targets_of(build_model(base.models[component]))
    return _TARGETS[key]


#: Names and shapes only; building FLUX takes a quarter of a second.
_TARGETS: dict[tuple[str, str], dict[str, Target]] = {}


def targets_of(model: Any) -> dict[str, Target]:
    """The same of a skeleton."""
    import torch

    kinds = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
    return {
        plain_name(name): Target(
            type(module).__name__, tuple(map(int, module.weight.shape)), int(getattr(module, "groups", 1))
        )
        for name, module in model.named_modules()
        if isinstance(module, kinds)
    }


def plain_name(module: str) -> str:
    """A module's name without `text_model.`, which transformers 5 has in some CLIP classes and not in others."""
    return module.removeprefix("text_model.")


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """diffusers, transformers and peft report on loading LoRA as if it were a mistake; what counts is compared."""
    import diffusers
    import transformers

    with _LOCK:
        levels = [(lib.utils.logging, lib.utils.logging.get_verbosity()) for lib in (diffusers, transformers)]
        bars = [lib.utils.logging for lib in (diffusers, transformers) if lib.utils.logging.is_progress_bar_enabled()]
        try:
            for logging, _ in levels:
                logging.set_verbosity(60)
            for logging in bars:
                logging.disable_progress_bar()
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "LoRA adapter added to ConvNd layer with groups > 1")
                warnings.filterwarnings("ignore", ".*lora_bias=True.*")  # over a layer without a bias: cannot be merged
                yield
        finally:
            for logging, level in levels:
                logging.set_verbosity(level)
            for logging in bars:
                logging.enable_progress_bar()
