"""What was trained, whoever wrote it and however."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from adapterline.deltas import Delta


@dataclass(frozen=True)
class Embedding:
    """A new token of a text encoder: rows of its input embedding, [n, width].

    A prompt calls it by `token`; of several rows the further ones are `token_1`, `token_2`, ... (diffusers' names).
    `trained_as` is what the trainer called it, where that is something else.
    """

    token: str
    component: str
    vectors: torch.Tensor
    trained_as: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """What each row is called in the tokenizer."""
        return (self.token, *(f"{self.token}_{row}" for row in range(1, len(self.vectors))))


@dataclass(frozen=True)
class Adapter:
    """What was trained: for each adapted module the change of its weight.

    Module names are those of the model class without `text_model.`, which transformers 5 dropped from `CLIPTextModel`
    alone. `left_out` are components that the user excluded by name. `norms` are whole weights of norms, by component
    and the model's own name, that take the place of the base's.
    """

    family: str
    components: Mapping[str, Mapping[str, Delta]]
    evidence: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    pipeline: str | None = None  # the class that it takes, where that is not the base's own
    embeddings: tuple[Embedding, ...] = ()
    norms: Mapping[str, Mapping[str, torch.Tensor]] = field(default_factory=dict)
