from __future__ import annotations

from typing import Any

import peft
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


@pytest.mark.parametrize(
    "written",
    [
        f"net.{PLAIN}",
        f"model.{PLAIN}",
        f"app.model.{PLAIN}",
        f"_forward_module.model.{PLAIN}",
        "model.module.base_model.model.module.blocks.0.to_q.lora_A.default.weight",
        "base_model.model._fsdp_wrapped_module.blocks.0._fsdp_wrapped_module.to_q.lora_A.weight",
        "base_model.model.blocks.0._checkpoint_wrapped_module.to_q.lora_A.weight",
        "_fsdp_wrapped_module.base_model.model.blocks.0._fpw_module._checkpoint_wrapped_module.to_q.lora_A.weight",
    ],
)
def test_what_holds_the_model_is_peeled_off(written: str) -> None:
    assert peel([written]) == {PLAIN: written}


@pytest.mark.parametrize(
    ("written", "plain"),
    [
        ("unet.module.mid.to_q.lora_A.weight", "unet.mid.to_q.lora_A.weight"),
        ("unet.base_model.model.mid.to_q.lora_A.weight", "unet.base_model.model.mid.to_q.lora_A.weight"),
        ("unet.mid.to_q.lora_A.default.weight", "unet.base_model.model.mid.to_q.lora_A.weight"),
        ("pipe.transformer.blocks.0.to_q.lora_A.weight", "transformer.blocks.0.to_q.lora_A.weight"),
        ("model.unet.module._orig_mod.mid.to_q.lora_A.weight", "unet.mid.to_q.lora_A.weight"),
        ("model.unet.base_model.model.mid.lora_A.default.weight", "unet.base_model.model.mid.lora_A.weight"),
        ("model.down_blocks.0.to_q.lora_A.weight", "down_blocks.0.to_q.lora_A.weight"),
        ("model.blocks.0.attn1.to_q.lora_A.default.weight", "blocks.0.attn1.to_q.lora_A.weight"),
        ("net.layers.0.attention.to_q.lora_A.default.weight", "layers.0.attention.to_q.lora_A.weight"),
        ("net.context_refiner.0.attn.to_q.lora_A.weight", "context_refiner.0.attn.to_q.lora_A.weight"),
        # names of the model's own
        ("blocks.0.module.to_q.lora_A.weight", "blocks.0.module.to_q.lora_A.weight"),
        ("base_model.model.x.module.lora_A.weight", "base_model.model.x.module.lora_A.weight"),
        ("model.layers.0.q_proj.lora_A.weight", "model.layers.0.q_proj.lora_A.weight"),
        ("model.layers.0.self_attn.q_proj.lora_A.weight", "model.layers.0.self_attn.q_proj.lora_A.weight"),
        ("diffusion_model.blocks.0.lora_A.weight", "diffusion_model.blocks.0.lora_A.weight"),
        ("x._orig_module.lora_A.weight", "x._orig_module.lora_A.weight"),
        ("module", "module"),
        ("x_orig_mod.y", "x_orig_mod.y"),
    ],
)
def test_wrapper_is_told_from_a_name_of_the_model(written: str, plain: str) -> None:
    assert peel([written]) == {plain: written}


@pytest.mark.parametrize(
    "first",
    [
        *(
            "down_blocks.0",
            "up_blocks.1",
            "mid_block",
            "transformer_blocks.0",
            "single_transformer_blocks.0",
            "blocks.0",
        ),
        *("text_model.encoder", "noise_refiner.0", "context_refiner.0"),
        *("layers.0.attn", "layers.0.attention", "layers.0.feed_forward"),
    ],
)
def test_holder_is_peeled_off_before_every_first_name_of_a_model(first: str) -> None:
    plain = f"{first}.proj.lora_A.weight"
    assert peel([f"net.{plain}"]) == {plain: f"net.{plain}"}


@pytest.mark.parametrize(
    "holder",
    [
        *("model", "models", "pipe", "pipeline", "net", "network", "pl_module", "app", "state_dict", "lora", "core"),
        *("_forward_module", "app.pipe.model"),
    ],
)
@pytest.mark.parametrize("plain", ["blocks.0.to_q.lora_A.weight", "unet.mid.to_q.lora_A.weight"])
def test_every_holder_is_peeled_off(holder: str, plain: str) -> None:
    assert peel([f"{holder}.{plain}"]) == {plain: f"{holder}.{plain}"}


@pytest.mark.parametrize(
    "part", ["lora_down.weight", "lora_A.weight", "hada_w1_a", "lokr_w1", "oft_blocks", "vera_lambda_d"]
)
@pytest.mark.parametrize("stem", ["blocks.0.to_q", "transformer.blocks.0.to_q"])
def test_holder_is_peeled_off_an_adapter_of_any_type(stem: str, part: str) -> None:
    assert peel([f"net.{stem}.{part}"]) == {f"{stem}.{part}": f"net.{stem}.{part}"}


@pytest.mark.parametrize("key", ["model.blocks.0.to_q.weight", "model.unet.conv_in.weight"])
def test_weights_of_a_model_without_an_adapter_keep_their_names(key: str) -> None:
    assert peel([key]) == {key: key}


def test_name_of_a_component_deep_in_a_path_is_the_models_own() -> None:
    key = "blocks.0.inner.transformer.module.to_q.lora_A.weight"
    assert peel([key]) == {key: key}


def test_holders_of_two_models_are_left_where_they_would_become_one() -> None:
    keys = [f"generator.{PLAIN}", f"critic.{PLAIN.replace('to_q', 'to_k')}"]
    assert set(peel(keys)) == set(keys)


def test_holders_of_two_components_are_both_peeled_off() -> None:
    keys = ["pipe.unet.base_model.model.x.lora_A.weight", "pipe.text_encoder.base_model.model.x.lora_A.weight"]
    assert set(peel(keys)) == {"unet.base_model.model.x.lora_A.weight", "text_encoder.base_model.model.x.lora_A.weight"}


def test_weights_beside_the_adapter_keep_its_place() -> None:
    keys = ["net.base_model.model.x.lora_A.default.weight", "net.base_model.model.x.base_layer.weight", "vae.x.weight"]
    assert set(peel(keys)) == {
        "base_model.model.x.lora_A.weight",
        "base_model.model.x.base_layer.weight",
        "vae.x.weight",
    }


def test_frozen_weights_lose_the_holder_that_the_adapter_had() -> None:
    adapter = "model.layers.0.attention.to_q.lora_A.default.weight"
    frozen = {f"model.{name}.weight": f"{name}.weight" for name in ("layers.0.norm", "cap_embedder.1")}
    peeled = peel([adapter, *frozen])
    assert peeled == {"layers.0.attention.to_q.lora_A.weight": adapter, **{new: old for old, new in frozen.items()}}


def test_raw_state_dict_of_a_component_does_not_become_diffusers_format() -> None:
    keys = ["unet.mid.lora_A.default.weight", "unet.mid.base_layer.weight", "unet.conv_in.bias"]
    assert set(peel(keys)) == {
        "unet.base_model.model.mid.lora_A.weight",
        "unet.base_model.model.mid.base_layer.weight",
        "unet.base_model.model.conv_in.bias",
    }


class Attention(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_q = torch.nn.Linear(8, 8)
        self.embed = torch.nn.Embedding(4, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.to_q(self.embed(x))


def _tuners() -> dict[str, Any]:
    common = {"target_modules": ["to_q"]}
    return {
        "lora": LoraConfig(r=2, target_modules=["to_q", "embed"], lora_bias=False),
        "dora": LoraConfig(r=2, use_dora=True, **common),
        "adalora": peft.AdaLoraConfig(init_r=2, total_step=10, **common),
        "loha": peft.LoHaConfig(r=2, **common),
        "lokr": peft.LoKrConfig(r=2, **common),
        "vera": peft.VeraConfig(r=2, **common),
        "oft": peft.OFTConfig(oft_block_size=4, r=0, **common),
        "ia3": peft.IA3Config(feedforward_modules=[], **common),
        "hra": peft.HRAConfig(r=2, **common),
    }


@pytest.mark.filterwarnings("ignore::UserWarning:peft")
@pytest.mark.parametrize("name", _tuners())
def test_adapter_name_is_taken_out_for_every_tuner_of_peft(name: str) -> None:
    model = get_peft_model(Attention(), _tuners()[name], adapter_name="my-style")
    raw = {key for key in model.state_dict() if "my-style" in key}
    assert raw
    wanted = set(get_peft_model_state_dict(model, adapter_name="my-style", save_embedding_layers=False))
    peeled = {key.replace("magnitude_vector.weight", "magnitude_vector") for key in peel(raw)}
    # What only training needs: AdaLoRA's mask, and the references of VeRA's layers to the factors that they share.
    extra = {key for key in peeled - wanted if key.endswith(("to_q.ranknum", "to_q.vera_A", "to_q.vera_B"))}
    assert peeled - extra == wanted


def test_module_that_was_trained_whole_keeps_its_mark() -> None:
    model = get_peft_model(Attention(), LoraConfig(r=2, target_modules=["to_q"], modules_to_save=["embed"]))
    peeled = peel(key for key in model.state_dict() if "default" in key)
    assert "base_model.model.embed.modules_to_save.weight" in peeled
