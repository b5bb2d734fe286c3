"""Which family an adapter is of: by the names of its modules, by what its trainer wrote, by the sizes of its layers.

In this order, and each decides only among those that the one before left. What is left then is guessed, and said to be
a guess. An export takes none of this: it compares with the base.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from adapterline.checkpoints.dialects.base import DENOISER
from adapterline.checkpoints.evidence import Evidence, contradiction
from adapterline.checkpoints.hints import hints_of
from adapterline.families import COMPONENT_NAMES, FAMILIES, Family, family_named
from adapterline.families.likeness import Likeness, Part, families_with, most_alike
from adapterline.families.recognition import fitting_families
from adapterline.inspection.layers import Layers
from adapterline.values import Source

#: By how many adapters of each are published, roughly; but one of CLIP alone is rather of SD 1.x, whose only text
#: encoder it is. The others follow in the order of FAMILIES.
_LIKELIEST = ("sd15", "sdxl", "flux", "qwenimage", "wan", "z_image", "flux2", "sd3", "anima")


@dataclass(frozen=True)
class Origin:
    """The family, if anything tells it; why; and what contradicts it, or that it is a guess."""

    family: Family | None
    reasons: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def origin_of(source: Source, components: Sequence[Layers], evidence: tuple[Evidence, ...]) -> Origin:
    """The family of an adapter with these layers."""
    parts = [_part(source, layers) for layers in components]
    marked = _marked(components)
    fitting = tuple(marked) or families_with(parts)
    told, warnings = _told(evidence)
    both = tuple(family for family in fitting if family.name in told)
    if marked and told and not both:
        names = " or ".join(family.title for family in fitting)
        warnings += (f"The names of the modules are those of {names}, and {_saying(told, evidence)}.",)
    pool = both or tuple(marked) or tuple(map(family_named, told)) or fitting
    if not pool:
        unknown = "The family cannot be told from the names of the modules; pass --base to export."
        return Origin(None, (), (unknown, *warnings))
    if len(pool) == 1:
        reason = f"{marked[pool[0]]} is a module of {pool[0].title}" if len(marked) == 1 and pool[0] in marked else ""
        return Origin(pool[0], (reason,) if reason else (), warnings)
    meant = [family for each in evidence for family in pool if family.name == each.family]
    if meant:
        return Origin(meant[0], (), warnings)
    found = most_alike(pool, parts)
    if len(found.families) == 1 and found.is_whole:
        return Origin(found.families[0], (_alike(found),), warnings)
    return _guess(source, pool, found, warnings)


def _guess(source: Source, pool: tuple[Family, ...], found: Likeness, warnings: tuple[str, ...]) -> Origin:
    """One of the pool: what it is most like, then what a hint speaks for, then the likeliest."""
    names = {family.name: family for family in found.families}
    hint = next((hint for hint in hints_of(source) if hint.family in names), None)
    if len(names) == 1:
        (family,), why = names.values(), _alike(found)
    elif hint:
        family, why = names[hint.family], hint.text
    else:
        family = min(names.values(), key=_likelihood)
        why = "nothing tells it from the others, and it is the most common one"
    rest = found.families if found.is_whole else pool
    others = " or ".join(other.title for other in rest if other != family)
    guess = f"The family is a guess: {why}. It may also be {others}; pass --base to export."
    return Origin(family, (f"likely {family.title}: {why}",), (guess, *warnings))


def _likelihood(family: Family) -> int:
    return [*_LIKELIEST, *(each.name for each in FAMILIES)].index(family.name)


def _alike(found: Likeness) -> str:
    return f"the {found.what} of its layers are those of {found.families[0].title}"


def _part(source: Source, layers: Layers) -> Part:
    named = layers.spelled if layers.spelled in COMPONENT_NAMES else None
    is_encoder = layers.is_encoder if layers.spelled is None else layers.spelled != DENOISER
    return Part(named, is_encoder, frozenset(layers.parts), layers.sizes(source))


def _saying(families: Iterable[str], evidence: Iterable[Evidence]) -> str:
    """What says that it is one of these families."""
    return " and ".join(str(each) for each in evidence if set(each.families) & set(families))


def _told(evidence: tuple[Evidence, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(names of the families that all evidence allows, a warning if there are none)."""
    if pair := contradiction(evidence):
        return (), (f"{pair[0]}, and {pair[1]}: one of them is wrong.",)
    sets = [each.families for each in evidence if each.families]
    return tuple(name for name in (sets[0] if sets else ()) if all(name in each for each in sets)), ()


def _marked(components: Iterable[Layers]) -> dict[Family, str]:
    denoiser: set[str] = set()
    others: set[str] = set()
    component = None
    for layers in components:
        spelled = layers.spelled
        if spelled in ("unet", "transformer"):
            component = spelled
        if spelled in ("unet", "transformer", DENOISER) or (spelled is None and not layers.is_encoder):
            denoiser |= set(layers.parts)
        else:
            others |= {f"{spelled or 'text_encoder'}.{module}" for module in layers.parts}
    return fitting_families(denoiser, others, component)
