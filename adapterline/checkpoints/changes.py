"""The change of every layer of one component: its parts read, its form found, its scale asked for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from adapterline.checkpoints.dialects.base import Dialect, ScaleRule, Stated
from adapterline.checkpoints.form import Form, Layer
from adapterline.checkpoints.forms import SHARED, build, form_of
from adapterline.checkpoints.scales import from_alpha
from adapterline.deltas import Delta
from adapterline.errors import CheckpointError, FamilyError, UsageError
from adapterline.families.base import Base
from adapterline.families.names import look_up, names
from adapterline.families.skeleton import targets
from adapterline.parallel import each_value
from adapterline.values import ExportOptions, Source

if TYPE_CHECKING:
    import torch

#: Keys of the parts of the layers of a component, by module as the checkpoint spells it.
Layers = Mapping[str, Mapping[str, str]]


def changes(
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
