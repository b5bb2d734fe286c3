"""Of a trainer's header nothing is published, but what the user names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from adapterline.errors import CheckpointError, ConversionError
from adapterline.package.header import MAX_KEPT, WRITTEN, apply_header_policy
from adapterline.values import WEIGHT_NAME, ExportOptions, FilePlan, Plan
from tests.line import run_line

HEADER = {
    "ss_output_name": "trained",
    "ss_session_id": "1701",
    "ss_sd_model_name": "/home/alice/models/sd15.safetensors",
    "ss_dataset_dirs": '{"/mnt/nas/alice/dogs": {}}',
    "ss_tag_frequency": '{"dogs": {"my dog rex": 3}}',
    "ss_training_comment": "on gpu-17.internal",
    "sample_prompts": "rex in the garden",
    "large": "x" * (MAX_KEPT + 1),
    "binary": "a\x00b",
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("kohya") / "trained.safetensors"
    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    torch.manual_seed(0)
    tensors = {f"{layer}.lora_down.weight": torch.randn(4, 16), f"{layer}.lora_up.weight": torch.randn(16, 4)}
    save_file({**tensors, f"{layer}.alpha": torch.tensor(4.0)}, file, HEADER)
    return file


def headers(folder: Path) -> dict[str, dict[str, str]]:
    found = {}
    for file in sorted(folder.rglob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            found[str(file.relative_to(folder))] = opened.metadata() or {}
    return found


@pytest.fixture
def export(checkpoint: Path, sd15_base: Path, tmp_path: Path) -> Callable[..., Path]:
    def run(*keep: str) -> Path:
        options = ExportOptions(layouts=("diffusers", "kohya", "peft"), keep_header=keep)
        return run_line(checkpoint, sd15_base, tmp_path / str(len(keep)), options).folder

    return run


def test_no_field_and_no_value_of_the_trainers_header_passes(export: Callable[..., Path]) -> None:
    folder = export()
    found = headers(folder)
    assert len(found) == 3
    for header in found.values():
        assert set(header) <= WRITTEN
    published = b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())
    for secret in ("alice", "gpu-17", "rex", "1701", "nas"):
        assert secret.encode() not in published


def test_a_field_that_is_named_passes_as_it_is_in_every_layout_and_changes_no_tensor(
    export: Callable[..., Path],
) -> None:
    folder, without = export("ss_tag_frequency", "ss_training_comment"), export()
    for path, header in headers(folder).items():
        assert set(header) - WRITTEN == {"ss_tag_frequency", "ss_training_comment"}
        assert header["ss_tag_frequency"] == HEADER["ss_tag_frequency"]
        tensors = load_file(folder / path)
        assert all(torch.equal(value, tensors[key]) for key, value in load_file(without / path).items())


def test_the_manifest_says_which_fields_were_kept(checkpoint: Path, sd15_base: Path, tmp_path: Path) -> None:
    options = ExportOptions(keep_header=("ss_session_id",))
    exported = run_line(checkpoint, sd15_base, tmp_path, options)
    assert [(done.kind, done.detail) for done in exported.bundle.transforms][-1] == ("keep-header", "ss_session_id")
    assert exported.report().passed


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("ss_nothing", CheckpointError, r"no field 'ss_nothing'\. Expected one that --keep-header can keep: binary"),
        ("ss_output_name", ConversionError, "'ss_output_name' is adapterline's own"),
        ("large", ConversionError, r"take 1,048,582 bytes\. Expected at most 1,048,576"),
        ("binary", ConversionError, "'binary' of trained.safetensors is no text"),
    ],
)
def test_what_cannot_be_kept_is_refused(
    export: Callable[..., Path], name: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        export(name)


def test_a_layout_that_writes_a_field_of_its_own_invention_is_refused(
    checkpoint: Path, sd15_base: Path, tmp_path: Path
) -> None:
    source = run_line(checkpoint, sd15_base, tmp_path).source
    plan = Plan((FilePlan("weights", "diffusers", WEIGHT_NAME, header={"host": "gpu-17"}),), (), ())
    with pytest.raises(ConversionError, match="'host'"):
        apply_header_policy(plan, source, ExportOptions())
