"""diffusers: a file is loaded as its `loads` say, by the library's own code, onto skeletons that are then looked at."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Mapping
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterline.families.base import Base, component_of
from adapterline.families.kohya import kohya_of
from adapterline.families.norms import norm_weight
from adapterline.families.skeleton import build_model, build_pipeline, plain_name, quiet_libraries
from adapterline.validation.consumers.base import Loaded, not_loaded
from adapterline.validation.consumers.kohya import Read, component_of_stem, read_kohya
from adapterline.validation.consumers.layers import layers_of
from adapterline.validation.files import tensors_of
from adapterline.values import LoadCall, TensorInfo

if TYPE_CHECKING:
    import torch

ADAPTER_NAME = "adapterline"


class Diffusers:
    """`load_lora_weights` and its siblings, for files in diffusers' own layout and those that they convert to it."""

    name = "diffusers"

    def load(
        self, folder: Path, files: tuple[str, ...], loads: tuple[LoadCall, ...], base: Base, needed: Collection[str]
    ) -> Loaded | None:
        """See `Consumer.load`."""
        if not loads:
            return None
        written = _written(folder, loads, base)
        # The loaders call the denoiser, whether or not the file has anything for it.
        called = {base.family.components[0].name, *written, *needed}
        norms = {name: [key for key in tensors if norm_weight(key) == key] for name, tensors in written.items()}
        loaded = load_into_skeleton(folder, loads, base, tuple(name for name in base.models if name in called), norms)
        if loaded.error:
            return loaded
        if lost := [key for tensors in written.values() for key in tensors if key.endswith(".dora_scale")]:
            return Loaded(error=f"it leaves {len(lost)} tensors out and loads plain LoRA ({lost[0]})")
        return _described(loaded, written, read_kohya(folder, files, loads, base))


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
            with quiet_libraries(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what they are about is found in the models, whatever the filters
                arguments = {"weight_name": load.weight_name, "adapter_name": ADAPTER_NAME, **load.kwargs}
                attrgetter(load.method)(pipelines[load.pipeline])(str(folder), **arguments)
        except Exception as error:  # whatever it is, the consumer would meet it too
            return not_loaded(load.weight_name, error)
    return Loaded({name: layers_of(model, ADAPTER_NAME) for name, model in models.items()}, norms=replaced)


def _described(loaded: Loaded, written: Mapping[str, Mapping[str, TensorInfo]], flat: Read | None) -> Loaded:
    """With what the files say: how many tensors they have, and how each layer is stored.

    `flat` is what files with sd-scripts' keys are read as by their own rules.
    """
    dtypes = {name: _dtypes(tensors) for name, tensors in written.items()}
    for name, found in flat.components.items() if flat else ():
        dtypes[name] = {module: layer.dtype for module, layer in found.items()}
    components = {
        name: {module: replace(layer, dtype=dtypes.get(name, {}).get(module, "")) for module, layer in layers.items()}
        for name, layers in loaded.components.items()
    }
    return replace(
        loaded,
        components=components,
        written={name: len(tensors) for name, tensors in written.items()},
        arrived={
            name: sum(len(layer.parts) for layer in layers.values() if not layer.is_filler)
            # a norm's weight did, if it is no longer the skeleton's zero
            + sum(bool(weight.any()) for weight in loaded.norms.get(name, {}).values())
            for name, layers in components.items()
        },
    )


def _written(folder: Path, loads: tuple[LoadCall, ...], base: Base) -> dict[str, dict[str, TensorInfo]]:
    """The tensors of all files by the component that they are for, and by key without what stands for it there."""
    written: dict[str, dict[str, TensorInfo]] = {}
    known = kohya_of(base)
    for load in loads:
        for key, info in tensors_of(folder / load.weight_name).items():
            component, (stem, _, name) = component_of(load, key, base.family), key.partition(".")
            if known and component not in base.models:
                component, name = component_of_stem(stem, base, known, load.weight_name, loads)[0] or component, key
            written.setdefault(component, {})[name] = info
    return written


def _dtypes(tensors: Mapping[str, TensorInfo]) -> dict[str, str]:
    """How A of each module of a component is stored, or LoKr's right factor, by plain module name."""
    found = (re.fullmatch(r"(.+)\.(lora_A\.weight|lokr_w2|lokr_w2_a)", key) for key in tensors)
    return {plain_name(match[1]): tensors[match[0]].dtype for match in found if match}


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
