"""What shapes mean where they could mean two things: a DoRA magnitude of a square layer, a B of half of A's rank."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from adapterline.checkpoints.form import Layer
from adapterline.checkpoints.forms import build, form_of
from adapterline.errors import CheckpointError, ConversionError
from adapterline.families.base import read_base
from adapterline.families.skeleton import targets
from tests.line import run_line

BaseOf = Callable[[str], Path]

SQUARE = 8


def built(part: str, shape: tuple[int, ...], *kernel: int) -> torch.Tensor | None:
    ones = [1] * len(kernel)
    tensors = {
        "a": torch.ones(2, SQUARE, *kernel),
        "b": torch.ones(SQUARE, 2, *ones),
        part: torch.arange(float(SQUARE)).reshape(shape),
    }
    return build(form_of(frozenset(tensors), "conv"), tensors, Layer(1.0), "conv").magnitude


@pytest.mark.parametrize(
    ("part", "shape", "kernel"),
    [
        ("dora_scale", (SQUARE, 1), ()),
        ("dora_scale", (SQUARE, 1, 1, 1), (3, 3)),
        ("magnitude", (SQUARE,), ()),
        ("magnitude", (1, SQUARE, 1, 1), (3, 3)),
        ("magnitude", (1, SQUARE, 1, 1, 1), (1, 3, 3)),
    ],
)
def test_magnitude_for_each_output_is_taken(part: str, shape: tuple[int, ...], kernel: tuple[int, ...]) -> None:
    found = built(part, shape, *kernel)
    assert found is not None
    assert torch.equal(found.flatten(), torch.arange(float(SQUARE)))


@pytest.mark.parametrize(
    ("part", "shape", "kernel"),
    [
        ("dora_scale", (1, SQUARE), ()),
        ("dora_scale", (1, SQUARE, 1, 1), (3, 3)),
        ("magnitude", (1, SQUARE), ()),
    ],
)
def test_magnitude_for_each_input_is_refused_even_if_there_are_as_many(
    part: str, shape: tuple[int, ...], kernel: tuple[int, ...]
) -> None:
    with pytest.raises(ConversionError, match="one for each input"):
        built(part, shape, *kernel)


def test_two_magnitudes_are_refused() -> None:
    with pytest.raises(CheckpointError, match="two DoRA magnitudes"):
        form_of(frozenset({"a", "b", "magnitude", "dora_scale"}), "conv")


def test_b_with_half_of_as_rank_is_no_grouped_convolution_unless_the_layer_is(tmp_path: Path, base: BaseOf) -> None:
    folder = base("sd15")
    layer = "down_blocks.0.resnets.0.conv1"
    out, inputs, *kernel = targets(read_base(folder), "unet")[layer].shape
    tensors = {
        f"unet.{layer}.lora_A.weight": torch.ones(4, inputs, *kernel),
        f"unet.{layer}.lora_B.weight": torch.ones(out, 2, 1, 1),
    }
    save_file(tensors, tmp_path / "half.safetensors")
    with pytest.raises(CheckpointError, match="do not fit"):
        run_line(tmp_path / "half.safetensors", folder, tmp_path)
