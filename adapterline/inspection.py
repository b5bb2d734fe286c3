"""What a checkpoint is, told from its headers and one hashing pass; a `.safetensors` file is read without torch."""

from __future__ import annotations

import contextlib
import math
import re
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from adapterline.checkpoints import load_checkpoint
from adapterline.checkpoints.dialects import dialect_named
from adapterline.checkpoints.dialects.base import BASE_WEIGHT, DENOISER, Entry
from adapterline.checkpoints.extract import rank_of, scale_rule
from adapterline.checkpoints.forms import Form, form_of
from adapterline.deltas import DTYPES
from adapterline.errors import CheckpointError
from adapterline.families import FAMILIES
from adapterline.values import ExportOptions, Source, Value


class InspectedComponent(Value):
    """One component, in numbers; a list where modules differ."""

    rank: int | list[int] | None = Field(description="what alpha is divided by; None: no factor tells it")
    alpha: float | list[float] | None = Field(description="None: nothing in the checkpoint says it")
    modules: int
    adapter_type: str
    dtype: str | list[str]
    parameters: int


class Inspection(Value):
    """The answer of `adapterline inspect`."""

    path: str
    container: str
    dialect: str
    trainer: str | None
    family: str | None
    components: dict[str, InspectedComponent]
    digest: str
    size: int = Field(description="bytes of the files that are read")
    files: tuple[str, ...]
    step: int | None
    base: str | None = Field(description="the Hub id that the checkpoint names")
    evidence: tuple[str, ...]
    warnings: tuple[str, ...]


def inspect(path: str | Path, options: ExportOptions | None = None) -> Inspection:
    """Reads headers and hashes files; no tensor is loaded. CheckpointError as `export` would raise it."""
    with tempfile.TemporaryDirectory(prefix="adapterline-") as folder:
        options = options or ExportOptions()
        return _inspection(str(path), load_checkpoint(str(path), options, Path(folder)), options)


def _inspection(path: str, source: Source, options: ExportOptions) -> Inspection:
    entries = dialect_named(source.dialect).entries(source)
    by_component: dict[str, dict[str, Entry]] = defaultdict(dict)
    for key, entry in entries.items():
        if entry.part == BASE_WEIGHT:
            continue
        by_component[entry.component or _guessed_component(source, entry)][key] = entry
    warnings: list[str] = []
    components = {
        name: _component(source, name, by_component[name], options, warnings) for name in sorted(by_component)
    }
    names = sorted({f"{name}.{entry.module}" for name, found in by_component.items() for entry in found.values()})
    family, evidence = _family(names)
    if family is None:
        warnings.append("The family cannot be told from the names of the modules; pass --base to export.")
    return Inspection(
        path=path,
        container=source.container,
        dialect=source.dialect,
        trainer=_trainer(source),
        family=family,
        components=components,
        digest=source.digest,
        size=sum(_place(source, name, options).stat().st_size for name, _ in source.files),
        files=tuple(name for name, _ in source.files),
        step=source.step,
        base=source.stated_base,
        evidence=evidence,
        warnings=tuple(dict.fromkeys(warnings)),
    )


def _place(source: Source, name: str, options: ExportOptions) -> Path:
    outside = options.adapter_config is not None and name.startswith("../")
    return Path(str(options.adapter_config)) if outside else source.root / name


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
    if "magnitude" in kinds:
        adapter_type = "dora" if adapter_type == "lora" else f"{adapter_type}+dora"
    infos = {key: source.tensors[key] for key, entry in entries.items() if entry.part != "alpha"}
    return InspectedComponent(
        rank=_one_or_all({rank for rank in ranks.values() if rank is not None} or {None}),
        alpha=_alphas(source, next(iter(entries.values())).component, ranks, options, warnings),
        modules=len(parts),
        adapter_type=f"{adapter_type}+bias" if kinds & {"bias", "bias_diff"} else adapter_type,
        dtype=_one_or_all({DTYPES.get(info.dtype, info.dtype) for info in infos.values()}),
        parameters=sum(math.prod(info.shape) for info in infos.values()),
    )


def _alphas(
    source: Source, component: str | None, ranks: Mapping[str, int | None], options: ExportOptions, warnings: list[str]
) -> float | list[float] | None:
    rule = scale_rule(dialect_named(source.dialect), source, component, options)
    if rule is None:
        warnings.append("Nothing in the checkpoint says alpha; pass --alpha or --adapter-config to export.")
        return None
    found: float | list[float] = _one_or_all(
        {float(f"{rule(module, rank) * (rank or 1):.9g}") for module, rank in ranks.items()}
    )
    return found


def _family(names: list[str]) -> tuple[str | None, tuple[str, ...]]:
    """(the one family whose marks are in these names, why)."""
    text = "\n".join(names)
    fitting = [
        family
        for family in FAMILIES
        if all(re.search(mark, text) for mark in family.marks) and not any(re.search(no, text) for no in family.never)
    ]
    if len(fitting) == 1:
        found = re.search(fitting[0].marks[0], text)
        return fitting[0].name, (f"{found[0] if found else ''} is a module of {fitting[0].title}",)
    return None, tuple(f"it may be {family.title}" for family in fitting)


def _guessed_component(source: Source, entry: Entry) -> str:
    """By the class that PEFT noted, or else by the top-level module."""
    mapping = source.configs.get("", {}).get("auto_mapping")
    stated = mapping.get("base_model_class") if isinstance(mapping, dict) else None
    for family in FAMILIES:
        for component in family.components:
            if stated in component.models:
                return component.name
    top = entry.module.split(".")[0]
    if top in ("down_blocks", "mid_block", "up_blocks", "conv_in", "conv_out", "time_embedding", "add_embedding"):
        return "unet"
    return "text_encoder" if top in ("text_model", "encoder") else "transformer"


def _trainer(source: Source) -> str | None:
    versions = {str(config["peft_version"]) for config in source.configs.values() if config.get("peft_version")}
    if versions:
        return f"peft {', '.join(sorted(versions))}"
    return {"peft": "peft", "diffusers": "diffusers"}.get(source.dialect)


def _one_or_all(values: set[Any]) -> Any:
    if not values:
        raise CheckpointError("No layer of the checkpoint is whole.", expected="both factors of every layer")
    return next(iter(values)) if len(values) == 1 else sorted(values)
