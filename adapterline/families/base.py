"""A base: the class and the configuration of each model of a pipeline, without any weight."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapterline.checkpoints.stated import hub_id
from adapterline.errors import FamilyError
from adapterline.families import FAMILIES, Component, Family
from adapterline.families.aliases import shipped_family, shipped_for
from adapterline.families.shipped import SHIPPED, ShippedBase, shipped
from adapterline.values import LoadCall, digest_of

#: The libraries that an index may name, and the modules that have their classes. Pipelines keep some to themselves.
_LIBRARIES = {"diffusers": "diffusers", "transformers": "transformers", "ltx2": "diffusers.pipelines.ltx2"}
#: Where a pipeline folder says what is in it (`config_name` of DiffusionPipeline and ModularPipeline).
_INDEXES = ("model_index.json", "modular_model_index.json")


@dataclass(frozen=True)
class ModelConfig:
    """The class of a pipeline's model and its configuration, as `config.json` has it."""

    library: str  # the module that the class is in
    model_class: str
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Base:
    """What an adapter is proven on.

    `models` holds those components of the family that the base has. `architecture` is the sha256 over their classes
    and configurations, less what only tells where they came from (keys that begin with `_`).
    """

    family: Family
    pipeline: str
    models: Mapping[str, ModelConfig]
    architecture: str
    model: str | None = None  # Hub id, if it was named by one
    revision: str | None = None  # the commit that was read
    folder: Path | None = field(default=None, compare=False)  # where it lies: it may have tokenizers


def open_base(spec: str, folder: Path) -> Base:
    """The base that `spec` names: a local pipeline folder, a shipped alias, or a Hub id `org/name[@revision]`.

    A Hub id of a shipped base opens what is shipped, unless it has a revision. Of any other Hub repository only the
    configurations are read, into `folder`. FamilyError if there is no such pipeline, or none that is supported.
    """
    path = Path(spec)
    if _has_index(path):
        return read_base(path)
    if known := shipped_for(spec):
        return read_base(_shipped_folder(known), model=known.model if known.alias == spec else spec)
    if path.is_dir():
        return read_base(path)
    if hub_id(spec):
        from adapterline.checkpoints.fetch_hub import fetch_base_configs

        model, _, revision = spec.partition("@")
        fetched, commit = fetch_base_configs(model, revision or None, folder)
        return read_base(fetched, model=model, revision=commit)
    raise FamilyError(
        f"The base {spec!r} is neither a folder nor a Hub id, nor a base that comes with adapterline.",
        expected="a diffusers pipeline folder (with model_index.json), org/name, or one of "
        + ", ".join(base.alias for base in SHIPPED),
        remedy="Pass --base with one of them.",
    )


def family_of(spec: str) -> Family | None:
    """The family of the base that `spec` names, as far as it can be told without the network."""
    path = Path(spec)
    if name := _has_index(path):
        return _family_of(_read_json(path / name, "a diffusers pipeline folder").get("_class_name"))
    known = shipped_for(spec.partition("@")[0])
    return shipped_family(known.alias) if known else None


def _has_index(path: Path) -> str | None:
    return next((name for name in _INDEXES if (path / name).is_file()), None)


def _shipped_folder(known: ShippedBase) -> Path:
    folder = shipped(known.alias)
    assert folder is not None  # it is one of SHIPPED
    return folder


def read_base(folder: Path, model: str | None = None, revision: str | None = None) -> Base:
    """The base in a pipeline folder."""
    name = _has_index(folder) or _INDEXES[0]
    index = _read_json(folder / name, "a diffusers pipeline folder")
    pipeline = index.get("_class_name")
    family = _family_of(pipeline)
    models = {}
    for component in family.components:
        library, model_class = _entry(index.get(component.name))
        if library in _LIBRARIES and model_class in component.models:
            config = _read_json(folder / component.name / "config.json", f"the configuration of {component.name}")
            models[component.name] = ModelConfig(_LIBRARIES[library], model_class, config)
    if not models:
        raise FamilyError(
            f"{folder.name} has none of the models of {family.title}.",
            expected="; ".join(f"{c.name}: {' or '.join(c.models)}" for c in family.components),
        )
    rows = [[name, item.model_class, _config_digest(item.config)] for name, item in models.items()]
    return Base(family, str(pipeline), models, digest_of(rows), model, revision, folder)


def load_call(base: Base, component: Component, weight_name: str | None = None) -> LoadCall:
    """The call that loads a component's file, or one of another name with the same keys."""
    return LoadCall(
        pipeline=base.pipeline,
        method=component.method,
        weight_name=weight_name or component.file,
        kwargs=_flags(component),
    )


def peft_call(base: Base, component: str, folder: str) -> LoadCall:
    """`pipe.unet = PeftModel.from_pretrained(pipe.unet, ..., subfolder=folder)`."""
    return LoadCall(
        library="peft",
        pipeline=base.pipeline,
        method="PeftModel.from_pretrained",
        weight_name=folder,
        attributes={"model": component},
    )


def component_of(load: LoadCall, key: str, family: Family) -> str:
    """The component that this call loads a key of its file into; what the key begins with, if the family has none."""
    prefix = key.partition(".")[0]
    for component in family.components:
        if (component.key_prefix, component.method, _flags(component)) == (prefix, load.method, load.kwargs):
            return component.name
    return prefix


def _flags(component: Component) -> dict[str, str | int | float | bool]:
    return {component.flag: True} if component.flag else {}


def _entry(entry: Any) -> tuple[str, str]:
    """(library, class) of a model in an index; a modular pipeline's has a third element, where to load it from."""
    if isinstance(entry, list) and len(entry) in (2, 3) and isinstance(entry[0], str) and isinstance(entry[1], str):
        return entry[0], entry[1]
    return "", ""


def _family_of(pipeline: Any) -> Family:
    import diffusers

    kinds = (diffusers.DiffusionPipeline, diffusers.ModularPipeline)
    cls = getattr(diffusers, pipeline, None) if isinstance(pipeline, str) and re.fullmatch(r"\w+", pipeline) else None
    if not (isinstance(cls, type) and issubclass(cls, kinds)):
        raise FamilyError(f"The base's pipeline class is {pipeline!r}.", expected="a class of the installed diffusers")
    by_mixin = {family.mixin: family for family in FAMILIES}
    for parent in cls.__mro__:
        if parent.__name__ in by_mixin:
            return by_mixin[parent.__name__]
    for family in FAMILIES:
        if family.pipeline == pipeline:  # of one whose pipelines lack their mixin
            return family
    known = ", ".join(family.title for family in FAMILIES)
    raise FamilyError(f"{pipeline} is of no supported family.", expected=f"one of {known}")


def _config_digest(config: Mapping[str, Any]) -> str:
    kept = {key: value for key, value in config.items() if not key.startswith("_") and key != "transformers_version"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _read_json(path: Path, what: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise FamilyError(
            f"{path.parent.name}/{path.name} cannot be read: {error.strerror}.",
            expected=what,
            remedy="Pass --base with a pipeline folder or a Hub id.",
        ) from error
    except (ValueError, RecursionError) as error:
        raise FamilyError(f"{path.parent.name}/{path.name} is not JSON: {error}.", expected=what) from error
    if not isinstance(value, dict):
        raise FamilyError(f"{path.parent.name}/{path.name} is not a JSON object.", expected=what)
    return value
