"""What will be written, and how it will be loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from adapterline.values.base import Value

if TYPE_CHECKING:
    import torch

#: The file name that `load_lora_weights` looks for first (diffusers.loaders.lora_base.LORA_WEIGHT_NAME_SAFE).
WEIGHT_NAME = "pytorch_lora_weights.safetensors"


#: A hash of a file's own tensors, as its header can have it. modelspec: ModelSpec's, 0x and the sha256 of their bytes.
#: sshs: sd-scripts', the same without 0x; sshs-legacy: of 64 KiB at 1 MiB of the file with no fields but `ss_*`.
HeaderHash = Literal["modelspec", "sshs", "sshs-legacy"]


@dataclass(frozen=True)
class TensorPlan:
    """One tensor to be written: made when its turn comes, so that one at a time lies in memory."""

    dtype: str  # as safetensors spells it
    shape: tuple[int, ...]
    make: Callable[[], torch.Tensor]


class LoadCall(Value):
    """One call that loads an exported file: what the validator executes, and the card and the CLI print."""

    library: Literal["diffusers", "peft"] = Field("diffusers", description="whose code it is")
    pipeline: str = Field(description="a diffusers pipeline class")
    method: str = Field(description="its method; of peft: the class and method that make the adapted model")
    weight_name: str = Field(description="the file; of peft: the folder with its configuration")
    kwargs: dict[str, str | int | float | bool] = Field({}, description="further arguments")
    attributes: dict[str, str] = Field(
        {}, description="arguments that are the pipeline's own: `text_encoder` -> the name of its attribute"
    )

    def loads(self, path: str) -> bool:
        """Does it load this file? It names one, or PEFT's folder."""
        return path == self.weight_name or path.startswith(f"{self.weight_name}/")


@dataclass(frozen=True)
class FilePlan:
    """One file to be written: tensors with a safetensors header, in no particular order, or `content` as it is.

    `hashes` are fields that the header gets besides, each a hash of the tensors: they are made twice then.
    """

    role: str
    layout: str
    path: str
    tensors: Mapping[str, TensorPlan] = field(default_factory=dict)
    header: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    hashes: Mapping[str, HeaderHash] = field(default_factory=dict)


class Transform(Value):
    """Something that was done between the checkpoint and the file."""

    kind: str = Field(description="what: fold-scale, store-fp32, cast, rename, ...")
    detail: str = Field(description="with which numbers")
    layout: str | None = Field(None, description="the layout in whose files it was done; null: in all of them")
    component: str | None = Field(None, description="of the pipeline; null: all of them")
    modules: tuple[str, ...] = Field((), description="the modules it applies to; empty: all of the component")
    errors: dict[str, float] = Field({}, description="relative error of the weight's change by module, if it made one")


@dataclass(frozen=True)
class Plan:
    """All files of an export, the calls that load them, and what was done to the factors, in order."""

    files: tuple[FilePlan, ...]
    loads: tuple[LoadCall, ...]
    transforms: tuple[Transform, ...]
