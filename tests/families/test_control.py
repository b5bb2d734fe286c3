"""Control adapters of FLUX, whose first layer sees the control image's channels too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import FluxControlPipeline
from safetensors.torch import save_file

from adapterline.errors import FamilyError
from adapterline.families.base import read_base
from adapterline.families.skeleton import targets
from tests.line import run_line

BaseOf = Callable[[str], Path]


def checkpoint(folder: Path, out: int, inputs: int) -> Path:
    generator = torch.Generator().manual_seed(inputs)
    tensors = {
        "transformer.x_embedder.lora_A.weight": torch.randn(4, inputs, generator=generator),
        "transformer.x_embedder.lora_B.weight": torch.randn(out, 4, generator=generator),
    }
    save_file(tensors, folder / "control.safetensors")
    return folder / "control.safetensors"


def test_layer_twice_as_wide_is_exported_for_the_control_pipeline(base: BaseOf, tmp_path: Path) -> None:
    folder = base("flux")
    out, inputs = targets(read_base(folder), "transformer")["x_embedder"].shape
    exported = run_line(checkpoint(tmp_path, out, 2 * inputs), folder, tmp_path)
    (load,) = exported.bundle.loads
    assert load.pipeline == "FluxControlPipeline"
    report = exported.report()
    assert report.passed, report.failures
    pipeline = FluxControlPipeline.from_pretrained(folder)
    pipeline.load_lora_weights(str(exported.folder), weight_name=load.weight_name)
    layer = pipeline.transformer.x_embedder
    wanted = exported.adapter.components["transformer"]["x_embedder"].apply(torch.eye(2 * inputs))
    (name,) = layer.lora_A
    assert torch.allclose(layer.get_delta_weight(name).double(), wanted, atol=1e-5)


@pytest.mark.parametrize("wider", [1, 3])
def test_layer_of_any_other_width_is_refused(base: BaseOf, tmp_path: Path, wider: int) -> None:
    folder = base("flux")
    out, inputs = targets(read_base(folder), "transformer")["x_embedder"].shape
    other = 3 * inputs if wider == 3 else inputs + 1
    with pytest.raises(FamilyError, match=r"x_embedder"):
        run_line(checkpoint(tmp_path, out, other), folder, tmp_path)
