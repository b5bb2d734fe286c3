"""What a consumer makes of the files of a layout: the layers that a model would have after loading them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from adapterline.deltas import Kronecker, LowRank
from adapterline.families.base import Base
from adapterline.values import LoadCall

if TYPE_CHECKING:
    import torch

#: Some loaders list every key that they do not want.
_LONGEST = 1000


@dataclass(frozen=True)
class LoadedLayer:
    """One layer after loading.

    `delta.scale` is what the consumer multiplies by; `active` is False if a forward would skip it. `parts` are the
    tensors that it has of it, `dtype` is how the file stores A (or LoKr's right factor), by safetensors' name; empty
    where the file does not have this layer by this name.
    """

    delta: LowRank | Kronecker
    active: bool
    use_dora: bool
    parts: tuple[torch.Tensor, ...]
    dtype: str = ""

    @property
    def is_zero(self) -> bool:
        """True if it changes nothing."""
        if any(part.is_meta for part in self.parts):
            return False
        if any(part is not None and bool(part.any()) for part in (self.delta.magnitude, self.delta.bias)):
            return False
        factors = (self.delta.a, self.delta.b) if isinstance(self.delta, LowRank) else self.parts
        return not all(bool(factor.any()) for factor in factors)

    @property
    def is_filler(self) -> bool:
        """True if it changes nothing and no file is known to have it: some loaders make zeros for what a file lacks.

        Wan's gives an image-to-video model zeros for the image keys and values that a text-to-video adapter has no
        factors for (`_maybe_expand_t2v_lora_for_i2v`).
        """
        return not self.dtype and self.is_zero


@dataclass(frozen=True)
class Loaded:
    """What a consumer loaded, or what it raised.

    `components` has the layers by component and by module name without `text_model.`; `written` counts the tensors that
    the files have for each component, as far as their keys tell it, and `arrived` those that are in the model then.
    `norms` are whole weights that replaced the model's own, by component and name.
    """

    components: Mapping[str, Mapping[str, LoadedLayer]] = field(default_factory=dict)
    written: Mapping[str, int] = field(default_factory=dict)
    arrived: Mapping[str, int] = field(default_factory=dict)
    norms: Mapping[str, Mapping[str, torch.Tensor]] = field(default_factory=dict)
    error: str = ""

    def without(self, layers: Mapping[str, Collection[str]]) -> Loaded:
        """Less these layers, by component and module."""
        kept = {
            name: {module: layer for module, layer in found.items() if module not in layers.get(name, ())}
            for name, found in self.components.items()
        }
        return replace(self, components=kept)


def not_loaded(path: str, error: Exception) -> Loaded:
    """What a consumer raised over a file, with its cause, which often says more."""
    cause = f" ({error.__cause__})" if error.__cause__ else ""
    return Loaded(error=f"{path}: {type(error).__name__}: {error}{cause}"[:_LONGEST])


class Consumer(Protocol):
    """A program or a library that loads the files of a layout, or a reader by its rules."""

    name: str

    def load(
        self, folder: Path, files: tuple[str, ...], loads: tuple[LoadCall, ...], base: Base, needed: Collection[str]
    ) -> Loaded | None:
        """Executes `loads`, which name `files`, on skeletons of the components in the files, and of those in `needed`.

        None if it is not for these files. A reader by rules reads `files` themselves.

        Never raises for what the consumer makes of the files: that is the finding. CheckpointError for a file that is
        not even of the format.
        """
        ...
