"""From a source to its adapter: every tensor in its place, on a module that the base really has."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from functools import partial

from adapterline.checkpoints.dialects import dialect_named
from adapterline.checkpoints.dialects.base import Dialect, Part, ScaleRule, Stated
from adapterline.checkpoints.scales import from_alpha
from adapterline.deltas import DTYPES, LowRank
from adapterline.errors import CheckpointError, ConversionError, FamilyError, UsageError
from adapterline.families.base import Base
from adapterline.families.skeleton import Target, plain_name, targets
from adapterline.values import Adapter, ExportOptions, Source

#: Keys of the parts of the layers of a component, by module as the checkpoint spells it.
Layers = dict[str, dict[Part, str]]


def extract(source: Source, base: Base, options: ExportOptions) -> Adapter:
    """The adapter in `source`, as it acts on `base`.

    CheckpointError if the source does not determine it, FamilyError if it is not for this base, ConversionError for a
    component that no consumer loads, UsageError for options that do not fit.
    """
    dialect = dialect_named(source.dialect)
    layers = _layers(source, dialect)
    named = {component: part for component, part in layers.items() if component is not None}
    if None in layers:
        if named:
            raise CheckpointError(
                f"Some keys name their component ({', '.join(sorted(named))}), and others do not.",
                expected="all or none",
                remedy="Save the adapter of each component by itself.",
            )
        named[_component_of(layers[None], source, base)] = layers[None]
    chosen, left_out = _choose(named, base, options)
    components = {}
    for component in sorted(chosen):
        rule = scale_rule(dialect, source, None if None in layers else component, options)
        if rule is None:
            raise CheckpointError(
                f"Nothing in {source.name} says alpha, and the adapter's effect is alpha / rank times its factors.",
                expected="an adapter_config.json, or metadata in the header",
                remedy="Pass --alpha with its lora_alpha, or --adapter-config with its adapter_config.json.",
            )
        _check_kind(dialect.stated(source, None if None in layers else component), component, chosen[component])
        deltas = {module: _delta(source, module, parts, rule) for module, parts in sorted(chosen[component].items())}
        components[component] = _on_base(deltas, base, component)
    return Adapter(
        family=base.family.name,
        components=components,
        evidence=(f"every adapted module is in {base.pipeline}, with its shape",),
        left_out=left_out,
    )


def _layers(source: Source, dialect: Dialect) -> dict[str | None, Layers]:
    """The keys of every layer's parts. CheckpointError for a layer without A or B."""
    layers: dict[str | None, Layers] = defaultdict(lambda: defaultdict(dict))
    for key, entry in dialect.entries(source).items():
        if source.tensors[key].dtype not in DTYPES:
            raise CheckpointError(
                f"{key!r} is stored as {source.tensors[key].dtype}.", expected=f"one of {', '.join(DTYPES)}"
            )
        layers[entry.component][entry.module][entry.part] = key
    for component, modules in layers.items():
        for module, parts in modules.items():
            if missing := [name for part, name in (("a", "A"), ("b", "B")) if part not in parts]:
                where = f"{component}.{module}" if component else module
                raise CheckpointError(
                    f"{where} has no lora_{' and no lora_'.join(missing)}.",
                    expected="both factors of every layer",
                    remedy="The checkpoint is not whole; save it again.",
                )
    return {component: dict(modules) for component, modules in layers.items()}


def _delta(source: Source, module: str, parts: Mapping[Part, str], rule: ScaleRule) -> LowRank:
    a, b = source.tensors[parts["a"]], source.tensors[parts["b"]]
    rank = a.shape[0] if a.shape else 0
    if len(a.shape) < 2 or len(b.shape) < 2 or rank < 1 or b.shape[1] != rank:
        raise CheckpointError(
            f"The factors of {module} do not fit: A is {list(a.shape)}, B is {list(b.shape)}.",
            expected="A [rank, in, ...] and B [out, rank, ...]",
        )
    if any(size != 1 for size in b.shape[2:]):
        raise CheckpointError(f"B of {module} is {list(b.shape)}.", expected="a kernel of size 1")
    tensors = {part: source.read(key) for part, key in parts.items()}
    magnitude, bias = tensors.get("magnitude"), tensors.get("bias")
    out = b.shape[0]
    for name, tensor in (("magnitude", magnitude), ("bias", bias)):
        if tensor is not None and tensor.numel() != out:
            raise CheckpointError(
                f"The {name} of {module} has {tensor.numel()} values.", expected=f"one for each of its {out} outputs"
            )
    return LowRank(tensors["a"], tensors["b"], rule(module, rank), magnitude, bias)


def scale_rule(dialect: Dialect, source: Source, component: str | None, options: ExportOptions) -> ScaleRule | None:
    """The checkpoint's own rule; the user's alpha where it has none; None if neither says it.

    diffusers' format without metadata means scale 1, but PEFT-trained files without it are common, so a user may say
    what the file lost. What the checkpoint does say is never overridden.
    """
    rule = dialect.scale_rule(source, component)
    states = bool(source.configs) or "lora_adapter_metadata" in source.header
    if options.alpha is not None:
        if not states:
            return from_alpha(options.alpha)
        if rule is not None:
            return partial(_agreeing, rule, options.alpha)
    return rule


def _agreeing(rule: ScaleRule, alpha: float, module: str, rank: int) -> float:
    scale = rule(module, rank)
    if abs(scale - alpha / rank) > 1e-9 * scale:
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
    return {name: named[name] for name in wanted}, tuple(sorted(set(named) - wanted))


def _component_of(layers: Layers, source: Source, base: Base) -> str:
    """The one component of the base that has all these modules, with their shapes."""
    shapes = {
        module: (source.tensors[parts["b"]].shape[0], *source.tensors[parts["a"]].shape[1:])
        for module, parts in layers.items()
    }
    model_class = _stated_class(source)
    reasons, fitting = [], []
    for name, config in base.models.items():
        if model_class and model_class != config.model_class:
            reasons.append(f"{name} is a {config.model_class}, and the adapter's configuration says {model_class}")
        elif misfit := _misfit(shapes, targets(base, name)):
            reasons.append(f"{name}: {misfit}")
        else:
            fitting.append(name)
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise CheckpointError(
            f"The keys do not say whether {' or '.join(fitting)} was trained; the modules of both fit.",
            expected="a component that can be told",
            remedy=f"Put the adapter into a folder named {' or '.join(fitting)}, and export the folder around it.",
        )
    raise FamilyError(
        f"The adapter fits no component of {base.pipeline} ({'; '.join(reasons)}).",
        expected="an adapter that was trained on this base",
        remedy="Pass the --base that it was trained on.",
    )


def _stated_class(source: Source) -> str | None:
    mapping = source.configs.get("", {}).get("auto_mapping")
    return mapping.get("base_model_class") if isinstance(mapping, dict) else None


def _misfit(shapes: Mapping[str, tuple[int, ...]], layers: Mapping[str, Target]) -> str:
    """Why adapters of these shapes do not fit these layers; empty if they do."""
    missing = sorted(module for module in shapes if plain_name(module) not in layers)
    if missing:
        return f"{len(missing)} of {len(shapes)} adapted modules are not in it ({missing[0]})"
    for module, shape in sorted(shapes.items()):
        if shape != layers[plain_name(module)].shape:
            return f"{module} is {list(layers[plain_name(module)].shape)}, and the adapter is for {list(shape)}"
    return ""


def _on_base(deltas: Mapping[str, LowRank], base: Base, component: str) -> dict[str, LowRank]:
    """The deltas under plain module names. FamilyError if the base has no such module, or of another shape."""
    if misfit := _misfit({module: delta.shape for module, delta in deltas.items()}, targets(base, component)):
        raise FamilyError(
            f"The adapter does not fit {component} of this base, a {base.models[component].model_class}: {misfit}.",
            expected=f"an adapter that was trained on this base ({base.family.title})",
            remedy="Pass the --base that it was trained on.",
        )
    plain = {plain_name(module): delta for module, delta in deltas.items()}
    if len(plain) != len(deltas):
        raise CheckpointError(f"{component} has modules both with and without 'text_model.'.", expected="one of them")
    return plain
