"""The weights of a base that lies in a folder: which files, how much memory, and the models with them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from adapterline.checkpoints.containers.safetensors import read_header
from adapterline.families.base import Base, ModelConfig
from adapterline.families.skeleton import quiet_libraries
from adapterline.values import digest_of

#: What diffusers and transformers call a model's weights; a pickle is not looked at.
_STEMS = ("diffusion_pytorch_model", "model")


def weight_files(folder: Path, variant: str = "") -> tuple[Path, ...]:
    """The safetensors files of one model's folder, one or in shards; empty if there are none."""
    dot = f".{variant}" if variant else ""
    for stem in _STEMS:
        whole, shards = folder / f"{stem}{dot}.safetensors", sorted(folder.glob(f"{stem}{dot}-*-of-*.safetensors"))
        if whole.is_file():
            return (whole,)
        if shards:
            return tuple(shards)
    return ()


def has_weights(base: Base, component: str) -> bool:
    """Does the base's own folder have them?"""
    return base.folder is not None and bool(weight_files(base.folder / component))


def parameters_of(base: Base, components: Iterable[str]) -> int:
    """How many numbers the weights of these are. CheckpointError for a file that is none of the format."""
    assert base.folder is not None
    files = [file for component in components for file in weight_files(base.folder / component)]
    return sum(math.prod(info.shape) for file in files for info in read_header(file)[0].values())


def weights_stamp(base: Base) -> str:
    """What tells one state of a base's weights from another without reading them: names, sizes, times."""
    files = [file for name in base.models if base.folder for file in weight_files(base.folder / name)]
    return digest_of([[file.parent.name, file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files])


def load_model(base: Base, component: str) -> Any:
    """One model of the base with its weights, in float32 and eval mode, on the CPU.

    ValueError if the files lack a weight; else whatever the library raises.
    """
    import importlib

    import torch

    assert base.folder is not None
    config: ModelConfig = base.models[component]
    cls = getattr(importlib.import_module(config.library), config.model_class)
    with quiet_libraries():
        model, info = cls.from_pretrained(
            str(base.folder / component),
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    if missing := sorted(info["missing_keys"]):  # the library draws them at random
        raise ValueError(f"{len(missing)} weights are not in its files, {missing[0]} among them")
    return model.eval().requires_grad_(False)
