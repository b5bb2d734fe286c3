"""What a checkpoint is, told from its headers and one hashing pass; a `.safetensors` file is read without torch."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from adapterline.checkpoints import load_checkpoint
from adapterline.checkpoints.changes import rank_of, scale_rule
from adapterline.checkpoints.dialects import dialect_named
from adapterline.checkpoints.dialects.base import BASE_WEIGHT, DENOISER, NORM, Entry
from adapterline.checkpoints.evidence import Evidence, contradiction, evidence_of, guess
from adapterline.checkpoints.form import Form
from adapterline.checkpoints.forms import form_of
from adapterline.checkpoints.refused import adapter_type_of, refused_entries, refusing_dialect
from adapterline.checkpoints.roles import TEXT_ENCODERS
from adapterline.checkpoints.trainers import trainer_of
from adapterline.deltas import DTYPES
from adapterline.errors import CheckpointError, ConversionError
from adapterline.families import COMPONENT_NAMES, FAMILIES, Family, family_named
from adapterline.families.recognition import denoiser_of, fitting_families
from adapterline.values import ExportOptions, Source, Value

#: Entries by key, by component as the keys have it.
Groups = Mapping[str | None, Mapping[str, Entry]]


class InspectedComponent(Value):
    """One component, in numbers; a list where modules differ."""

    rank: int | list[int] | None = Field(description="what alpha is divided by; None: no factor tells it")
    alpha: float | list[float] | None = Field(description="None: nothing in the checkpoint says it, or it has no use")
    modules: int
    adapter_type: str
    dtype: str | list[str]
    parameters: int


class InspectedEmbedding(Value):
    """A new token, as one text encoder knows it."""

    token: str
    encoder: str = Field(description="what the checkpoint calls the text encoder; empty where it does not say")
    shape: tuple[int, ...]
    dtype: str


class Inspection(Value):
    """The answer of `adapterline inspect`."""

    path: str
    container: str
    dialect: str
    trainer: str | None
    family: str | None
    components: dict[str, InspectedComponent]
    embeddings: tuple[InspectedEmbedding, ...] = Field((), description="new tokens that were trained with the adapter")
    digest: str
    size: int = Field(description="bytes of the files that are read")
    files: tuple[str, ...]
    step: int | None
    base: str | None = Field(description="the Hub id that the checkpoint names")
    architecture: str | None = Field(
        description="alias of the shipped base that export proves on where the checkpoint names none"
    )
    evidence: tuple[str, ...]
    warnings: tuple[str, ...]


def inspect(path: str | Path, options: ExportOptions | None = None) -> Inspection:
    """Reads headers and hashes files; no tensor is loaded.

    CheckpointError as `export` would raise it. An adapter that can be read and not exported, because of its type, is
    told all the same, with the reason among the warnings.
    """
    options = options or ExportOptions()
    with tempfile.TemporaryDirectory(prefix="adapterline-") as name:
        folder = Path(name)
        try:
            source = load_checkpoint(str(path), options, folder)
        except ConversionError as refusal:
            source = load_checkpoint(str(path), options, folder, refusing_dialect)
            return _inspection(str(path), source, options, refusal)
        return _inspection(str(path), source, options, None)


def _inspection(path: str, source: Source, options: ExportOptions, refusal: ConversionError | None) -> Inspection:
    entries = refused_entries(source) if refusal else dialect_named(source.dialect).entries(source)
    groups: dict[str | None, dict[str, Entry]] = defaultdict(dict)
    for key, entry in entries.items():
        if entry.part not in (BASE_WEIGHT, NORM):
            groups[entry.component][key] = entry
    evidence = evidence_of(source)
    origin = _origin(groups, evidence)
    warnings = [f"It cannot be exported: {refusal}"] if refusal else []
    warnings += origin.warnings
    components: dict[str, InspectedComponent] = {}
    for spelled, group in groups.items():
        name = _component_name(spelled, group, source, origin.family)
        name = str(spelled) if name in components else name
        one = _refused(source, group) if refusal else _component(source, name, group, options, warnings)
        components[name] = one
    guessed = None if source.stated_base else guess(evidence)
    return Inspection(
        path=path,
        container=source.container,
        dialect=source.dialect,
        trainer=trainer_of(source),
        family=origin.family.name if origin.family else None,
        components=dict(sorted(components.items())),
        embeddings=tuple(
            InspectedEmbedding(
                token=each.token,
                encoder=each.encoder,
                shape=each.info.shape,
                dtype=DTYPES.get(each.info.dtype, each.info.dtype),
            )
            for each in source.embeddings
        ),
        digest=source.digest,
        size=sum(_place(source, name, options).stat().st_size for name, _ in source.files),
        files=tuple(name for name, _ in source.files),
        step=source.step,
        base=source.stated_base,
        architecture=guessed.base if guessed else None,
        evidence=(*origin.reasons, *map(str, sorted(evidence, key=lambda each: not each.families))),
        warnings=tuple(dict.fromkeys(warnings)),
    )


def _place(source: Source, name: str, options: ExportOptions) -> Path:
    outside = options.adapter_config is not None and name.startswith("../")
    return Path(str(options.adapter_config)) if outside else source.root / name


# --- the family -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Origin:
    """The family, if it can be told; what its modules' names say for it, and what contradicts."""

    family: Family | None
    reasons: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def _origin(groups: Groups, evidence: tuple[Evidence, ...]) -> _Origin:
    fitting = _fitting(groups)
    told, warnings = _told(evidence)
    both = [family for family in fitting if family.name in told]
    if fitting and told and not both:
        names = " or ".join(family.title for family in fitting)
        warnings += (f"The names of the modules are those of {names}, and {_saying(told, evidence)}.",)
    pool = both or list(fitting) or [family_named(name) for name in told]
    meant = [family for each in evidence for family in pool if family.name == each.family]
    found = pool[0] if len(pool) == 1 else meant[0] if meant else None
    if found is None:
        unknown = "The family cannot be told from the names of the modules; pass --base to export."
        return _Origin(None, tuple(f"it may be {family.title}" for family in pool), (unknown, *warnings))
    reasons = (f"{fitting[found]} is a module of {found.title}",) if found in fitting and len(fitting) == 1 else ()
    return _Origin(found, reasons, warnings)


def _saying(families: Iterable[str], evidence: Iterable[Evidence]) -> str:
    """What says that it is one of these families."""
    return " and ".join(str(each) for each in evidence if set(each.families) & set(families))


def _told(evidence: tuple[Evidence, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(names of the families that all evidence allows, a warning if there are none)."""
    if pair := contradiction(evidence):
        return (), (f"{pair[0]}, and {pair[1]}: one of them is wrong.",)
    sets = [each.families for each in evidence if each.families]
    return tuple(name for name in (sets[0] if sets else ()) if all(name in each for each in sets)), ()


def _fitting(groups: Groups) -> dict[Family, str]:
    denoiser, others, component = set(), set(), None
    for spelled, group in groups.items():
        modules = {entry.module for entry in group.values()}
        if spelled in ("unet", "transformer"):
            component = spelled
        if spelled in ("unet", "transformer", DENOISER) or (spelled is None and not _is_text_encoder(modules)):
            denoiser |= modules
        else:
            others |= {f"{spelled or 'text_encoder'}.{module}" for module in modules}
    return fitting_families(denoiser, others, component)


# --- the components ---------------------------------------------------------------------------------------------------


def _component_name(spelled: str | None, group: Mapping[str, Entry], source: Source, family: Family | None) -> str:
    """A component's name in its pipeline, for the name or the role that the keys have."""
    modules = {entry.module for entry in group.values()}
    if spelled is None:
        return _guessed_component(modules, source, family)
    if spelled in COMPONENT_NAMES:
        return spelled
    if spelled == DENOISER:
        return family.components[0].name if family else denoiser_of(modules)
    classes = TEXT_ENCODERS.get(spelled, ())
    encoders = [each for each in (family.components if family else ()) if each.name.startswith("text_encoder")]
    fitting = [each.name for each in encoders if set(classes) & set(each.models)] or ["text_encoder"]
    return fitting[-1] if spelled == "clip_g" else fitting[0]


def _guessed_component(modules: set[str], source: Source, family: Family | None) -> str:
    """By the class that PEFT noted, or else by the top-level module."""
    mapping = source.configs.get("", {}).get("auto_mapping")
    stated = mapping.get("base_model_class") if isinstance(mapping, dict) else None
    for each in (family,) if family else FAMILIES:
        for component in each.components:
            if stated in component.models:
                return component.name
    if _is_text_encoder(modules):
        return "text_encoder"
    return family.components[0].name if family else denoiser_of(modules)


def _is_text_encoder(modules: Iterable[str]) -> bool:
    return all(module.split(".")[0] in ("text_model", "encoder") for module in modules)


def _component(
    source: Source, name: str, entries: Mapping[str, Entry], options: ExportOptions, warnings: list[str]
) -> InspectedComponent:
    parts: dict[str, dict[str, str]] = defaultdict(dict)
    for key, entry in entries.items():
        parts[entry.module][entry.part] = key
    forms: dict[str, Form] = {}
    for module, found in parts.items():
        with contextlib.suppress(CheckpointError):
            forms[module] = form_of(frozenset(found), module)
    if len(forms) < len(parts):
        warnings.append(f"{len(parts) - len(forms)} of {len(parts)} layers of {name} lack a factor.")
    ranks = {module: rank_of(source, form, parts[module], module) for module, form in forms.items()}
    kinds = {part for found in parts.values() for part in found}
    adapter_type = "+".join(sorted({form.name.partition(" ")[0] for form in forms.values()}))
    if kinds & {"magnitude", "dora_scale"}:
        adapter_type = "dora" if adapter_type == "lora" else f"{adapter_type}+dora"
    infos = {key: source.tensors[key] for key, entry in entries.items() if entry.part != "alpha"}
    return InspectedComponent(
        rank=_one_or_all({rank for rank in ranks.values() if rank is not None} or {None} if ranks else set()),
        alpha=_alphas(source, next(iter(entries.values())).component, ranks, options, warnings),
        modules=len(parts),
        adapter_type=f"{adapter_type}+bias" if kinds & {"bias", "bias_diff"} else adapter_type,
        dtype=_one_or_all({DTYPES.get(info.dtype, info.dtype) for info in infos.values()}),
        parameters=sum(math.prod(info.shape) for info in infos.values()),
    )


def _refused(source: Source, entries: Mapping[str, Entry]) -> InspectedComponent:
    """A component of a type that cannot be exported: what can be counted of it."""
    infos = [source.tensors[key] for key, entry in entries.items() if entry.part != "alpha"]
    return InspectedComponent(
        rank=None,
        alpha=None,
        modules=len({entry.module for entry in entries.values()}),
        adapter_type=adapter_type_of(source),
        dtype=_one_or_all({DTYPES.get(info.dtype, info.dtype) for info in infos}),
        parameters=sum(math.prod(info.shape) for info in infos),
    )


def _alphas(
    source: Source, component: str | None, ranks: Mapping[str, int | None], options: ExportOptions, warnings: list[str]
) -> float | list[float] | None:
    rule = scale_rule(dialect_named(source.dialect), source, component, options)
    if rule is None:
        warnings.append("Nothing in the checkpoint says alpha; pass --alpha or --adapter-config to export.")
        return None
    scales = {module: rule(module, rank) for module, rank in ranks.items()}  # also where it has to refuse
    alphas = {float(f"{scales[module] * rank:.9g}") for module, rank in ranks.items() if rank is not None}
    found: float | list[float] | None = _one_or_all(alphas) if alphas else None
    return found


def _one_or_all(values: set[Any]) -> Any:
    if not values:
        raise CheckpointError("No layer of the checkpoint is whole.", expected="both factors of every layer")
    return next(iter(values)) if len(values) == 1 else sorted(values)
