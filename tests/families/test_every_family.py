"""Each LoRA mixin of diffusers has an entry, and each entry keeps its promise.

A tiny model of the family is adapted with PEFT, in a layer of every name that it has, sent down the line, proven, and
loaded into the real pipeline by the calls that a user gets: there it computes what the trained one computed.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.loaders import lora_pipeline
from diffusers.loaders.lora_base import LoraBaseMixin

from adapterline.families import COMPONENT_NAMES, FAMILIES, Family, family_named
from adapterline.families.base import read_base
from adapterline.families.recognition import fitting_families
from adapterline.families.skeleton import targets
from tests.families.adapted import close, layers_of, load, same_layers, train
from tests.families.tiny import CASES
from tests.line import run_line


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Models this small lose more by sharing their work out than they win."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --- what diffusers says ----------------------------------------------------------------------------------------------


@functools.cache
def live_mixins() -> dict[str, type[Any]]:
    return {
        name: cls
        for name, cls in vars(lora_pipeline).items()
        if isinstance(cls, type)
        and issubclass(cls, LoraBaseMixin)
        and cls is not LoraBaseMixin
        # The one that is deprecated says so when it is made.
        and ("__init__" not in vars(cls) or "deprecate(" not in inspect.getsource(cls.__init__))
    }


def pipelines() -> Iterator[type[Any]]:
    for name in dir(diffusers):
        cls = getattr(diffusers, name, None) if "Pipeline" in name else None
        if isinstance(cls, type) and issubclass(cls, diffusers.DiffusionPipeline | diffusers.ModularPipeline):
            yield cls


def first_mixin(pipeline: type[Any]) -> str | None:
    return next((parent.__name__ for parent in pipeline.__mro__ if parent.__name__ in live_mixins()), None)


def test_every_live_mixin_of_diffusers_has_one_entry() -> None:
    assert sorted(family.mixin for family in FAMILIES) == sorted(live_mixins())
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)
    assert set(COMPONENT_NAMES) == {component.name for family in FAMILIES for component in family.components}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_pipeline_of_an_entry_has_its_mixin_first(family: Family) -> None:
    if any(component.method == "load_lora_weights" for component in family.components if component.loads):
        assert first_mixin(getattr(diffusers, family.pipeline)) == family.mixin
    else:  # once a pipeline has it, that should be the way
        assert family.mixin not in {first_mixin(pipeline) for pipeline in pipelines()}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_components_that_load_are_those_that_the_mixin_loads(family: Family) -> None:
    loadable = set(live_mixins()[family.mixin]._lora_loadable_modules)
    by_mixin = {c.name for c in family.components if c.loads and c.method == "load_lora_weights"}
    assert by_mixin == loadable or (not by_mixin and family.name == "amused")
    assert {c.name for c in family.components if c.loads} <= loadable


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_models_of_an_entry_are_classes_that_load_adapters(family: Family) -> None:
    for component in family.components:
        for name in component.models:
            module = "diffusers" if hasattr(diffusers, name) else "transformers"
            module = "diffusers.pipelines.ltx2" if component.name == "connectors" else module
            cls = getattr(importlib.import_module(module), name)
            assert hasattr(cls, "load_lora_adapter" if module.startswith("diffusers") else "load_adapter"), name


# --- what inspect says ------------------------------------------------------------------------------------------------

_ATTENTION = re.compile(r"to_[qkv]$|to_out(\.0)?$|_proj$|to_(query|key|value)$")


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_modules_of_a_family_are_never_taken_for_another_family(family: Family, tmp_path: Path) -> None:
    base = read_base(CASES[family.name].write(tmp_path))
    denoiser = family.components[0].name
    names = list(targets(base, denoiser))
    rest = [f"{c.name}.{m}" for c in family.components[1:] if c.loads for m in targets(base, c.name)]
    assert family in fitting_families(names, rest, denoiser)
    for some in (
        names,
        [name for name in names if _ATTENTION.search(name)],
        [name for name in names if name.endswith(("to_q", "to_query"))],
        [name for name in names if "ff" in name or "mlp" in name or "feed_forward" in name],
    ):
        found = list(fitting_families(some, (), denoiser))
        # HunyuanVideo's names are FLUX.1's; only the number of blocks of the real model tells.
        assert len(found) != 1 or found == [family] or (family.name, found[0].name) == ("hunyuan_video", "flux")


# --- what the pipelines compute ---------------------------------------------------------------------------------------


def components(family: str) -> tuple[str, ...]:
    return tuple(c.name for c in family_named(family).components if c.loads and c.name in CASES[family].models)


@functools.cache
def _cases() -> list[tuple[str, tuple[str, ...]]]:
    """Every family with all its components, and each component alone where there are several."""
    several = [family.name for family in FAMILIES if len(components(family.name)) > 1 and family.name not in _CLIP]
    alone = [(family, (component,)) for family in several for component in components(family)]
    return [*((family.name, components(family.name)) for family in FAMILIES), *alone]


#: Components of these alone are the business of tests/test_effect.py.
_CLIP = ("sd15", "sdxl", "sd3", "flux")


@pytest.mark.parametrize(
    ("family", "adapted"), _cases(), ids=lambda value: value if isinstance(value, str) else "-".join(value)
)
def test_pipeline_computes_what_the_trained_models_computed(
    family: str, adapted: tuple[str, ...], tmp_path: Path
) -> None:
    case = CASES[family]
    base = case.write(tmp_path / "base")
    plain = {name: case.forward(name, case.build(name)) for name in adapted}
    trained = {name: train(case.build(name), tmp_path / "trained" / name) for name in adapted}

    exported = run_line(tmp_path / "trained", base, tmp_path)
    report = exported.report()
    assert report.passed, [check for check in report.failures]

    models = {name: case.build(name) for name in components(family)}
    load(exported, models)
    for name in components(family):
        if name in adapted:
            same_layers(trained[name], models[name])
            wanted = case.forward(name, trained[name])
            assert (wanted - plain[name]).norm() > 0.01 * plain[name].norm()
            close(case.forward(name, models[name]), wanted)
        else:
            assert not layers_of(models[name])
