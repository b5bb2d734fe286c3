"""Which of several families an adapter's layers are like, where the names of the modules leave several.

A layer has the size that it has in a real model, or, where the model is another one, at least its proportions: FLUX.1's
`linear1` has 7 outputs for each input, FLUX.2's 9.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from adapterline.families import COMPONENT_NAMES, FAMILIES, Family
from adapterline.families.aliases import shipped_family
from adapterline.families.outlines import Outline, Size, in_blocks, outlines_of

Sizes = Mapping[str, Size]


@dataclass(frozen=True)
class Part:
    """The layers of one component of an adapter.

    `component` is its name in a pipeline; None where the checkpoint does not say it, and then `is_encoder` tells a text
    encoder from the model that denoises. `sizes` are of those of `modules` whose tensors tell them.
    """

    component: str | None
    is_encoder: bool
    modules: frozenset[str]
    sizes: Sizes

    def outlines(self, family: Family) -> list[Outline]:
        """The models of the family that it can be an adapter of."""
        if self.component in COMPONENT_NAMES:
            components = [each for each in family.components if each.name == self.component]
        elif self.is_encoder:
            components = [each for each in family.components if each.name.startswith("text_encoder")]
        else:
            components = list(family.components[:1])
        return [outline for each in components for model in each.models for outline in _outlines(model, family)]


@dataclass(frozen=True)
class Likeness:
    """Those of some families that an adapter is most like, and in what.

    `is_whole`: in each of its layers. Then one family that is alone in this can be named without a doubt.
    """

    families: tuple[Family, ...]
    what: str = ""
    is_whole: bool = False


def families_with(parts: Iterable[Part]) -> tuple[Family, ...]:
    """The families that have, for each part, a model with layers of all its names."""
    parts = tuple(parts)
    return tuple(
        family
        for family in FAMILIES
        if parts and all(any(outline.has(part.modules) for outline in part.outlines(family)) for part in parts)
    )


def _outlines(model: str, family: Family) -> Iterable[Outline]:
    """Those of the family's own bases, or of others' where none of its own has this model."""
    every = outlines_of(model)
    return [each for each in every if any(shipped_family(alias) is family for alias in each.bases)] or every


def most_alike(families: Iterable[Family], parts: Iterable[Part]) -> Likeness:
    """By the sizes of the layers if most are those of a real model, else by the proportions of those in blocks."""
    families, parts = tuple(families), tuple(parts)
    found = _like(families, parts, "sizes", Outline.of_size, dict)
    return found or _like(families, parts, "proportions", Outline.in_proportion, in_blocks) or Likeness(families)


def _like(
    families: tuple[Family, ...],
    parts: tuple[Part, ...],
    what: str,
    count: Callable[[Outline, Sizes], int],
    which: Callable[[Sizes], Sizes],
) -> Likeness | None:
    """None if no family has most of the layers."""
    layers = [which(part.sizes) for part in parts]
    alike = {
        family: sum(
            max((count(outline, sizes) for outline in part.outlines(family)), default=0)
            for part, sizes in zip(parts, layers, strict=True)
        )
        for family in families
    }
    most, all_ = max(alike.values(), default=0), sum(map(len, layers))
    if 2 * most <= all_:
        return None
    return Likeness(tuple(family for family in families if alike[family] == most), what, most == all_)
