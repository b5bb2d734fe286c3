from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from adapterline.checkpoints.containers import open_container
from adapterline.checkpoints.containers.base import Contents, Wish
from adapterline.errors import CheckpointError, CheckpointIncompleteError

KEY = "base_model.model.q.lora_{}.weight"
BASE = {"conv_in.bias": torch.ones(4), "conv_in.weight": torch.ones(4, 4)}

Tensors = dict[str, torch.Tensor]


def factors(value: float = 1.0) -> Tensors:
    return {KEY.format("A"): torch.full((2, 3), float(value)), KEY.format("B"): torch.full((4, 2), float(value))}


def write(path: Path, value: float = 1.0, tensors: Tensors | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = factors(value) if tensors is None else tensors
    save_file(tensors, path) if path.suffix == ".safetensors" else torch.save(tensors, path)
    return path


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"not looked at")


def opened(path: Path, step: int | None = None, weights: Any = "raw") -> Contents:
    return open_container(path, Wish(step=step, weights=weights))


def seen(path: Path, step: int | None = None, weights: Any = "raw") -> tuple[float, int | None]:
    """Which file was read, each being filled with a number of its own, and the step that it has."""
    contents = opened(path, step, weights)
    return float(contents.read(KEY.format("A"))[0, 0]), contents.step


def refusal(path: Path, step: int | None = None, weights: Any = "raw") -> str:
    with pytest.raises(CheckpointError) as caught:
        opened(path, step, weights)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 1500
    return message


# --- files that are named by a step -----------------------------------------------------------------------------------


@pytest.mark.parametrize("trainer", ["kohya", "musubi", "ai-toolkit", "onetrainer"])
def test_final_file_is_preferred_and_step_picks(tmp_path: Path, trainer: str) -> None:
    names = {
        "kohya": ("style-step{:08d}.safetensors", "style.safetensors"),
        "musubi": ("style-step{:08d}.safetensors", "style.safetensors"),
        "ai-toolkit": ("style_{:09d}.safetensors", "style.safetensors"),
        "onetrainer": ("style2025-01-31_12-00-{:02d}-save-{:d}-1-0.safetensors", "lora.safetensors"),
    }
    numbered, final = names[trainer]
    for step in (10, 20):
        write(tmp_path / numbered.format(*(step,) * numbered.count("{")), step)
    touch(tmp_path, "optimizer.pt", "config.yaml", "log.txt", "samples/x.jpg", "style.json", "optimizer/optimizer.pt")
    if trainer == "onetrainer":
        (tmp_path / "style.json").unlink()
    assert "10, 20" in refusal(tmp_path)
    write(tmp_path / final, 99)
    assert seen(tmp_path) == (99.0, None)
    assert seen(tmp_path, 10) == (10.0, 10)
    assert seen(tmp_path, 20) == (20.0, 20)
    assert "10, 20" in refusal(tmp_path, 30)


def test_epochs_are_picked_by_their_number_and_are_no_step(tmp_path: Path) -> None:
    write(tmp_path / "style-000001.safetensors", 1)
    write(tmp_path / "style-000002.safetensors", 2)
    assert "1, 2" in refusal(tmp_path)
    write(tmp_path / "style.safetensors", 9)
    assert seen(tmp_path) == (9.0, None)
    assert seen(tmp_path, 2) == (2.0, None)
    write(tmp_path / "style-step00000002.safetensors", 7)
    assert "style-000002.safetensors, style-step00000002.safetensors" in refusal(tmp_path, 2)


def test_epochs_without_an_output_name_belong_to_last(tmp_path: Path) -> None:
    write(tmp_path / "epoch-000001.safetensors", 1)
    write(tmp_path / "last.safetensors", 9)
    assert seen(tmp_path) == (9.0, None)


def test_steps_of_another_name_are_not_the_final_files_own(tmp_path: Path) -> None:
    write(tmp_path / "style-000001.safetensors", 1)
    write(tmp_path / "other.safetensors", 9)
    message = refusal(tmp_path)
    assert "other.safetensors" in message
    assert "style-000001.safetensors" in message


@pytest.mark.parametrize(
    ("name", "step"),
    [("s_000002500.safetensors", 2500), ("s-step00000010.pt", 10), ("s-000004.safetensors", None), ("s-2024.pt", None)],
)
def test_only_file_in_a_folder_is_read_whatever_its_name_says(tmp_path: Path, name: str, step: int | None) -> None:
    write(tmp_path / name, 5)
    assert seen(tmp_path) == (5.0, step)


def test_several_final_files_are_refused_with_the_list(tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.safetensors", "a-step00000010.safetensors"):
        write(tmp_path / name)
    assert "a.safetensors, b.safetensors" in refusal(tmp_path)


# --- kohya's and accelerate's states ----------------------------------------------------------------------------------


def test_state_folder_is_read_as_accelerate_wrote_it(tmp_path: Path) -> None:
    state = tmp_path / "style-step00000020-state"
    write(state / "model.safetensors", 3)
    touch(state, "optimizer.bin", "scheduler.bin", "random_states_0.pkl", "train_state.json", "sampler.bin")
    assert seen(state) == (3.0, 20)
    assert seen(tmp_path, 20) == (3.0, 20)
    write(tmp_path / "style-step00000020.safetensors", 4)
    assert seen(tmp_path, 20) == (4.0, 20)
    write(tmp_path / "style.safetensors", 5)
    write(tmp_path / "style-state" / "model.safetensors", 6)
    assert seen(tmp_path) == (5.0, None)


def test_real_accelerate_state_is_read(tmp_path: Path) -> None:
    from accelerate import Accelerator

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lora_A = torch.nn.Linear(3, 2, bias=False)

    accelerator = Accelerator(cpu=True)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters())
    prepared = accelerator.prepare(model, optimizer)
    prepared[0].lora_A(torch.ones(1, 3)).sum().backward()
    prepared[1].step()
    for safe in (True, False):
        folder = tmp_path / str(safe) / "checkpoint-5"
        accelerator.save_state(str(folder), safe_serialization=safe)
        for path, step in ((folder, None), (folder.parent, 5)):
            contents = opened(path, step)
            assert (contents.container, contents.step) == ("training-folder", 5)
            assert torch.equal(contents.read("lora_A.weight"), model.lora_A.weight)
    assert "5" in refusal(tmp_path / "True")


def test_several_models_are_told_apart_by_their_keys_or_refused(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors", tensors=BASE)
    write(tmp_path / "model_1.safetensors", 2)
    assert seen(tmp_path) == (2.0, None)
    write(tmp_path / "model_2.safetensors", 3)
    assert "model.safetensors, model_1.safetensors, model_2.safetensors" in refusal(tmp_path)


@pytest.mark.filterwarnings("ignore::UserWarning:torch", "ignore::FutureWarning:torch")
def test_fsdp_folder_of_accelerate_is_read(tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp

    folder = tmp_path / "checkpoint-7"
    dcp.save({"model": factors(7)}, checkpoint_id=folder / "pytorch_model_fsdp_0", no_dist=True)
    dcp.save({"optimizer": {"state": torch.ones(9)}}, checkpoint_id=folder / "optimizer_0", no_dist=True)
    assert seen(folder) == (7.0, 7)
    assert seen(tmp_path, 7) == (7.0, 7)
    names = {file.relative_to(folder).as_posix() for file in opened(folder).files}
    assert names == {"pytorch_model_fsdp_0/.metadata", "pytorch_model_fsdp_0/__0_0.distcp"}
    dcp.save({"model": factors(8)}, checkpoint_id=folder / "pytorch_model_fsdp_1", no_dist=True)
    assert "pytorch_model_fsdp_0, pytorch_model_fsdp_1" in refusal(folder)


# --- shards -----------------------------------------------------------------------------------------------------------


def write_shards(folder: Path, suffix: str = ".safetensors") -> Path:
    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    folder.mkdir(parents=True, exist_ok=True)
    shards = {f"{stem}-{number:05d}-of-00002{suffix}": key for number, key in enumerate(factors(), 1)}
    for name, key in shards.items():
        write(folder / name, tensors={key: factors(4)[key]})
    index = folder / f"{stem}{suffix}.index.json"
    weights = {key: name for name, key in shards.items()}
    index.write_text(json.dumps({"metadata": {"total_size": 56}, "weight_map": weights}))
    return index


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_shards_are_read_by_their_index(tmp_path: Path, suffix: str) -> None:
    index = write_shards(tmp_path, suffix)
    for path in (tmp_path, index):
        contents = opened(path)
        assert {key: float(contents.read(key).mean()) for key in contents.tensors} == dict.fromkeys(factors(), 4.0)
        assert len(contents.files) == 3


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_missing_shard_may_still_be_written(tmp_path: Path, suffix: str) -> None:
    index = write_shards(tmp_path, suffix)
    next(tmp_path.glob("*00002-of*")).unlink()
    for path in (tmp_path, index):
        with pytest.raises(CheckpointIncompleteError, match="00002-of-00002"):
            opened(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda weights: weights | {"more": next(iter(weights.values()))}, "more"),
        (lambda weights: dict(list(weights.items())[:1]) | {"z": list(weights.values())[1]}, "z"),
        (lambda weights: {key: f"../{name}" for key, name in weights.items()}, "../model"),
        (lambda weights: dict.fromkeys(weights, "/etc/passwd"), "/etc/passwd"),
        (lambda weights: dict.fromkeys(weights, 3), "'3'"),
        (lambda weights: {f"../{key}": name for key, name in weights.items()}, "../base_model"),
        (lambda weights: {}, "weight_map"),
        (lambda weights: [], "weight_map"),
        (lambda weights: dict(zip(weights, reversed(weights.values()), strict=True)), "lora_"),
    ],
)
def test_index_that_does_not_fit_its_shards_is_refused(tmp_path: Path, change: Any, words: str) -> None:
    index = write_shards(tmp_path)
    weights = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": change(weights)}))
    assert words in refusal(index)


def test_tensor_that_the_index_does_not_name_is_refused(tmp_path: Path) -> None:
    index = write_shards(tmp_path)
    shard = next(tmp_path.glob("*00001-of*"))
    write(shard, tensors={KEY.format("A"): torch.ones(2, 3), "forgotten": torch.ones(1)})
    assert "does not name 'forgotten'" in refusal(index)


@pytest.mark.parametrize("text", ["", "[", "[" * 100_000, "3", "{}"])
def test_index_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    index = write_shards(tmp_path)
    index.write_text(text)
    refusal(tmp_path)


# --- OneTrainer -------------------------------------------------------------------------------------------------------


def write_backup(folder: Path, step: int = 120) -> Path:
    write(folder / "lora" / "lora.safetensors", step)
    progress = {"epoch": 3, "epoch_step": 0, "epoch_sample": 0, "global_step": step}
    (folder / "meta.json").write_text(json.dumps({"train_progress": progress}))
    write(folder / "optimizer" / "optimizer.pt", tensors={"x": torch.ones(3)})
    torch.save({"decay": 0.9, "ema_parameters": list(factors(2).values())}, write(folder / "ema" / "ema.pt"))
    touch(folder, "onetrainer_config/args.json")
    return folder


def test_backup_of_onetrainer_is_its_lora_and_says_its_step(tmp_path: Path) -> None:
    folder = write_backup(tmp_path / "2025-01-31_12-00-00-backup-120-3-0")
    assert seen(folder) == (120.0, 120)
    write_backup(tmp_path / "2025-01-31_13-00-00-backup-240-6-0", 240)
    assert seen(tmp_path, 240) == (240.0, 240)
    assert "120, 240" in refusal(tmp_path)
    assert "without names" in refusal(folder, weights="ema")
    write(folder / "embeddings" / "some-uuid.safetensors")
    assert "some-uuid.safetensors" in refusal(folder)


def test_backup_with_a_broken_meta_json_is_still_read(tmp_path: Path) -> None:
    folder = write_backup(tmp_path / "backup")
    for text in ("", "[]", '{"train_progress": 3}', '{"train_progress": {"global_step": "x"}}', "[" * 100_000):
        (folder / "meta.json").write_text(text)
        assert seen(folder) == (120.0, None)


# --- EMA --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["ema/ema_model.safetensors", "ema/pytorch_lora_weights.safetensors", "style_ema.safetensors"]
)
def test_ema_file_is_read_if_asked_for_and_only_then(tmp_path: Path, name: str) -> None:
    for step in (5, 6):
        write(tmp_path / f"checkpoint-{step}" / "pytorch_lora_weights.safetensors", step)
        write(tmp_path / f"checkpoint-{step}" / name, step + 100)
        touch(tmp_path / f"checkpoint-{step}", "training_state.json", "lycoris_config.json", "optimizer.bin")
    assert seen(tmp_path, 6) == (6.0, 6)
    assert seen(tmp_path, 6, "ema") == (106.0, 6)
    assert seen(tmp_path / "checkpoint-5") == (5.0, 5)
    assert seen(tmp_path / "checkpoint-5", weights="ema") == (105.0, 5)
    assert "--weights ema" in refusal(tmp_path / "checkpoint-5" / name)
    assert seen(tmp_path / "checkpoint-5" / name, weights="ema")[0] == 105.0


def test_ema_folders_of_components_are_joined(tmp_path: Path) -> None:
    write(tmp_path / "pytorch_lora_weights.safetensors", 1)
    write(tmp_path / "unet_ema" / "diffusion_pytorch_model.safetensors", 2)
    write(tmp_path / "text_encoder_ema" / "model.safetensors", 3)
    assert seen(tmp_path) == (1.0, None)
    contents = opened(tmp_path, weights="ema")
    assert float(contents.read(f"unet.{KEY.format('A')}").mean()) == 2.0
    assert float(contents.read(f"text_encoder.{KEY.format('B')}").mean()) == 3.0


def test_ema_that_is_asked_for_and_not_there_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "pytorch_lora_weights.safetensors", 1)
    assert "no EMA weights" in refusal(tmp_path, weights="ema")


def test_several_ema_weights_are_refused_with_the_list(tmp_path: Path) -> None:
    for name in ("style.safetensors", "style_ema.safetensors", "ema/ema_model.safetensors"):
        write(tmp_path / name)
    assert seen(tmp_path) == (1.0, None)
    assert "ema, style_ema.safetensors" in refusal(tmp_path, weights="ema")


def test_folder_of_ema_weights_alone_has_no_final_file(tmp_path: Path) -> None:
    write(tmp_path / "style_ema.safetensors", 2)
    refusal(tmp_path)
    assert seen(tmp_path, weights="ema") == (2.0, None)
