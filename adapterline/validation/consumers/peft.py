"""peft: a folder is loaded as its call says, by `PeftModel.from_pretrained`, onto a skeleton that is then looked at.

peft drops tensors that it has no place for without a word, and leaves layers that it has no tensors for as they were
initialised. So the adapter's tensors are made on meta (`low_cpu_mem_usage`), where those stay that nothing was loaded
into, and those that arrived are counted by their keys. Whole weights (modules_to_save, biases) are `Loaded.norms`.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Mapping
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterline.checkpoints.containers.peft_folder import read_config
from adapterline.errors import CheckpointError
from adapterline.families.base import Base
from adapterline.families.skeleton import build_model, plain_name, quiet_libraries
from adapterline.validation.consumers.base import Loaded, LoadedLayer, not_loaded
from adapterline.validation.consumers.layers import layers_of
from adapterline.validation.files import PEFT_CONFIG, PEFT_WEIGHTS, tensors_of
from adapterline.values import LoadCall, TensorInfo

if TYPE_CHECKING:
    import torch

#: What `PeftModel.from_pretrained` calls an adapter that is given no name.
ADAPTER_NAME = "default"
#: The types whose layers are understood here.
_TYPES = ("LORA", "LOKR")


class Peft:
    """`PeftModel.from_pretrained`, for folders as PEFT saves them."""

    name = "peft"

    def load(
        self, folder: Path, files: tuple[str, ...], loads: tuple[LoadCall, ...], base: Base, needed: Collection[str]
    ) -> Loaded | None:
        """See `Consumer.load`. CheckpointError for a type that is neither LoRA nor LoKr."""
        components: dict[str, dict[str, LoadedLayer]] = {}
        written: dict[str, int] = {}
        arrived: dict[str, int] = {}
        replaced: dict[str, dict[str, torch.Tensor]] = {}
        for load in loads:
            component = load.attributes["model"]
            check_config(folder / load.weight_name)
            tensors = tensors_of(folder / load.weight_name / PEFT_WEIGHTS)
            skeleton = build_model(base.models[component])
            try:
                model = _loaded(folder, load, skeleton)
                components[component] = _with_dtypes(layers_of(model.get_base_model(), ADAPTER_NAME), tensors)
            except Exception as error:  # whatever it is, the consumer would meet it too
                return not_loaded(load.weight_name, error)
            there = _as_peft_saves(model)
            written[component] = len(tensors)
            arrived[component] = sum(_as_saved(key) in there for key in tensors)
            replaced[component] = {key: tensor for key, tensor in there.items() if not re.search(r"\.lo(ra|kr)_", key)}
        return Loaded(components, written, arrived, replaced)


def check_config(folder: Path) -> None:
    """CheckpointError unless the folder's configuration is of a type whose layers are understood, and imports nothing.

    With `megatron_config`, peft imports the module that `megatron_core` names (peft.tuners.lora.tp_layer).
    """
    config = read_config(folder / PEFT_CONFIG)
    if config["peft_type"] not in _TYPES or config.get("megatron_config"):
        what = "for Megatron" if config["peft_type"] in _TYPES else f"of type {str(config['peft_type'])[:40]!r}"
        raise CheckpointError(
            f"{folder.name}/{PEFT_CONFIG} is {what}.",
            expected=f"an adapter of type {' or '.join(_TYPES)}",
            remedy="Export it: then the export is proven against it.",
        )


def _loaded(folder: Path, load: LoadCall, model: Any) -> Any:
    import peft

    with quiet_libraries(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what peft says of missing keys is found in the model
        return attrgetter(load.method)(peft)(
            model,
            str(folder),
            subfolder=load.weight_name,
            low_cpu_mem_usage=True,
            torch_device="cpu",
            **load.kwargs,
        )


def _as_peft_saves(model: Any) -> dict[str, torch.Tensor]:
    """All that the adapter brought into the model, by the keys that peft would save it under."""
    from peft import get_peft_model_state_dict

    state = model.state_dict()  # given, peft does not take a bias for a broken matrix
    return dict(
        get_peft_model_state_dict(model, state_dict=state, adapter_name=ADAPTER_NAME, save_embedding_layers=False)
    )


def _as_saved(key: str) -> str:
    """peft takes a magnitude by both of its names."""
    return key.removesuffix(".weight") if key.endswith(".lora_magnitude_vector.weight") else key


def _with_dtypes(layers: Mapping[str, LoadedLayer], tensors: Mapping[str, TensorInfo]) -> dict[str, LoadedLayer]:
    """The layers, with how the file stores A, or LoKr's right factor."""
    found = (re.fullmatch(r"base_model\.model\.(.+)\.(lora_A\.weight|lokr_w2|lokr_w2_a)", key) for key in tensors)
    dtypes = {plain_name(match[1]): tensors[match[0]].dtype for match in found if match}
    return {module: replace(layer, dtype=dtypes.get(module, "")) for module, layer in layers.items()}
