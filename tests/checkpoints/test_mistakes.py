"""What is handed in by mistake most often, and the answer: what it is, what was expected, what to do."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file

from adapterline.checkpoints import load_checkpoint
from adapterline.checkpoints.containers import open_container
from adapterline.checkpoints.containers.base import Wish
from adapterline.errors import (
    AdapterlineError,
    CheckpointError,
    CheckpointIncompleteError,
    MachineError,
    UsageError,
    from_os_error,
)
from adapterline.values import ExportOptions
from tests.checkpoints.test_zero import write_zero

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345678\n"
PAGE = b'<!DOCTYPE html>\n<html class=""><head><title>Sign in</title></head></html>'
LAYER = "base_model.model.down_blocks.0.attentions.0.proj_in"
LORA = {f"{LAYER}.lora_A.weight": torch.ones(2, 4), f"{LAYER}.lora_B.weight": torch.ones(4, 2)}
WHOLE = {"conv_in.weight": torch.ones(4, 4), "down_blocks.0.attentions.0.proj_in.weight": torch.ones(4, 4)}
FILES = ("lora.safetensors", "lora.pt", "lora.bin", "lora.ckpt", "pytorch_lora_weights.safetensors")
Write = Callable[[Path], object]


def answer(path: Path, **options: object) -> AdapterlineError:
    """The refusal, which is one: it has all three parts, and nothing of the folders above."""
    with pytest.raises(AdapterlineError) as caught:
        load_checkpoint(str(path), ExportOptions.model_validate(options), path.parent)
    error = caught.value
    assert error.found.endswith(".")
    assert error.expected
    assert error.remedy.endswith(".")
    if path.exists():
        assert str(path.parent) not in str(error)
    return error


def in_folder(folder: Path, name: str, data: bytes) -> Path:
    """A folder with one file, which is named for it."""
    folder.mkdir()
    (folder / name).write_bytes(data)
    return folder


# --- a file that is something else ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*FILES, "adapter_config.json", "model.safetensors.index.json", "lora"])
def test_pointer_of_git_lfs_is_told_with_the_size_of_the_file(name: str, tmp_path: Path) -> None:
    folder = in_folder(tmp_path / "run", name, POINTER)
    paths = [folder / name, folder]
    if name == "lora":
        paths.remove(folder)  # of a folder's many files nobody looks at this one
    if name == "adapter_config.json":
        paths[0] = folder / "adapter_model.safetensors"
        paths[0].write_bytes(save(LORA))
    for path in paths:
        error = answer(path)
        assert isinstance(error, CheckpointError)
        assert f"{name} is a Git LFS pointer" in error.found
        assert "12345678 bytes" in error.expected
        assert "git lfs pull" in error.remedy


@pytest.mark.parametrize("name", FILES)
def test_page_that_was_saved_under_the_name_of_the_weights_is_told(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(PAGE)
    assert answer(tmp_path / name).found == f"{name} is a web page."


@pytest.mark.parametrize("name", ["lora.bin", "lora.pt", "lora", "lora.sft"])
def test_safetensors_file_under_another_name_is_to_be_renamed(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(save(LORA))
    error = answer(tmp_path / name)
    assert error.found == f"{name} is a safetensors file."
    assert ".safetensors" in error.expected
    assert error.remedy == "Rename it."


@pytest.mark.parametrize("name", ["lora.safetensors", "lora", "lora.zip"])
def test_file_of_torch_under_another_name_is_to_be_renamed(name: str, tmp_path: Path) -> None:
    torch.save(LORA, tmp_path / name)
    error = answer(tmp_path / name)
    assert "as torch.save writes it" in error.found
    assert ".pt" in error.expected


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("size", [0, 5_000])
def test_file_without_its_bytes_is_incomplete(name: str, size: int, tmp_path: Path) -> None:
    """Downloaders and network file systems make a file at its whole size, and fill it."""
    (tmp_path / name).write_bytes(bytes(size))
    error = answer(tmp_path / name)
    assert isinstance(error, CheckpointIncompleteError)
    assert "wait" in error.remedy


def test_file_of_an_unknown_kind_is_told_what_kinds_there_are(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing here")
    error = answer(tmp_path / "notes.txt")
    assert "ends in '.txt'" in error.found
    assert all(suffix in error.expected for suffix in (".safetensors", ".pt", ".bin", ".ckpt"))
    (tmp_path / "notes").write_text("nothing here")
    assert "no ending" in answer(tmp_path / "notes").found
    os.mkfifo(tmp_path / "pipe")
    assert "neither a file nor a folder" in answer(tmp_path / "pipe").found


# --- something else than an adapter -----------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model.", "unet.", "module."])
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_whole_model_is_called_one(prefix: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    state = {f"{prefix}{key}": tensor for key, tensor in WHOLE.items()}
    if suffix == ".ckpt":
        torch.save({"state_dict": state, "epoch": 3}, path)
    else:
        save_file(state, path)
    error = answer(path)
    assert "the weights of a whole model" in error.found
    assert error.expected == "a LoRA adapter"


def test_pipeline_is_called_one(tmp_path: Path) -> None:
    folder = in_folder(tmp_path / "pipeline", "model_index.json", b"{}")
    (folder / "unet").mkdir()
    error = answer(folder)
    assert "is a pipeline" in error.found
    assert "--base" in error.remedy


@pytest.mark.parametrize("name", ["optimizer.pt", "optimizer.bin", "last.ckpt"])
def test_state_of_an_optimizer_is_called_one(name: str, tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.ones(4, 4))
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / name)
    assert "the state of an optimizer, and no weights" in answer(tmp_path / name).found


def test_optimizer_under_any_name_is_no_candidate(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.ones(4, 4))
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimizer.step()
    torch.save({"weights": LORA, "adam": optimizer.state_dict()}, tmp_path / "with.pt")
    source = load_checkpoint(str(tmp_path / "with.pt"), ExportOptions(), tmp_path)
    assert set(source.tensors) == set(LORA)
    torch.save({"adam": optimizer.state_dict(), "epoch": 3}, tmp_path / "without.pt")
    assert "holds no weights: only adam, epoch" in answer(tmp_path / "without.pt").found


# --- paths, steps, options --------------------------------------------------------------------------------------------


def test_path_that_does_not_exist_tells_how_remote_ones_are_written(tmp_path: Path) -> None:
    assert "hf://org/name" in answer(tmp_path / "acme" / "tiny").remedy
    with pytest.raises(UsageError, match="no known scheme") as caught:
        load_checkpoint("gs://bucket/lora", ExportOptions(), tmp_path)
    assert caught.value.expected.startswith("a path, s3://")
    assert caught.value.remedy


def test_empty_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert "wait" in answer(tmp_path / "run").remedy


def test_step_that_is_not_there_is_answered_with_those_that_are(tmp_path: Path) -> None:
    for step in (100, 200):
        save_file(LORA, in_folder(tmp_path / f"checkpoint-{step}", "a", b"") / "lora.safetensors")
    assert "100, 200" in answer(tmp_path, step=300).expected
    write_zero(tmp_path / "zero", 2, 1, tag="global_step0008")
    assert "steps 8" in answer(tmp_path / "zero", step=4).expected
    assert open_container(tmp_path / "zero", Wish(step=8)).step == 8, "whatever the zeros in front of it"


@pytest.mark.parametrize("place", ["", "nowhere/adapter_config.json"])
def test_configuration_that_is_no_file_is_a_mistake_in_the_command(place: str, tmp_path: Path) -> None:
    save_file(LORA, tmp_path / "lora.safetensors")
    error = answer(tmp_path / "lora.safetensors", adapter_config=str(tmp_path / place))
    assert isinstance(error, UsageError)
    assert "--adapter-config" in error.found
    assert "--alpha" in error.remedy


@pytest.mark.parametrize(
    ("number", "kind", "word"),
    [
        (errno.ENOENT, CheckpointError, "is there"),
        (errno.EACCES, CheckpointError, "access"),
        (errno.ENOSPC, MachineError, "free space"),
    ],
)
def test_faults_of_the_file_system_say_what_to_do(number: int, kind: type[AdapterlineError], word: str) -> None:
    error = from_os_error(OSError(number, os.strerror(number)), "Reading lora.safetensors", otherwise=CheckpointError)
    assert type(error) is kind
    assert word in error.expected
    assert "write access" not in error.expected
    assert error.remedy
