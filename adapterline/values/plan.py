"""What will be written, and how it will be loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field

from adapterline.values.base import Value

if TYPE_CHECKING:
    import torch

#: The file name that `load_lora_weights` looks for first (diffusers.loaders.lora_base.LORA_WEIGHT_NAME_SAFE).
WEIGHT_NAME = "pytorch_lora_weights.safetensors"


@dataclass(frozen=True)
class TensorPlan:
    """One tensor to be written: made when its turn comes, so that one at a time lies in memory."""

    dtype: str  # as safetensors spells it
    shape: tuple[int, ...]
    make: Callable[[], torch.Tensor]


class LoadCall(Value):
    """One call that loads an exported file: what the validator executes, and the card and the CLI print."""

    pipeline: str = Field(description="a diffusers pipeline class")
    method: str = Field(description="its method")
    weight_name: str
    kwargs: dict[str, str | int | float | bool] = {}
    attributes: dict[str, str] = Field(
        {}, description="arguments that are the pipeline's own: `text_encoder` -> the name of its attribute"
    )


@dataclass(frozen=True)
class FilePlan:
    """One file to be written: tensors with a safetensors header, in no particular order."""

    role: str
    layout: str
    path: str
    tensors: Mapping[str, TensorPlan]
    header: Mapping[str, str]


class Transform(Value):
    """Something that was done between the checkpoint and the file."""

    kind: str = Field(description="what: fold-scale, store-fp32, cast, rename, ...")
    detail: str
    component: str | None = None
    modules: tuple[str, ...] = Field((), description="the modules it applies to; empty: all of the component")
    errors: dict[str, float] = Field({}, description="relative error of the weight's change by module, if it made one")


@dataclass(frozen=True)
class Plan:
    """All files of an export, the calls that load them, and what was done to the factors, in order."""

    files: tuple[FilePlan, ...]
    loads: tuple[LoadCall, ...]
    transforms: tuple[Transform, ...]
