"""The dialect of new_dialect.md, added as the guide says, reads its file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from adapterline.checkpoints import dialects
from adapterline.checkpoints.dialects.base import Dialect
from adapterline.errors import CheckpointError, ConversionError
from adapterline.values import ExportOptions
from tests.checkpoints.tables import FILES, Keys
from tests.line import run_line

GUIDE = Path(dialects.__file__).parent / "new_dialect.md"
LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture
def tuned(monkeypatch: pytest.MonkeyPatch) -> Dialect:
    (code,) = re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    namespace: dict[str, Any] = {"__name__": "tuned"}
    exec(compile(code, str(GUIDE), "exec"), namespace)
    dialect: Dialect = namespace["Tuned"]()
    monkeypatch.setattr(dialects, "DIALECTS", (*dialects.DIALECTS, dialect))
    return dialect


def write(path: Path, base: Path, header: dict[str, str], *, strange: bool = False) -> dict[str, torch.Tensor]:
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(base / "unet")
    out, width = unet.get_submodule(LAYER).weight.shape
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"tuned.{LAYER}.inner": torch.randn(4, width, generator=generator),
        f"tuned.{LAYER}.outer": torch.randn(out, 4, generator=generator),
    }
    save_file(tensors | ({"strange": torch.ones(1)} if strange else {}), path, header)
    return tensors


def test_its_file_is_exported_and_proven(tuned: Dialect, sd15_base: Path, tmp_path: Path) -> None:
    tensors = write(tmp_path / "lora.safetensors", sd15_base, {"alpha": "8"})
    exported = run_line(tmp_path / "lora.safetensors", sd15_base, tmp_path)
    assert exported.source.dialect == "tuned"
    assert exported.report().passed, exported.report().failures
    (delta,) = exported.adapter.components["unet"].values()
    inner, outer = tensors.values()
    torch.testing.assert_close(delta.apply(torch.eye(inner.shape[1])), 8 / 4 * outer.double() @ inner.double())


def test_scale_that_the_file_does_not_say_is_asked_for(tuned: Dialect, sd15_base: Path, tmp_path: Path) -> None:
    write(tmp_path / "lora.safetensors", sd15_base, {})
    with pytest.raises(CheckpointError, match="--alpha"):
        run_line(tmp_path / "lora.safetensors", sd15_base, tmp_path)
    assert run_line(tmp_path / "lora.safetensors", sd15_base, tmp_path, ExportOptions(alpha=8)).report().passed


def test_strange_key_in_its_file_is_refused(tuned: Dialect, sd15_base: Path, tmp_path: Path) -> None:
    write(tmp_path / "lora.safetensors", sd15_base, {"alpha": "8"}, strange=True)
    with pytest.raises(CheckpointError, match="'strange'"):
        run_line(tmp_path / "lora.safetensors", sd15_base, tmp_path)


def test_other_dialects_read_their_files_as_before(tuned: Dialect) -> None:
    for name, files in FILES.items():
        for file in files:
            assert dialects.identify(file)[0].name == name


def test_what_one_dialect_finds_broken_another_may_read_whole() -> None:
    (file, *_) = FILES["original"]
    with pytest.raises(CheckpointError, match="no part of a LoRA layer"):
        dialects.dialect_named("peft").entries(file)
    assert dialects.identify(file)[0].name == "original"


def test_refusal_of_a_configuration_stands_whoever_reads_the_keys() -> None:
    (file, *_) = FILES["kohya"]
    assert dialects.identify(file)[0].name == "kohya"
    with pytest.raises(ConversionError, match="IA3"):
        dialects.identify(Keys.of(*file.tensors, configs={"": {"peft_type": "IA3"}}))
