"""What one of PEFT's adapter types is: how it calls its tensors, and what its configuration says of the scale."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from adapterline.checkpoints.form import Form, Tensors
from adapterline.checkpoints.scales import Config
from adapterline.errors import CheckpointError

if TYPE_CHECKING:
    import torch

    from adapterline.checkpoints.dialects.base import ScaleRule
    from adapterline.deltas import LowRank


@dataclass(frozen=True)
class PeftType:
    """A peft_type whose change is determined by its tensors and its configuration alone.

    `suffixes` are the parts of a layer by the end of their keys, and `shared` those that lie in the file once, by their
    name behind `base_model.`. `rule` reads a configuration: CheckpointError for a setting that is not known to be
    harmless. `forms` are those that no other trainer has.
    """

    name: str
    suffixes: Mapping[str, str]
    rule: Callable[[Config, str], ScaleRule]
    forms: tuple[Form, ...] = ()
    shared: Mapping[str, str] = field(default_factory=dict)


def low_rank(a: torch.Tensor, b: torch.Tensor, scale: float) -> LowRank:
    """`scale * b @ a` of [out, rank] and [rank, in], stored as float32. ValueError if they do not fit."""
    from adapterline.deltas import LowRank

    if a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[1]:
        raise ValueError("b @ a is no product")
    return LowRank(a.float(), b.float(), scale)


def shared_by_all(tensors: Tensors, part: str) -> torch.Tensor | None:
    """A part that the file has once ("shared {part}"), for each layer ("{part}"), or both; None if it has neither."""
    import torch

    own, shared = tensors.get(part), tensors.get(f"shared {part}")
    if own is not None and shared is not None and not torch.equal(own, shared):
        raise CheckpointError(
            f"A layer has another {part} than the model, and all layers share one.",
            expected="the same",
            remedy="The checkpoint mixes two adapters; save it again.",
        )
    return shared if own is None else own


def linear(shape: tuple[int, ...]) -> tuple[int, int]:
    """(outputs, inputs) of a linear layer. ValueError for a convolution."""
    out, width = shape
    return out, width
