"""A copy of an export that may be damaged: its files as data, and the layers that they have."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from adapterline.families.base import component_of
from tests.line import Exported
from tests.mutants.tensorfile import TensorFile

METADATA = "lora_adapter_metadata"
#: Parts of a layer by what a key ends in. Of LoKr, the right factor has an A and a B.
_PARTS = {
    "lora_A.weight": "a", "lora_B.weight": "b", "lora_B.bias": "bias",
    "lora_magnitude_vector": "magnitude", "lora_magnitude_vector.weight": "magnitude",
    "lokr_w2_b": "a", "lokr_w2_a": "b", "lokr_w1": "left",
}  # fmt: skip
_KEY = re.compile(rf"(.+)\.({'|'.join(map(re.escape, sorted(_PARTS, reverse=True)))})")


class NotApplicableError(Exception):
    """There is nothing in this file that this could break."""


@dataclass(frozen=True)
class Layer:
    """A layer of a file: where it is, and its keys by part."""

    component: str
    module: str  # as checks name it
    file: str
    stem: str  # what its keys begin with
    keys: Mapping[str, str]


@dataclass
class Copy:
    """Files by path, in the order in which they are loaded."""

    files: dict[str, TensorFile]
    layers: list[Layer]
    exported: Exported
    choose: random.Random

    @classmethod
    def of(cls, exported: Exported, seed: str) -> Copy:
        """`seed` decides which layers and elements are picked."""
        loads = exported.bundle.loads
        files = {load.weight_name: TensorFile.read(exported.folder / load.weight_name) for load in loads}
        found: dict[tuple[str, str], dict[str, str]] = {}
        components = {}
        for load in loads:
            for key in files[load.weight_name].tensors:
                match = _KEY.fullmatch(key)
                assert match, key
                found.setdefault((load.weight_name, match[1]), {})[_PARTS[match[2]]] = key
                components[load.weight_name, match[1]] = component_of(load, key, exported.base.family)
        layers = [
            Layer(components[at], at[1].partition(".")[2].removeprefix("text_model."), *at, keys)
            for at, keys in found.items()
        ]
        return cls(files, layers, exported, random.Random(seed))

    # --- choosing -----------------------------------------------------------------------------------------------------

    def pick(self, suits: Callable[[Layer], bool] = lambda layer: True) -> Layer:
        """One of the layers that suit."""
        return self._one(layer for layer in self.layers if suits(layer))

    def pair(self, suits: Callable[[Layer, Layer], bool] = lambda one, other: True) -> tuple[Layer, Layer]:
        """Two layers of one component, alike in every shape and dtype."""
        pairs = (
            (one, other)
            for number, one in enumerate(self.layers)
            for other in self.layers[number + 1 :]
            if one.component == other.component and self._form(one) == self._form(other) and suits(one, other)
        )
        return self._one(pairs)

    def of_component(self, several: bool = False) -> list[Layer]:
        """The layers of one of the components; `several`: which must not be the only one."""
        names = sorted({layer.component for layer in self.layers})
        if several and len(names) < 2:
            raise NotApplicableError
        name = self.choose.choice(names)
        return [layer for layer in self.layers if layer.component == name]

    def in_file(self, layers: list[Layer]) -> list[Layer]:
        return [layer for layer in layers if layer.file == layers[0].file]

    def _one(self, found: Iterator[Any]) -> Any:
        choices = list(found)
        if not choices:
            raise NotApplicableError
        return self.choose.choice(choices)

    def _form(self, layer: Layer) -> dict[str, tuple[torch.dtype, torch.Size]]:
        return {part: (self.get(layer, part).dtype, self.get(layer, part).shape) for part in layer.keys}

    # --- changing -----------------------------------------------------------------------------------------------------

    def get(self, layer: Layer, part: str) -> torch.Tensor:
        """The tensor itself: what is done to it in place is done to the file."""
        return self.files[layer.file].tensors[layer.keys[part]]

    def put(self, layer: Layer, part: str, tensor: torch.Tensor) -> None:
        assert tensor.dtype == self.get(layer, part).dtype
        self.files[layer.file].tensors[layer.keys[part]] = tensor

    def exchange(self, one: Layer, other: Layer, *parts: str) -> None:
        for part in parts:
            mine, yours = self.get(one, part), self.get(other, part)
            self.put(one, part, yours)
            self.put(other, part, mine)

    def drop(self, *layers: Layer) -> None:
        for layer in layers:
            self.files[layer.file].drop(layer.keys.values())

    def rename(self, layers: list[Layer], new: Callable[[str], str]) -> None:
        """Gives every key of these layers another name."""
        for layer in layers:
            self.files[layer.file].rename({key: new(key) for key in layer.keys.values()})

    # --- the header ---------------------------------------------------------------------------------------------------

    def metadata(self) -> tuple[TensorFile, dict[str, Any]]:
        """A file that has adapter metadata, and that. NotApplicableError if none has."""
        files = [file for file in self.files.values() if METADATA in file.header]
        file = self._one(iter(files))
        return file, json.loads(file.header[METADATA])

    def layers_in(self, file: TensorFile) -> list[Layer]:
        return [layer for layer in self.layers if self.files[layer.file] is file]

    def write(self, folder: Path) -> None:
        for path, file in self.files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(file.to_bytes())


def modules(*layers: Layer) -> tuple[str, ...]:
    """What a message about these must name: each of a few modules, or the components."""
    if len(layers) <= 3:
        return tuple(layer.module for layer in layers)
    return components(*layers)


def components(*layers: Layer) -> tuple[str, ...]:
    return tuple(sorted({layer.component for layer in layers}))
