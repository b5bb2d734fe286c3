"""The layers of an adapter as its keys have them: by component as the keys call it, with their forms and sizes."""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from adapterline.checkpoints.dialects.base import BASE_WEIGHT, NORM, Entry
from adapterline.checkpoints.form import Form, Shapes
from adapterline.checkpoints.forms import form_of
from adapterline.errors import CheckpointError
from adapterline.families.outlines import Size
from adapterline.values import Source

#: The parts with a column for each input. Of a LoHa's two one will do; a LoKr's are multiplied.
_BY_INPUT = ("a", "a1", "diff", "svd_A", "delora_A", "w1", "w1_a", "w2", "w2_a")


@dataclass(frozen=True)
class Layers:
    """The layers of a component: the keys of the parts by module, and what form they make, of those that make one."""

    spelled: str | None
    parts: Mapping[str, Mapping[str, str]]
    forms: Mapping[str, Form]

    @property
    def keys(self) -> list[str]:
        """Of everything but alphas."""
        return [key for parts in self.parts.values() for part, key in parts.items() if part != "alpha"]

    @property
    def is_encoder(self) -> bool:
        """Is it a text encoder's, going by the names of the modules?"""
        return all(module.split(".")[0] in ("text_model", "encoder") for module in self.parts)

    def sizes(self, source: Source) -> dict[str, Size]:
        """(outputs, inputs) of each layer whose shapes tell them."""
        found = {}
        for module, form in self.forms.items():
            shapes = {part: source.tensors[key].shape for part, key in self.parts[module].items()}
            if size := _size(form, shapes):
                found[module] = size
        return found


def layers_of(entries: Mapping[str, Entry]) -> list[Layers]:
    """Every component's, in the order in which the file has them; the base's own weights and norms are left out."""
    found: dict[str | None, dict[str, dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
    for key, entry in entries.items():
        if entry.part not in (BASE_WEIGHT, NORM):
            found[entry.component][entry.module][entry.part] = key
    return [Layers(spelled, parts, _forms(parts)) for spelled, parts in found.items()]


def _forms(parts: Mapping[str, Iterable[str]]) -> dict[str, Form]:
    forms = {}
    for module, own in parts.items():
        with contextlib.suppress(CheckpointError):
            forms[module] = form_of(frozenset(own), module)
    return forms


def _size(form: Form, shapes: Shapes) -> Size | None:
    try:
        out, columns = form.outputs(shapes), [shapes[part][1] for part in _BY_INPUT if part in shapes]
    except IndexError:
        return None
    return (out, math.prod(columns)) if out and columns else None
