"""From a source to its adapter: every tensor in its place, on a module that the base really has."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from adapterline.checkpoints.base_weights import check_base_weights
from adapterline.checkpoints.dialects import dialect_named
from adapterline.checkpoints.dialects.base import BASE_WEIGHT, NORM, Dialect, ScaleRule, Stated
from adapterline.checkpoints.embeddings import EMBEDDINGS
from adapterline.checkpoints.form import Form, Layer
from adapterline.checkpoints.forms import INTEGERS, SHARED, build, form_of
from adapterline.checkpoints.new_tokens import place_embeddings, wants_embeddings, without_embeddings
from adapterline.checkpoints.norms import place_norms
from adapterline.checkpoints.placing import pipeline_for, place
from adapterline.checkpoints.roles import component_for
from adapterline.checkpoints.scales import from_alpha
from adapterline.deltas import DTYPES, Delta
from adapterline.errors import CheckpointError, ConversionError, FamilyError, UsageError
from adapterline.families.base import Base
from adapterline.families.names import look_up, names
from adapterline.families.skeleton import targets
from adapterline.parallel import each_value
from adapterline.values import Adapter, ExportOptions, Source

if TYPE_CHECKING:
    import torch

#: Keys of the parts of the layers of a component, by module as the checkpoint spells it.
Layers = dict[str, dict[str, str]]


def extract(source: Source, base: Base, options: ExportOptions) -> Adapter:
    """The adapter in `source`, as it acts on `base`.

    CheckpointError if the source does not determine it, FamilyError if it is not for this base, ConversionError for a
    component that no consumer loads, UsageError for options that do not fit.
    """
    carried, options = wants_embeddings(source, options), without_embeddings(source, options)
    dialect = dialect_named(source.dialect)
    layers, base_weights, norms = _layers(source, dialect)
    if None in layers and len(layers) > 1:
        raise CheckpointError(
            f"Some keys name their component ({', '.join(sorted(filter(None, layers)))}), and others do not.",
            expected="all or none",
            remedy="Save the adapter of each component by itself.",
        )
    spelled = {component_for(name, part, source, base, options): name for name, part in layers.items()}
    if len(spelled) != len(layers):
        raise CheckpointError(
            f"{' and '.join(sorted(map(str, layers)))} are the same component of {base.pipeline}.",
            expected="one of them",
        )
    named = {component: layers[name] for component, name in spelled.items()}
    chosen, left_out = _choose(named, base, options)
    components = {}
    for component in sorted(chosen):
        deltas = _deltas(source, dialect, spelled[component], chosen[component], base, component, options)
        components[component] = place(deltas, base, component)
        check_base_weights(base_weights.get(spelled[component], {}), base, component)
    if any(base_weights.values()):
        left_out = (
            *left_out,
            f"{sum(map(len, base_weights.values()))} weights of the base, which lay under the adapter",
        )
    if source.embeddings and not carried:
        left_out = (*left_out, EMBEDDINGS)
    pipeline = pipeline_for(components, base)
    return Adapter(
        family=base.family.name,
        components=components,
        evidence=(f"every adapted module is in {base.pipeline}, with its shape",),
        left_out=left_out,
        pipeline=pipeline,
        norms={
            component: placed
            for component in sorted(chosen)
            if (placed := place_norms(norms.get(spelled[component], {}), source, base, component))
        },
        embeddings=place_embeddings(source, base, pipeline or base.pipeline) if carried else (),
    )


def _layers(
    source: Source, dialect: Dialect
) -> tuple[dict[str | None, Layers], dict[str | None, dict[str, tuple[int, ...]]], dict[str | None, dict[str, str]]]:
    """(keys of every layer's parts, shapes of the base's own weights, keys of norms), by component as the keys have it."""
    layers: dict[str | None, Layers] = defaultdict(lambda: defaultdict(dict))
    base_weights: dict[str | None, dict[str, tuple[int, ...]]] = defaultdict(dict)
    norms: dict[str | None, dict[str, str]] = defaultdict(dict)
    for key, entry in dialect.entries(source).items():
        if entry.part == NORM:
            norms[entry.component][entry.module] = key
            continue
        if entry.part == BASE_WEIGHT:
            base_weights[entry.component][entry.module] = source.tensors[key].shape
            continue
        if source.tensors[key].dtype not in DTYPES and entry.part not in {"alpha", *INTEGERS}:
            raise CheckpointError(
                f"{key!r} is stored as {source.tensors[key].dtype}.", expected=f"one of {', '.join(DTYPES)}"
            )
        layers[entry.component][entry.module][entry.part] = key
    return {component: dict(modules) for component, modules in layers.items()}, dict(base_weights), dict(norms)


def _deltas(
    source: Source,
    dialect: Dialect,
    spelled: str | None,
    layers: Layers,
    base: Base,
    component: str,
    options: ExportOptions,
) -> dict[str, Delta]:
    """The change of every layer, by module as the checkpoint spells it."""
    rule = scale_rule(dialect, source, spelled, options)
    if rule is None:
        raise CheckpointError(
            f"Nothing in {source.name} says alpha, and the adapter's effect is alpha / rank times its factors.",
            expected="an adapter_config.json, or metadata in the header",
            remedy="Pass --alpha with its lora_alpha, or --adapter-config with its adapter_config.json.",
        )
    forms = {
        module: form_of(frozenset(parts), f"{spelled}.{module}" if spelled else module)
        for module, parts in sorted(layers.items())
    }
    stated = dialect.stated(source, spelled)
    _check_kind(stated, component, layers)
    scales = {module: rule(module, rank_of(source, forms[module], layers[module], module)) for module in forms}
    known = _known(forms, scales, stated, base, component)
    shared = _read(source, {part: key for parts in layers.values() for part, key in parts.items() if part in SHARED})
    tensors = {
        module: {part: shared[part] for part in form.shared & shared.keys()} | _read(source, layers[module])
        for module, form in forms.items()
    }
    return each_value(
        lambda module: build(forms[module], tensors[module], known[module], module),
        {module: module for module in sorted(forms)},
    )


def _read(source: Source, parts: Mapping[str, str]) -> dict[str, torch.Tensor]:
    return {part: source.read(key) for part, key in parts.items() if part != "alpha"}


def _known(
    forms: Mapping[str, Form], scales: Mapping[str, float], stated: Stated | None, base: Base, component: str
) -> dict[str, Layer]:
    """What is known of every layer besides its tensors. FamilyError if a form asks for a layer that the base lacks."""
    shapes: dict[str, tuple[int, ...]] = {}
    if any(form.on_base for form in forms.values()):
        shapes = _shapes(forms, base, component)
    largest = (
        max((shape[0] for shape in shapes.values()), default=0),
        max((math.prod(shape[1:]) for shape in shapes.values()), default=0),
    )
    config, where = (stated.config, stated.where) if stated else ({}, "")
    return {module: Layer(scale, shapes.get(module, ()), largest, config, where) for module, scale in scales.items()}


def _shapes(modules: Iterable[str], base: Base, component: str) -> dict[str, tuple[int, ...]]:
    """The shapes of the base's layers of these names."""
    table, layers = names(base, component), targets(base, component)
    shapes = {}
    for module in modules:
        pieces = look_up(table, module) or ()
        if len(pieces) != 1 or pieces[0].rows is not None:
            raise FamilyError(
                f"The adapter does not fit {component} of this base, a {base.models[component].model_class}: it has no "
                f"{module}.",
                expected=f"an adapter that was trained on this base ({base.family.title})",
                remedy="Pass the --base that it was trained on.",
            )
        shapes[module] = layers[pieces[0].module].shape
    return shapes


def rank_of(source: Source, form: Form, parts: Mapping[str, str], module: str) -> int | None:
    """The number that alpha is divided by, read off the shapes. CheckpointError if they have none."""
    shapes = {part: source.tensors[key].shape for part, key in parts.items()}
    try:
        rank = form.rank(shapes)
    except IndexError:
        rank = -1
    if rank is not None and rank < (0 if form.prunable else 1):
        listed = ", ".join(f"{part} is {list(shape) or 'a single number'}" for part, shape in sorted(shapes.items()))
        raise CheckpointError(
            f"The factors of {module} do not fit: {listed}.", expected=f"those of a {form.name} layer"
        )
    return rank


def scale_rule(dialect: Dialect, source: Source, component: str | None, options: ExportOptions) -> ScaleRule | None:
    """The checkpoint's own rule; the user's alpha where it has none; None if neither says it.

    diffusers' format without metadata means scale 1, but PEFT-trained files without it are common, so a user may say
    what the file lost. What the checkpoint does say is never overridden.
    """
    rule = dialect.scale_rule(source, component)
    states = bool(source.configs) or "lora_adapter_metadata" in source.header or _has_alphas(source, dialect)
    if options.alpha is not None:
        if not states:
            return from_alpha(options.alpha)
        if rule is not None:
            return partial(_agreeing, rule, options.alpha)
    return rule


def _has_alphas(source: Source, dialect: Dialect) -> bool:
    return any(entry.part == "alpha" for entry in dialect.entries(source).values())


def _agreeing(rule: ScaleRule, alpha: float, module: str, rank: int | None) -> float:
    scale = rule(module, rank)
    if rank is not None and abs(scale - alpha / rank) > 1e-9 * abs(scale):
        raise UsageError(
            f"--alpha {alpha:g} means a scale of {alpha / rank:g} for {module}, and the checkpoint says {scale:g}.",
            remedy="Leave --alpha out: what the checkpoint says counts.",
        )
    return scale


def _check_kind(stated: Stated | None, component: str, layers: Layers) -> None:
    """CheckpointError if configuration and layers disagree on DoRA or lora_bias: the effect is not known then."""
    for setting, part in (("use_dora", "magnitude"), ("lora_bias", "bias")):
        having = sorted(module for module, parts in layers.items() if part in parts)
        if stated and setting in stated.config and not stated.config[setting] and having:
            raise CheckpointError(
                f"{stated.where} says {setting}={stated.config[setting]}, and {len(having)} of {len(layers)} layers of "
                f"{component} have a {part} ({having[0]}).",
                expected="a configuration that was saved with these tensors",
                remedy="Find out which of the two is right; peft would ignore the tensors.",
            )
        lacking = sorted(module for module, parts in layers.items() if part not in parts)
        if stated and stated.config.get(setting) and lacking:
            raise CheckpointError(
                f"{stated.where} says {setting}, and {len(lacking)} of {len(layers)} layers of {component} have no "
                f"{part} ({lacking[0]}).",
                expected=f"a {part} in every layer",
                remedy="The checkpoint is not whole; save it again.",
            )


def _choose(
    named: Mapping[str, Layers], base: Base, options: ExportOptions
) -> tuple[dict[str, Layers], tuple[str, ...]]:
    """(the components to export, those that the user left out)."""
    wanted = set(named) if options.components is None else set(options.components)
    if unknown := sorted(wanted - set(named)):
        raise UsageError(
            f"The checkpoint has no component {', '.join(unknown)}.", expected=f"of {', '.join(sorted(named))}"
        )
    family = base.family
    for name in sorted(wanted):
        component = family.component(name)
        if component is None or (component.loads and name not in base.models):
            raise FamilyError(
                f"The checkpoint adapts {name}, which {base.pipeline} does not have.",
                expected=f"an adapter of {_listed(c.name for c in family.components if c.loads)}",
                remedy="Pass the --base that it was trained on.",
            )
        if not component.loads:
            others = [other for other in sorted(named) if (found := family.component(other)) and found.loads]
            raise ConversionError(
                f"The checkpoint adapts {name}, and load_lora_weights of {family.title} drops it without a word.",
                expected="components that diffusers loads",
                remedy=f"To export the rest alone, pass --components {','.join(others)}." if others else "",
            )
    return {name: named[name] for name in wanted}, tuple(sorted(set(named) - wanted))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
