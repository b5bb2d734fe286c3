"""What of a remote folder is fetched."""

from __future__ import annotations

import pytest

from adapterline.checkpoints import is_wanted


@pytest.mark.parametrize(
    "path",
    [
        "pytorch_lora_weights.safetensors",
        "checkpoint-4/model.safetensors.index.json",
        "unet/adapter_config.json",
        "README.md",
        "latest",
        "global_step4/zero_pp_rank_0_mp_rank_00_optim_states.pt",
        "pytorch_model_fsdp_0/.metadata",
        "pytorch_model_fsdp_0/__0_0.distcp",
    ],
)
def test_part_of_a_checkpoint_is_wanted(path: str) -> None:
    assert is_wanted(path)
    assert is_wanted(f"optimizer-study/{path}"), "a run's own name decides nothing"


@pytest.mark.parametrize(
    "path",
    [
        "optimizer.bin",
        "checkpoint-4/optimizer.pt",
        "checkpoint-4/random_states_0.pkl",
        "scheduler.bin",
        "training_args.bin",
        "optimizer_0/__0_0.distcp",
        "run/optimizer_0/.metadata",
        "sample_0.png",
        "zero_to_fp32.py",
    ],
)
def test_state_of_something_else_is_not(path: str) -> None:
    assert not is_wanted(path)
