"""A base: the class and the configuration of each model of a pipeline, without any weight."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapterline.checkpoints.stated import hub_id
from adapterline.errors import FamilyError
from adapterline.families import FAMILIES, Family
from adapterline.values import digest_of

_LIBRARIES = ("diffusers", "transformers")


@dataclass(frozen=True)
class ModelConfig:
    """The class of a pipeline's model and its configuration, as `config.json` has it."""

    library: str
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


def open_base(spec: str, folder: Path) -> Base:
    """The base that `spec` names: a local pipeline folder, or a Hub id `org/name[@revision]`.

    Of a Hub repository only the configurations are read, into `folder`. FamilyError if there is no such pipeline, or
    none that is supported.
    """
    path = Path(spec)
    if path.is_dir():
        return read_base(path)
    if hub_id(spec):
        from adapterline.checkpoints.fetch_hub import fetch_base_configs

        model, _, revision = spec.partition("@")
        fetched, commit = fetch_base_configs(model, revision or None, folder)
        return read_base(fetched, model=model, revision=commit)
    raise FamilyError(
        f"The base {spec!r} is neither a folder nor a Hub id.",
        expected="a diffusers pipeline folder (with model_index.json) or org/name",
        remedy="Pass --base with one of them.",
    )


def read_base(folder: Path, model: str | None = None, revision: str | None = None) -> Base:
    """The base in a pipeline folder."""
    index = _read_json(folder / "model_index.json", "a diffusers pipeline folder")
    pipeline = index.get("_class_name")
    family = _family_of(pipeline)
    models = {}
    for component in family.components:
        entry = index.get(component.name)
        if isinstance(entry, list) and len(entry) == 2 and entry[0] in _LIBRARIES and isinstance(entry[1], str):
            config = _read_json(folder / component.name / "config.json", f"the configuration of {component.name}")
            models[component.name] = ModelConfig(entry[0], entry[1], config)
    if not models:
        raise FamilyError(
            f"{folder.name} has none of the models of {family.title}.",
            expected=", ".join(component.name for component in family.components),
        )
    rows = [[name, item.model_class, _config_digest(item.config)] for name, item in models.items()]
    return Base(family, str(pipeline), models, digest_of(rows), model, revision)


def _family_of(pipeline: Any) -> Family:
    import diffusers

    known = ", ".join(family.title for family in FAMILIES)
    cls = getattr(diffusers, pipeline, None) if isinstance(pipeline, str) and re.fullmatch(r"\w+", pipeline) else None
    if not (isinstance(cls, type) and issubclass(cls, diffusers.DiffusionPipeline)):
        raise FamilyError(f"The base's pipeline class is {pipeline!r}.", expected="a class of the installed diffusers")
    by_mixin = {family.mixin: family for family in FAMILIES}
    for parent in cls.__mro__:
        if parent.__name__ in by_mixin:
            return by_mixin[parent.__name__]
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
