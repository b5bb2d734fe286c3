"""A second witness, without the proof: what the weights of real models are after a file was loaded and merged."""

from __future__ import annotations

import warnings
from operator import attrgetter
from pathlib import Path

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from adapterline.families.skeleton import build_pipeline, quiet_libraries
from tests.families.tiny import Case
from tests.line import Exported


def loads_the_same(case: Case, exported: Exported, folder: Path) -> bool:
    """Do the files in `folder` do to a pipeline of small models what the exported ones do?"""
    found, wanted = merged(case, exported, folder), merged(case, exported, exported.folder)
    return found.keys() == wanted.keys() and all(
        torch.allclose(found[key], wanted[key], rtol=1e-5, atol=1e-6) for key in wanted
    )


def merged(case: Case, exported: Exported, folder: Path) -> dict[str, torch.Tensor]:
    """All weights of the pipeline, with the files loaded and merged."""
    models = {component: case.build(component) for component in case.models}
    pipeline = build_pipeline(exported.base, models)
    with quiet_libraries(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for load in exported.bundle.loads:
            attrgetter(load.method)(pipeline)(str(folder), weight_name=load.weight_name, **load.kwargs)
        for model in models.values():
            for module in model.modules():
                if isinstance(module, BaseTunerLayer):
                    module.merge()
    return {f"{name}.{key}": tensor for name, model in models.items() for key, tensor in model.state_dict().items()}
