"""Which layers of a model a name means: diffusers' own, the original implementation's, or either with underscores.

sd-scripts, LyCORIS, musubi-tuner and OneTrainer flatten `down_blocks.0.attn` to `down_blocks_0_attn`, which cannot be
undone by a rule, only by comparing with the model that has it. So every name of a model's layers is listed once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from adapterline.families.base import Base
from adapterline.families.originals import comfy_renames, parts, renames
from adapterline.families.originals.base import Rename
from adapterline.families.skeleton import Target, plain_name, targets


@dataclass(frozen=True)
class Piece:
    """A layer, and which output rows of the named one are its own: (start, stop), in order. None: all of them."""

    module: str
    rows: tuple[tuple[int, int], ...] | None = None


#: The layers that a name means: several where the original implementation fused them into one.
Names = Mapping[str, tuple[Piece, ...]]


def names(base: Base, component: str) -> Names:
    """Every name of the layers of a base's model. A name that could mean different layers is left out."""
    key = (base.architecture, component)
    if key not in _NAMES:
        if len(_NAMES) >= 64:
            _NAMES.clear()
        config = base.models[component]
        originals = (
            *renames(config.model_class, config.config),
            *comfy_renames(config.model_class, config.config),
            *parts(config.model_class),
        )
        _NAMES[key] = name_table(targets(base, component), originals)
    return _NAMES[key]


_NAMES: dict[tuple[str, str], Names] = {}


def look_up(table: Names, spelled: str) -> tuple[Piece, ...] | None:
    """The layers that a name in a checkpoint means, or None.

    Converters put dots back for underscores by guessing, so that some dots are missing and others are too many
    (musubi-tuner's convert_lora.py: `double_blocks.0.img_attn_proj`). Without any dots it is one name of the table.
    """
    plain = plain_name(spelled)
    return table.get(plain) or table.get(spelled.removeprefix("text_model_")) or table.get(plain.replace(".", "_"))


def name_table(layers: Mapping[str, Target], originals: Iterable[Rename]) -> Names:
    """The table of a model with these layers."""
    table: dict[str, tuple[Piece, ...] | None] = {}
    dotted: dict[str, tuple[Piece, ...]] = {module: (Piece(module),) for module in layers}
    for original in originals:
        for name, pieces in expanded(original, layers):
            dotted.setdefault(name, pieces)
    for name, pieces in dotted.items():
        for spelling in {name, name.replace(".", "_")}:
            table[spelling] = pieces if table.get(spelling, pieces) == pieces else None
    return {name: pieces for name, pieces in table.items() if pieces is not None}


def expanded(original: Rename, layers: Mapping[str, Target]) -> Iterable[tuple[str, tuple[Piece, ...]]]:
    """(name, pieces) of a rename, for all numbers that the model has."""
    pattern = re.compile(r"(\d+)".join(map(re.escape, original.modules[0].split("{}"))))
    for module in layers:
        if match := pattern.fullmatch(module):
            numbers = match.groups()
            found = [_filled(each, numbers) for each in original.modules]
            if all(each in layers for each in found):
                yield _filled(original.original, numbers), _pieces(found, layers, original.swapped)


def _filled(pattern: str, numbers: tuple[str, ...]) -> str:
    return pattern.replace("{}", "%s") % numbers if numbers else pattern


def _pieces(modules: list[str], layers: Mapping[str, Target], swapped: bool) -> tuple[Piece, ...]:
    if len(modules) == 1:
        out = layers[modules[0]].shape[0]
        return (Piece(modules[0], ((out // 2, out), (0, out // 2)) if swapped else None),)
    pieces, start = [], 0
    for module in modules:
        stop = start + layers[module].shape[0]
        pieces.append(Piece(module, ((start, stop),)))
        start = stop
    return tuple(pieces)
