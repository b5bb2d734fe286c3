from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

from adapterline.demo.base import build_base, build_tokenizer, writing
from adapterline.demo.train import ADAPTERS, Training, train
from adapterline.errors import CheckpointError, MachineError

WRITTEN = {"README.md", "adapter_config.json", "adapter_model.safetensors"}


@pytest.fixture(scope="module")
def demo_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "base"
    build_base(folder)
    return folder


@pytest.fixture(scope="module")
def trained(demo_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Training]:
    out = tmp_path_factory.mktemp("demo") / "training"
    return out, train(demo_base, out)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_base_renders_a_prompt(demo_base: Path) -> None:
    pipeline = DiffusionPipeline.from_pretrained(demo_base)
    assert type(pipeline).__name__ == "StableDiffusionPipeline"
    images = [
        pipeline(prompt, num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="np").images[0]
        for prompt in ("a photo of a sks dog", "the sea")
    ]
    assert images[0].shape == (64, 64, 3)
    assert images[0].std() > 0.01
    assert (images[0] != images[1]).any()


def test_base_has_the_blocks_of_stable_diffusion_15_in_under_5_mb(demo_base: Path) -> None:
    config = json.loads((demo_base / "unet" / "config.json").read_text())
    assert config["down_block_types"] == ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
    assert config["up_block_types"] == ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3
    assert config["layers_per_block"] == 2
    assert json.loads((demo_base / "model_index.json").read_text())["safety_checker"] == [None, None]
    assert sum(map(len, contents(demo_base).values())) < 5e6


def test_base_is_the_same_bytes_for_a_seed(demo_base: Path, tmp_path: Path) -> None:
    build_base(tmp_path / "again")
    build_base(tmp_path / "other", seed=1)
    assert contents(tmp_path / "again") == contents(demo_base)
    assert contents(tmp_path / "other") != contents(demo_base)


def test_tokenizer_knows_every_text_and_reads_from_its_vocabulary_alone(demo_base: Path, tmp_path: Path) -> None:
    from transformers import CLIPTokenizer

    text = "Ein Föhn, 犬 & \t42!"
    tokenizer = build_tokenizer()
    ids = tokenizer(text).input_ids
    assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert tokenizer.unk_token_id not in ids[1:-1]
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((demo_base / "tokenizer" / name).read_bytes())
    assert CLIPTokenizer.from_pretrained(tmp_path)(text).input_ids == ids


def test_training_writes_one_peft_folder_for_each_component_and_nothing_else(trained: tuple[Path, Training]) -> None:
    out, _ = trained
    assert set(contents(out)) == {f"{component}/{name}" for component in ("unet", "text_encoder") for name in WRITTEN}


def test_every_b_is_trained_on_every_attention(trained: tuple[Path, Training]) -> None:
    out, _ = trained
    unet, encoder = (load_file(out / component / "adapter_model.safetensors") for component in ADAPTERS)
    assert (len(unet), len(encoder)) == (256, 16)
    for key, tensor in (unet | encoder).items():
        assert tensor.isfinite().all(), key
        assert tensor.abs().max() > 1e-3, key


def test_alpha_differs_from_the_rank_in_both_configs(trained: tuple[Path, Training]) -> None:
    out, training = trained
    for component, (rank, alpha) in {"unet": (4, 6), "text_encoder": (8, 4)}.items():
        config = json.loads((out / component / "adapter_config.json").read_text())
        assert (config["r"], config["lora_alpha"]) == (rank, alpha)
        told = training["components"][component]
        assert (told["rank"], told["alpha"], told["targets"]) == (rank, alpha, config["target_modules"])


def test_loss_falls(trained: tuple[Path, Training]) -> None:
    _, training = trained
    losses = training["losses"]
    assert len(losses) == training["steps"] == 4
    assert losses == sorted(losses, reverse=True)
    json.dumps(training)


def test_trained_adapter_changes_the_base_and_loads_with_peft(demo_base: Path, trained: tuple[Path, Training]) -> None:
    from peft import PeftModel

    from tests.bases import forward, load_component

    unet = load_component(demo_base, "unet")
    before = forward(unet)
    adapted = PeftModel.from_pretrained(unet, trained[0] / "unet").get_base_model()
    assert (forward(adapted) - before).norm() / before.norm() > 0.01


@pytest.mark.slow
def test_training_again_elsewhere_gives_the_same_weights_and_configs(
    demo_base: Path, trained: tuple[Path, Training], tmp_path: Path
) -> None:
    build_base(tmp_path / "base")
    code = "import sys, pathlib, adapterline.demo.train as t; t.train(*map(pathlib.Path, sys.argv[1:]))"
    # Another hash seed: sets come out in another order, in which peft would write a list of target modules.
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", code, str(tmp_path / "base"), str(tmp_path / "out")]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=240)
    first, again = contents(trained[0]), contents(tmp_path / "out")
    assert first.keys() == again.keys()
    for name in first:
        if not name.endswith("README.md"):  # it names the folder of the base
            assert first[name] == again[name], name


def test_another_seed_trains_another_adapter(demo_base: Path, trained: tuple[Path, Training], tmp_path: Path) -> None:
    train(demo_base, tmp_path, steps=1, seed=1)
    name = "unet/adapter_model.safetensors"
    assert contents(tmp_path)[name] != contents(trained[0])[name]


def test_training_into_the_same_folder_again_changes_nothing(demo_base: Path, tmp_path: Path) -> None:
    train(demo_base, tmp_path, steps=1)
    first = contents(tmp_path)
    assert b"!!python" not in first["unet/README.md"]
    train(demo_base, tmp_path, steps=1)
    again = contents(tmp_path)
    assert first.keys() == again.keys()
    assert [name for name in first if first[name] != again[name] and not name.endswith("README.md")] == []


def test_base_and_training_leave_the_random_state_alone(demo_base: Path, tmp_path: Path) -> None:
    torch.manual_seed(1234)
    state = torch.get_rng_state()
    build_base(tmp_path / "base")
    train(demo_base, tmp_path / "out", steps=1)
    assert torch.equal(torch.get_rng_state(), state)


def test_training_takes_seconds(demo_base: Path, tmp_path: Path) -> None:
    began = time.process_time()  # of all threads: what others do with this machine does not count
    train(demo_base, tmp_path)
    assert time.process_time() - began < 60  # of processor time: a quarter of that on a quiet machine


@pytest.mark.parametrize("name", ["unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"])
def test_training_on_a_broken_base_is_a_checkpoint_error(demo_base: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(demo_base, tmp_path / "base")
    (tmp_path / "base" / name).write_bytes((demo_base / name).read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="Build the base again"):
        train(tmp_path / "base", tmp_path / "out")


def test_training_on_something_else_is_a_checkpoint_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="Build the base again"):
        train(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folder_that_cannot_be_written_is_a_machine_error(demo_base: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(MachineError, match="file"):
        build_base(tmp_path / "file" / "base")
    with pytest.raises(MachineError, match="file"):
        train(demo_base, tmp_path / "file" / "out", steps=1)


def test_write_that_fails_half_way_is_a_machine_error(demo_base: Path, tmp_path: Path) -> None:
    """safetensors puts the reason into words: a limit on file sizes makes it fail as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(MachineError, match="File too large"):
            train(demo_base, tmp_path / "out", steps=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk_is_told_from_the_words_of_safetensors(tmp_path: Path) -> None:
    from safetensors import SafetensorError

    told = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(MachineError, match="No space left on device. Expected free space"), writing(tmp_path):
        raise told
    with pytest.raises(SafetensorError, match="something else"), writing(tmp_path):
        raise SafetensorError("something else")
