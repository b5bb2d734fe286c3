"""Every change as the LoRA that it is, of the rank that it needs; approximated only where the user said so."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

from adapterline.deltas import Delta, GroupedKernel, Kronecker, LowRank, Rows, Ungrouped, approximate
from adapterline.errors import ConversionError
from adapterline.families import Family
from adapterline.parallel import each_value
from adapterline.values import Adapter, ExportOptions, Transform

_NAMES = {"Hadamard": "LoHa", "Kronecker": "LoKr", "Full": "full difference"}


def as_written(
    adapter: Adapter, family: Family, options: ExportOptions
) -> tuple[dict[str, dict[str, LowRank | Kronecker]], tuple[Transform, ...]]:
    """(the change of every module as it goes into the files, by component; what was done).

    ConversionError for a rank above `options.max_rank`, and for `keep_form` where the family's loader has no LoKr.
    """
    components: dict[str, dict[str, LowRank | Kronecker]] = {}
    transforms: list[Transform] = []
    for component, deltas in adapter.components.items():
        if options.keep_form and any(not isinstance(delta, LowRank) for delta in deltas.values()):
            components[component] = _kept(component, deltas, family, options)
            continue
        _check_rank(component, deltas, options)
        done = each_value(lambda delta: _one(delta, options), deltas)
        errors = {module: error for module, (_, error) in done.items() if error is not None}
        exact = {module: delta for module, delta in deltas.items() if module not in errors}
        components[component] = {**_with_biases({module: delta for module, (delta, _) in done.items()})}
        transforms += _rewritten(component, exact, len(deltas))
        if errors:
            transforms.append(
                Transform(
                    kind="approximate",
                    detail=f"the closest changes of rank {options.approximate}, by singular value decomposition",
                    component=component,
                    modules=tuple(sorted(errors)),
                    errors={module: float(f"{errors[module]:.1e}") for module in sorted(errors)},
                )
            )
    return components, tuple(transforms)


def _kept(
    component: str, deltas: Mapping[str, Delta], family: Family, options: ExportOptions
) -> dict[str, LowRank | Kronecker]:
    other = sorted(module for module, delta in deltas.items() if not isinstance(delta, Kronecker))
    if not family.loads_lokr or other or options.scale == "header":
        why = (
            f"{family.title} loads LoRA alone"
            if not family.loads_lokr
            else f"{other[0]} is no LoKr layer of its own"
            if other
            else "LoKr has its scale in the factors, not in the header"
        )
        raise ConversionError(
            f"The form of {component} cannot be kept: {why}.",
            expected="LoKr on every layer, for FLUX.2 or Z-Image, with --scale portable",
            remedy="Leave --keep-form out: then it is written as LoRA.",
        )
    return {module: delta for module, delta in deltas.items() if isinstance(delta, Kronecker)}


def _one(delta: Delta, options: ExportOptions) -> tuple[LowRank, float | None]:
    if options.approximate is not None and delta.needed_rank > options.approximate and not _is_grouped(delta):
        return approximate(delta, options.approximate)
    return delta.low_rank(), None


def _is_grouped(delta: Delta) -> bool:
    return isinstance(delta, Ungrouped | GroupedKernel) or (isinstance(delta, LowRank) and delta.groups > 1)


def _check_rank(component: str, deltas: Mapping[str, Delta], options: ExportOptions) -> None:
    """The trainer's own rank is no question; one that the algebra makes necessary is."""
    if options.approximate is not None:
        return
    ranks = {module: d.needed_rank for module, d in deltas.items() if not isinstance(d, LowRank)}
    module = max(ranks, key=lambda name: ranks[name], default="")
    if module and ranks[module] > options.max_rank:
        raise ConversionError(
            f"{sum(rank > options.max_rank for rank in ranks.values())} layers of {component} need a rank of up to "
            f"{ranks[module]} to be LoRA exactly ({module}: {_form(deltas[module])}).",
            expected=f"at most {options.max_rank}",
            remedy=f"Pass --max-rank {ranks[module]}, or --approximate with the rank that you want: the manifest then "
            "has the error of every layer.",
        )


def _form(delta: Delta) -> str:
    kind = type(delta.whole if isinstance(delta, Rows) else delta).__name__
    return _NAMES.get(kind, "a grouped convolution")


def _rewritten(component: str, deltas: Mapping[str, Delta], total: int) -> list[Transform]:
    by_form = defaultdict(list)
    for module, delta in deltas.items():
        if not isinstance(delta, LowRank):
            by_form[_form(delta)].append(module)
    transforms = []
    for form, modules in sorted(by_form.items()):
        highest = max(deltas[module].needed_rank for module in modules)
        transforms.append(
            Transform(
                kind="to-lora",
                detail=f"{form} written as the LoRA that it is, of rank {highest} at most, in float32",
                component=component,
                modules=() if len(modules) == total else tuple(sorted(modules)),
            )
        )
    return transforms


def _with_biases(deltas: dict[str, LowRank]) -> dict[str, LowRank]:
    """PEFT builds a bias in every lora_B or in none: a layer that has none gets zeros."""
    if not any(delta.bias is not None for delta in deltas.values()):
        return deltas
    return {
        module: delta if delta.bias is not None else replace(delta, bias=delta.b.new_zeros(delta.b.shape[0]))
        for module, delta in deltas.items()
    }
