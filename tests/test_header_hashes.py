"""The fields of a header that are hashes of the file's own tensors."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save

from adapterline.errors import ConversionError
from adapterline.serialize import write_safetensors
from adapterline.values import HeaderHash, TensorPlan

FIELDS: dict[str, HeaderHash] = {"a": "modelspec", "b": "sshs", "c": "sshs-legacy"}
HEADER = {"ss_network_dim": "4", "ss_output_name": "x", "modelspec.title": "a title that the legacy hash leaves out"}


def written(path: Path, tensors: dict[str, torch.Tensor], header: dict[str, str]) -> dict[str, str]:
    """The header of the file that these tensors make."""
    names = {torch.float32: "F32", torch.float16: "F16"}
    plans = {key: TensorPlan(names[t.dtype], tuple(t.shape), lambda t=t: t) for key, t in tensors.items()}  # type: ignore[misc]
    write_safetensors(path, plans, header, FIELDS)
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


def data_of(content: bytes) -> bytes:
    return content[8 + int.from_bytes(content[:8], "little") :]


@pytest.mark.parametrize("kilobytes", [1, 1000, 1030, 1088, 3000])
def test_hashes_are_those_that_sd_scripts_makes(tmp_path: Path, kilobytes: int) -> None:
    """Its library saves the tensors with `ss_` fields alone, and hashes that (train_util.py)."""
    generator = torch.Generator().manual_seed(1)
    tensors = {
        "x.lora_down.weight": torch.randn(kilobytes, 128, generator=generator),
        "x.lora_up.weight": torch.randn(kilobytes, 256, generator=generator).half(),
        "x.alpha": torch.tensor(4.0),
    }
    plain = save(tensors, {key: text for key, text in HEADER.items() if key.startswith("ss_")})
    header = written(tmp_path / "f", tensors, HEADER)
    digest = hashlib.sha256(data_of(plain)).hexdigest()
    assert data_of((tmp_path / "f").read_bytes()) == data_of(plain)
    assert header == HEADER | {
        "a": f"0x{digest}",
        "b": digest,
        "c": hashlib.sha256(plain[0x100000:0x110000]).hexdigest()[:8],
    }


def test_another_byte_is_another_hash(tmp_path: Path) -> None:
    tensors = {"x": torch.arange(1000.0)}
    one = written(tmp_path / "f", tensors, {})
    tensors["x"][999] += 1
    other = written(tmp_path / "f", tensors, {})
    assert {key for key in one if one[key] != other[key]} == {"a", "b"}


def test_tensor_that_changes_between_the_passes_is_refused(tmp_path: Path) -> None:
    numbers = itertools.count()
    plans = {"x": TensorPlan("F32", (), lambda: torch.tensor(float(next(numbers))))}
    with pytest.raises(ConversionError, match="did not come out the same"):
        write_safetensors(tmp_path / "f", plans, {}, FIELDS)
    assert list(tmp_path.iterdir()) == []


def test_without_hashes_each_tensor_is_made_once(tmp_path: Path) -> None:
    numbers = itertools.count()
    write_safetensors(tmp_path / "f", {"x": TensorPlan("F32", (), lambda: torch.tensor(float(next(numbers))))}, {})
    assert next(numbers) == 1
