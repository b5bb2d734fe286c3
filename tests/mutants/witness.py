"""A second witness, without the proof: what the adapted layers of real models compute once the files are loaded."""

from __future__ import annotations

import warnings
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from adapterline.families.skeleton import build_pipeline, quiet_libraries
from tests.families.tiny import Case
from tests.line import Exported


def loads_the_same(case: Case, exported: Exported, folder: Path) -> bool:
    """Do the files in `folder` do to a pipeline of small models what the exported ones do?"""
    found, wanted = computed(case, exported, folder), computed(case, exported, exported.folder)
    return found.keys() == wanted.keys() and all(
        torch.allclose(found[name], wanted[name], rtol=1e-5, atol=1e-6) for name in wanted
    )


def computed(case: Case, exported: Exported, folder: Path) -> dict[str, torch.Tensor]:
    """What each layer that the files in `folder` adapt makes of a random input."""
    models = {component: case.build(component) for component in case.models}
    pipeline = build_pipeline(exported.base, models)
    with quiet_libraries(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for load in exported.bundle.loads:
            attrgetter(load.method)(pipeline)(str(folder), weight_name=load.weight_name, **load.kwargs)
    return {
        f"{component}.{name}": _output(module)
        for component, model in models.items()
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer)
    }


def _output(layer: Any) -> torch.Tensor:
    base = layer.get_base_layer()
    inputs = base.weight.shape[1] * getattr(base, "groups", 1)
    shape = (2, inputs) if base.weight.dim() == 2 else (1, inputs, *(2 * size + 1 for size in base.weight.shape[2:]))
    with torch.no_grad():
        output: torch.Tensor = layer(torch.randn(shape, generator=torch.Generator().manual_seed(5)))
    return output
