"""Which families a set of module names can be of, without a model: names alone, in whatever spelling.

A family's `marks` are about diffusers' names. Names of the original implementation are first put into diffusers' by the
tables of `originals`, and dots count as underscores throughout, because sd-scripts and LyCORIS write no dots. This is
evidence, not proof.
"""

from __future__ import annotations

import functools
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from adapterline.families import FAMILIES, Family
from adapterline.families.aliases import shipped_family
from adapterline.families.originals import ORIGINALS, Rename, renames
from adapterline.families.shipped import SHIPPED, shipped

#: By names with a placeholder for every number: how to read off the numbers that count, and what they go into.
Table = Mapping[str, list[tuple[re.Pattern[str], str]]]
Patterns = tuple[list[re.Pattern[str]], list[re.Pattern[str]]]

_NUMBER = re.compile(r"(?<=_)\d+(?=_|$)")
_IN_A_BLOCK = re.compile(r"_\d+_")
#: The blocks of a UNet in diffusers and in the original implementation, and what else it has and others have too.
_UNET_BLOCK = re.compile(r"(down_blocks|mid_block|up_blocks|input_blocks|middle_block|output_blocks)(?![a-z])")
_OF_A_UNET = re.compile(rf"{_UNET_BLOCK.pattern}|(conv_in|conv_out|time_embedding|add_embedding|label_emb)(?![a-z])")
#: A component's name in front of a module's, in a family's marks.
_COMPONENT = re.compile(
    r"(?<![\w.])(unet|connectors|text_conditioner|transformer(_2|_ref|\(_2\)\?)?|text_encoder(_\d)?)$"
)


def denoiser_of(modules: Iterable[str]) -> str:
    """What a pipeline calls the model with these modules: unet, or transformer."""
    named = list(modules)
    unet = any(map(_UNET_BLOCK.match, named)) or (named and all(map(_OF_A_UNET.match, named)))
    return "unet" if unet else "transformer"


def fitting_families(
    denoiser: Iterable[str], others: Iterable[str] = (), component: str | None = None
) -> dict[Family, str]:
    """The families whose marks are in these names, and none of whose others are; with the name that has the mark.

    `denoiser` has the modules of the model that denoises, as the checkpoint spells them, and `component` is what it
    calls that model; `others` are names of the rest, each with its component in front.
    """
    modules, rest = sorted(denoiser), sorted(others)
    component = component or denoiser_of(modules)
    found = {}
    for family in FAMILIES:
        if modules and family.components[0].name != component:
            continue
        for spelling in _spellings(family, modules):
            text = "\n".join([*(f"{component}.{module}" for module in spelling), *rest])
            if mark := _mark(_patterns(family, dotted="." in "".join(spelling)), text):
                found[family] = mark
                break
    return found


def _mark(patterns: Patterns, text: str) -> str | None:
    marks, never = patterns
    first, *more = [mark.search(text) for mark in marks]
    if first is None or not all(more) or any(no.search(text) for no in never):
        return None
    return first[0]


@functools.cache
def _patterns(family: Family, dotted: bool) -> Patterns:
    """A family's marks and its `never`, for names with dots or without."""

    def compiled(patterns: tuple[str, ...]) -> list[re.Pattern[str]]:
        return [re.compile(pattern if dotted else _flat(pattern)) for pattern in patterns]

    return compiled(family.marks), compiled(family.never)


def _flat(pattern: str) -> str:
    """A mark for names without dots; only the one after the component stays."""
    head, *parts = pattern.split(r"\.")
    for part in parts:
        head += (r"\." if _COMPONENT.search(head) else "_") + part
    return head


def _spellings(family: Family, modules: list[str]) -> Iterator[list[str]]:
    """The names as they are, and put into diffusers' by each table with which that can be done."""
    yield modules
    flat = [module.replace(".", "_") for module in modules]
    for table in _tables(family):
        translated = [_translated(table, module) for module in flat]
        if any(translated) and all(
            new or not _IN_A_BLOCK.search(old) for new, old in zip(translated, flat, strict=True)
        ):
            yield [new or old for new, old in zip(translated, modules, strict=True)]


def _translated(table: Table, module: str) -> str | None:
    for pattern, template in table.get(_NUMBER.sub("{}", module), ()):
        if match := pattern.fullmatch(module):
            return template.format(*match.groups())
    return None


@functools.cache
def _tables(family: Family) -> tuple[Table, ...]:
    found: list[tuple[Rename, ...]] = []
    for model in family.components[0].models:
        if model not in ORIGINALS:
            continue
        for config in _configs(family, model) if callable(ORIGINALS[model]) else [{}]:
            if (table := renames(model, config)) not in found:
                found.append(table)
    return tuple(map(_table, found))


def _configs(family: Family, model: str) -> Iterator[Mapping[str, object]]:
    """The shipped configurations of this class; the class's own defaults without any."""
    component, none = family.components[0].name, True
    for base in SHIPPED:
        folder = shipped(base.alias)
        if folder is None or shipped_family(base.alias) is not family:
            continue
        index = json.loads((folder / "model_index.json").read_bytes())
        if index.get(component, ["", ""])[1] == model:
            none = False
            yield json.loads((folder / component / "config.json").read_bytes())
    if none:
        yield {}


def _table(originals: tuple[Rename, ...]) -> Table:
    table: dict[str, list[tuple[re.Pattern[str], str]]] = defaultdict(list)
    for rename in originals:
        original = rename.original.replace(".", "_")
        pattern = re.compile(r"(\d+)".join(map(re.escape, original.split("{}"))))
        table[_NUMBER.sub("{}", original)].append((pattern, rename.modules[0]))
    return dict(table)
