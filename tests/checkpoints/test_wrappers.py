from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

from adapterline.checkpoints.wrappers import peel
from adapterline.errors import CheckpointError

PLAIN = "base_model.model.blocks.0.to_q.lora_A.weight"


@pytest.mark.parametrize(
    "written",
    [
        PLAIN,
        f"module.{PLAIN}",
        f"_orig_mod.{PLAIN}",
        f"module._orig_mod.{PLAIN}",
        f"_orig_mod.module.{PLAIN}",
        f"module.module.{PLAIN}",
        "base_model.model._orig_mod.blocks.0.to_q.lora_A.weight",
        "base_model.model.blocks.0._orig_mod.to_q.lora_A.weight",
        "base_model.model.blocks.0.to_q.lora_A.default.weight",
        "module._orig_mod.base_model.model.blocks.0._orig_mod.to_q.lora_A.my-style.weight",
    ],
)
def test_what_training_wraps_around_a_model_is_peeled_off(written: str) -> None:
    assert peel([written]) == {PLAIN: written}


@pytest.mark.parametrize(
    ("written", "plain"),
    [
        ("x.lora_B.default.bias", "x.lora_B.bias"),
        ("x.lora_magnitude_vector.default.weight", "x.lora_magnitude_vector.weight"),
        ("x.lora_magnitude_vector.default", "x.lora_magnitude_vector"),
        ("x.lora_magnitude_vector.weight", "x.lora_magnitude_vector.weight"),
        ("x.lora_magnitude_vector", "x.lora_magnitude_vector"),
        ("x.lora.down.weight", "x.lora.down.weight"),
        ("x.lora_linear_layer.up.weight", "x.lora_linear_layer.up.weight"),
        ("x.submodule.lora_A.weight", "x.submodule.lora_A.weight"),
    ],
)
def test_adapter_name_is_taken_out_and_nothing_else(written: str, plain: str) -> None:
    assert peel([written]) == {plain: written}


def test_keys_of_a_compiled_and_unwrapped_model_are_the_same(recwarn: pytest.WarningsRecorder) -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))

    model = get_peft_model(Net(), LoraConfig(r=2, target_modules=["0", "1"]))
    wanted = set(get_peft_model_state_dict(model))
    raw = {key for key in torch.compile(model).state_dict() if "lora_" in key}
    assert wanted.isdisjoint(raw)
    assert set(peel(raw)) == wanted


def test_two_adapters_are_refused_by_name() -> None:
    with pytest.raises(CheckpointError, match="first, second"):
        peel(["x.lora_A.first.weight", "y.lora_A.second.weight"])
    with pytest.raises(CheckpointError, match="first, second"):
        peel(["x.lora_A.first.weight", "x.lora_A.second.weight"])


@pytest.mark.parametrize("other", [f"module.{PLAIN}", PLAIN.replace(".weight", ".default.weight")])
def test_one_tensor_under_two_names_is_refused(other: str) -> None:
    with pytest.raises(CheckpointError, match="same once wrappers"):
        peel([PLAIN, other])


@given(st.sets(st.text("lora_AB.weightmodule", min_size=1, max_size=30), max_size=8))
def test_every_key_is_kept_once_or_all_are_refused(keys: set[str]) -> None:
    try:
        peeled = peel(keys)
    except CheckpointError:
        return
    assert sorted(peeled.values()) == sorted(keys)
    assert set(peel(peeled)) == set(peeled)
