"""Norm weights in a checkpoint, compared with the base that they are for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from adapterline.errors import ConversionError, FamilyError
from adapterline.families.base import Base
from adapterline.families.norms import loads_norms, norm_weight
from adapterline.families.skeleton import build_model
from adapterline.values import Source

if TYPE_CHECKING:
    import torch


def place_norms(keys: Mapping[str, str], source: Source, base: Base, component: str) -> dict[str, torch.Tensor]:
    """The weights by the name of the base's parameter. `keys` has the key of each by the name that it has there.

    ConversionError where the family's loader has no place for them, FamilyError if the base has no such norm.
    """
    if not keys:
        return {}
    if not loads_norms(base.family, component):
        raise ConversionError(
            f"{min(keys)!r} is the weight of a norm, and load_lora_weights of {base.family.title} takes none.",
            expected="changes of linear layers and convolutions",
            remedy="A LoRA file cannot carry it: save the adapter without it, if it was not trained.",
        )
    parameters = dict(build_model(base.models[component]).named_parameters())
    placed = {}
    for spelled, key in sorted(keys.items()):
        name = norm_weight(spelled) or spelled
        if name not in parameters or parameters[name].shape != source.tensors[key].shape:
            raise FamilyError(
                f"{spelled!r} {list(source.tensors[key].shape)} is no norm of {component} of this base.",
                expected=f"one of a {base.models[component].model_class}",
                remedy="Pass the --base that it was trained on.",
            )
        placed[name] = source.read(key)
    return placed
