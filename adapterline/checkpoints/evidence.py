"""Which base a checkpoint was trained on, as far as what its trainer wrote beside the tensors tells it.

    adapter_config.json        base_model_name_or_path                            PEFT
    the header                 lora_adapter_metadata: base_model_name_or_path     diffusers
                               ss_sd_model_name, ss_base_model_version, ss_v2,    sd-scripts, musubi-tuner, and
                               ss_network_module, modelspec.architecture          those who took them up
                               ot_config: base_model_name                         OneTrainer
    config.yaml                config.process[0].model: name_or_path, arch        ai-toolkit
    simpletuner_config.json    pretrained_model_name_or_path, model_family        SimpleTuner
    README.md                  base_model                                         PEFT, SimpleTuner, diffusers' scripts

A Hub id names the base. A word for an architecture tells the family, and the shape of the base where one shipped
configuration has all its layers. A path of the trainer's machine is no evidence, nor is its last part: sd-scripts
writes `ss_sd_model_name` without the folders.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from adapterline.checkpoints.architectures import ANOTHER, NETWORK_MODULES, OF_WAN, architecture_of
from adapterline.checkpoints.stated import hub_id, json_of, named_in_card, yaml_of
from adapterline.families import FAMILIES
from adapterline.families.aliases import shipped_family, shipped_for
from adapterline.values import Source

_METADATA, _BASE = "lora_adapter_metadata", "base_model_name_or_path"
_AI_TOOLKIT, _AI_TOOLKIT_MODEL = "config.yaml", ("config", "process", 0, "model")
_SIMPLE_TUNER = "simpletuner_config.json"


@dataclass(frozen=True)
class Evidence:
    """One statement: where it is, its text, and what it implies.

    `model` is the Hub id that it names. `families` are all that the adapter can be of, if it is true; empty: it says
    nothing of that. `family` is the one of them that is meant, if it means one. `base` is as `Architecture.base`.
    """

    where: str
    text: str
    model: str | None = None
    families: tuple[str, ...] = ()
    family: str | None = None
    base: str | None = None

    def __str__(self) -> str:
        return f"{self.where} says {self.text!r}"

    def contradicts(self, other: Evidence) -> bool:
        """For certain? Both tell a family, and no family can be meant by both."""
        return bool(self.families and other.families) and not set(self.families) & set(other.families)


def evidence_of(source: Source) -> tuple[Evidence, ...]:
    """Everything that the source says, what is nearest to the tensors first."""
    found = [*_in_configs(source), *_in_header(source)]
    for folder in folders_of(source):
        found += in_folder(folder)
    if source.stated_base and all(each.model != source.stated_base for each in found):
        found.append(_named("the checkpoint", source.stated_base))
    return tuple(dict.fromkeys(found))


def stated_base(evidence: Iterable[Evidence]) -> str | None:
    """The Hub id that is named first."""
    return next((each.model for each in evidence if each.model), None)


def guess(evidence: Iterable[Evidence]) -> Evidence | None:
    """The statement that tells the shape of the base without naming one; None if none does, or one rules it out."""
    telling = [each for each in evidence if each.base is not None]
    if any(each.base == ANOTHER for each in telling):
        return None
    return telling[0] if telling else None


def contradiction(evidence: Iterable[Evidence]) -> tuple[Evidence, Evidence] | None:
    """Two statements of which one must be wrong."""
    return next(((one, other) for one, other in combinations(evidence, 2) if one.contradicts(other)), None)


def bases_named(source: Source) -> Iterator[tuple[str, Any]]:
    """(where, what the base is called there) in the configurations and the header: a Hub id, a path, or anything."""
    for component, config in source.configs.items():
        yield _config_name(component), config.get(_BASE)
    yield from _bases_in_header(source.header)


def bases_in_folder(folder: Path) -> Iterator[tuple[str, Any]]:
    """The same of the files in a folder."""
    yield _AI_TOOLKIT, _at(yaml_of(folder / _AI_TOOLKIT), *_AI_TOOLKIT_MODEL, "name_or_path")
    settings = json_of(folder / _SIMPLE_TUNER)
    for prefix in ("", "--"):
        yield _SIMPLE_TUNER, settings.get(f"{prefix}pretrained_model_name_or_path")
    yield "README.md", named_in_card(folder)


def in_folder(folder: Path) -> Iterator[Evidence]:
    """What the files of a folder say, whatever checkpoint they are about."""
    yield from _hub_ids(bases_in_folder(folder))
    yield from _architecture(_AI_TOOLKIT, _at(yaml_of(folder / _AI_TOOLKIT), *_AI_TOOLKIT_MODEL, "arch"))
    settings = json_of(folder / _SIMPLE_TUNER)
    for prefix in ("", "--"):
        yield from _architecture(_SIMPLE_TUNER, settings.get(f"{prefix}model_family"))


def _config_name(component: str) -> str:
    return f"{component}/adapter_config.json" if component else "adapter_config.json"


def _in_configs(source: Source) -> Iterator[Evidence]:
    for component, config in source.configs.items():
        where = _config_name(component)
        if model := hub_id(config.get(_BASE)):
            yield _named(where, model)
        stated = _at(config, "auto_mapping", "base_model_class")
        having = [family.name for family in FAMILIES if any(stated in each.models for each in family.components)]
        if having:
            yield Evidence(where, stated, families=tuple(having))


def _in_header(source: Source) -> Iterator[Evidence]:
    header = source.header
    yield from _hub_ids(_bases_in_header(header))
    for key in ("ss_base_model_version", "modelspec.architecture"):
        yield from _architecture(f"the header's {key}", header.get(key))
    if header.get("ss_v2") == "True":
        yield Evidence("the header's ss_v2", "True", families=("sd15",), family="sd15")
    module = header.get("ss_network_module", "").rpartition(".")[2]
    if module in NETWORK_MODULES:
        families = NETWORK_MODULES[module]
        yield Evidence("the header's ss_network_module", module, families=families, family=families[0])


def _bases_in_header(header: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    for key, value in json_of(header.get(_METADATA, "")).items():
        if key.rpartition(".")[2] == _BASE:
            yield f"the header's {_METADATA}", value
    yield "the header's ot_config", json_of(header.get("ot_config", "")).get("base_model_name")
    yield "the header's ss_sd_model_name", header.get("ss_sd_model_name")


def folders_of(source: Source) -> list[Path]:
    """Where files that are about the checkpoint can lie. Beside a single file may lie those of any other."""
    if source.path.is_dir():
        return list(dict.fromkeys((source.root, source.path)))
    return [source.root] if source.configs and source.container == "peft-folder" else []


def _hub_ids(named: Iterable[tuple[str, Any]]) -> Iterator[Evidence]:
    for where, name in named:
        if model := hub_id(name):
            yield _named(where, model)


def _at(value: Any, *path: str | int) -> Any:
    for step in path:
        try:
            value = value[step]
        except (LookupError, TypeError):
            return None
    return value


def _named(where: str, model: str) -> Evidence:
    known = shipped_for(model.partition("@")[0])
    family = shipped_family(known.alias).name if known else None
    families = OF_WAN if family in OF_WAN else (family,) if family else ()
    return Evidence(where, model, model=model, families=families, family=family)


def _architecture(where: str, word: Any) -> Iterator[Evidence]:
    if not isinstance(word, str):
        return
    known = re.split("[/:]", word.strip())[0]  # what follows may be anything, so it is not shown
    if found := architecture_of(known):
        yield Evidence(where, known, families=found.families, family=found.families[0], base=found.base)
