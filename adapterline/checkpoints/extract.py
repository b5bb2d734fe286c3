"""From a source to its adapter: every tensor in its place, on a module that the base really has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from adapterline.checkpoints.base_weights import check_base_weights
from adapterline.checkpoints.changes import changes
from adapterline.checkpoints.dialects import dialect_named
from adapterline.checkpoints.dialects.base import BASE_WEIGHT, NORM, Dialect
from adapterline.checkpoints.embeddings import EMBEDDINGS
from adapterline.checkpoints.forms import INTEGERS
from adapterline.checkpoints.new_tokens import place_embeddings, wants_embeddings, without_embeddings
from adapterline.checkpoints.norms import place_norms
from adapterline.checkpoints.placing import pipeline_for, place
from adapterline.checkpoints.roles import component_for
from adapterline.checkpoints.trainers import trainer_of
from adapterline.deltas import DTYPES
from adapterline.errors import CheckpointError, ConversionError, FamilyError, UsageError
from adapterline.families.base import Base
from adapterline.values import Adapter, ExportOptions, Source


@dataclass(frozen=True)
class _Part:
    """What the keys have of one component: parts of layers by module, shapes of the base's weights, keys of norms."""

    layers: dict[str, dict[str, str]] = field(default_factory=dict)
    base_weights: dict[str, tuple[int, ...]] = field(default_factory=dict)
    norms: dict[str, str] = field(default_factory=dict)


def extract(source: Source, base: Base, options: ExportOptions) -> Adapter:
    """The adapter in `source`, as it acts on `base`.

    CheckpointError if the source does not determine it, FamilyError if it is not for this base, ConversionError for a
    component that no consumer loads, UsageError for options that do not fit.
    """
    carried, options = wants_embeddings(source, options), without_embeddings(source, options)
    dialect = dialect_named(source.dialect)
    parts = _parts(source, dialect)
    spelled = _spelled(parts, source, base, options)
    chosen, left_out = _choose(spelled, base, options)
    one_trainer = trainer_of(source) == "OneTrainer"
    components, norms = {}, {}
    for component in chosen:
        part = parts[spelled[component]]
        deltas = changes(source, dialect, spelled[component], part.layers, base, component, options)
        components[component] = place(deltas, base, component, swaps_lora_alone=one_trainer)
        check_base_weights(part.base_weights, base, component)
        if part.norms:
            norms[component] = place_norms(part.norms, source, base, component)
    pipeline = pipeline_for(components, base)
    return Adapter(
        family=base.family.name,
        components=components,
        evidence=(f"every adapted module is in {base.pipeline}, with its shape",),
        left_out=(*left_out, *_without_effect(parts), *([EMBEDDINGS] if source.embeddings and not carried else ())),
        pipeline=pipeline,
        embeddings=place_embeddings(source, base, pipeline or base.pipeline) if carried else (),
        norms=norms,
    )


def _parts(source: Source, dialect: Dialect) -> dict[str | None, _Part]:
    """What the keys have of every component, as they call it."""
    parts: dict[str | None, _Part] = {}
    for key, entry in dialect.entries(source).items():
        part = parts.setdefault(entry.component, _Part())
        if entry.part == NORM:
            part.norms[entry.module] = key
        elif entry.part == BASE_WEIGHT:
            part.base_weights[entry.module] = source.tensors[key].shape
        elif source.tensors[key].dtype not in DTYPES and entry.part not in {"alpha", *INTEGERS}:
            raise CheckpointError(
                f"{key!r} is stored as {source.tensors[key].dtype}.", expected=f"one of {', '.join(DTYPES)}"
            )
        else:
            part.layers.setdefault(entry.module, {})[entry.part] = key
    return parts


def _spelled(
    parts: Mapping[str | None, _Part], source: Source, base: Base, options: ExportOptions
) -> dict[str, str | None]:
    """What the keys call each component of the base that they are about."""
    if None in parts and len(parts) > 1:
        raise CheckpointError(
            f"Some keys name their component ({', '.join(sorted(filter(None, parts)))}), and others do not.",
            expected="all or none",
            remedy="Save the adapter of each component by itself.",
        )
    spelled = {component_for(name, part.layers, source, base, options): name for name, part in parts.items()}
    if len(spelled) != len(parts):
        raise CheckpointError(
            f"{' and '.join(sorted(map(str, parts)))} are the same component of {base.pipeline}.",
            expected="one of them",
        )
    return spelled


def _without_effect(parts: Mapping[str | None, _Part]) -> tuple[str, ...]:
    frozen = sum(len(part.base_weights) for part in parts.values())
    return (f"{frozen} weights of the base, which lay under the adapter",) if frozen else ()


def _choose(
    spelled: Mapping[str, str | None], base: Base, options: ExportOptions
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(the components to export, those that the user left out), both sorted."""
    named = set(spelled)
    wanted = named if options.components is None else set(options.components)
    if unknown := sorted(wanted - named):
        raise UsageError(
            f"The checkpoint has no component {', '.join(unknown)}.",
            expected=f"one of its own: {', '.join(sorted(named))}",
            remedy="Correct --components, or leave it out to export all of them.",
        )
    family = base.family
    for name in sorted(wanted):
        component = family.component(name)
        if component is None or (component.loads and name not in base.models):
            raise FamilyError(
                f"The checkpoint adapts {name}, which {base.pipeline} does not have.",
                expected=f"an adapter of {', '.join(c.name for c in family.components if c.loads)}",
                remedy="Pass the --base that it was trained on.",
            )
        if not component.loads:
            others = [other for other in sorted(named) if (found := family.component(other)) and found.loads]
            raise ConversionError(
                f"The checkpoint adapts {name}, and load_lora_weights of {family.title} drops it without a word.",
                expected="components that diffusers loads",
                remedy=f"To export the rest alone, pass --components {','.join(others)}." if others else "",
            )
    return tuple(sorted(wanted)), tuple(sorted(named - wanted))
