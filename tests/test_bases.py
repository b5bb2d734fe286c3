from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from tests.bases import CONFIGS, FAMILIES, build_pipeline, forward, load_component, peft_adapter, wrap

BaseOf = Callable[[str], Path]

UNET = ["to_q", "to_k", "to_v", "to_out.0"]
CLIP = ["q_proj", "k_proj", "v_proj", "out_proj"]

#: Every component that diffusers loads LoRA into.
ADAPTED = [
    ("sd15", "unet", UNET),
    ("sd15", "text_encoder", CLIP),
    ("sdxl", "unet", UNET),
    ("sdxl", "text_encoder", CLIP),
    ("sdxl", "text_encoder_2", CLIP),
    ("sd3", "transformer", UNET),
    ("sd3", "text_encoder", CLIP),
    ("sd3", "text_encoder_2", CLIP),
    ("flux", "transformer", UNET),
    ("flux", "text_encoder", CLIP),
    ("flux2", "transformer", ["to_q", "to_k", "to_v", "to_out.0", "to_qkv_mlp_proj"]),
    ("qwenimage", "transformer", UNET),
]


@pytest.mark.parametrize("family", FAMILIES)
def test_pipeline_loads_whole_with_the_class_of_its_family(base: BaseOf, family: str) -> None:
    index = json.loads((CONFIGS / family / "model_index.json").read_text())
    pipeline = DiffusionPipeline.from_pretrained(base(family))
    assert type(pipeline).__name__ == index["_class_name"]
    for name, entry in index.items():
        if isinstance(entry, list):
            part = getattr(pipeline, name)
            assert entry[1] == (None if part is None else type(part).__name__), name


@pytest.mark.parametrize("family", FAMILIES)
def test_same_seed_same_files_and_another_seed_other_weights(base: BaseOf, family: str, tmp_path: Path) -> None:
    again, other = build_pipeline(family, tmp_path / "again"), build_pipeline(family, tmp_path / "other", seed=1)
    weights = [path.relative_to(again) for path in again.rglob("*.safetensors")]
    assert len(weights) >= 3
    for path in weights:
        assert (again / path).read_bytes() == (base(family) / path).read_bytes(), path
        assert (again / path).read_bytes() != (other / path).read_bytes(), path


def test_building_leaves_the_random_state_alone(tmp_path: Path) -> None:
    torch.manual_seed(1234)
    state = torch.get_rng_state()
    folder = build_pipeline("sd3", tmp_path / "base")
    peft_adapter(folder, "transformer", tmp_path / "adapter", 4, 8, UNET)
    assert torch.equal(torch.get_rng_state(), state)


def test_bases_are_small_and_quickly_built(tmp_path: Path) -> None:
    began = time.process_time()
    for family in FAMILIES:
        folder = build_pipeline(family, tmp_path / family)
        assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 8e6, family
    assert time.process_time() - began < 60
    assert sum(path.stat().st_size for path in CONFIGS.rglob("*") if path.is_file()) < 100e3


@pytest.mark.parametrize(("family", "blocks"), [("sd15", 16), ("sdxl", 70)])
def test_unet_has_every_transformer_block_of_the_real_one(base: BaseOf, family: str, blocks: int) -> None:
    unet = load_component(base(family), "unet")
    assert sum(type(module).__name__ == "BasicTransformerBlock" for module in unet.modules()) == blocks


@pytest.mark.parametrize(("family", "component", "targets"), ADAPTED)
def test_adapter_changes_what_the_component_computes(
    base: BaseOf, family: str, component: str, targets: list[str], tmp_path: Path
) -> None:
    adapter = peft_adapter(base(family), component, tmp_path, 4, 6, targets)
    assert torch.isfinite(adapter.adapted_output).all()
    effect = (adapter.adapted_output - adapter.base_output).norm() / adapter.base_output.norm()
    assert effect > 0.01
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    modules = {key.rpartition(".lora_")[0] for key in tensors}
    assert len(tensors) == 2 * len(modules)
    assert {target for target in targets if any(key.endswith(f".{target}") for key in modules)} == set(targets)
    assert all(tensor.any() for tensor in tensors.values())


def test_forward_is_the_same_for_a_seed_and_differs_between_seeds(sd15_base: Path) -> None:
    unet = load_component(sd15_base, "unet")
    assert torch.equal(forward(unet, 1), forward(unet, 1))
    assert not torch.equal(forward(unet, 1), forward(unet, 2))


def test_forward_of_a_projecting_text_encoder_shows_its_projection(base: BaseOf) -> None:
    encoder = load_component(base("sdxl"), "text_encoder_2")
    before = forward(encoder)
    with torch.no_grad():
        encoder.text_projection.weight.mul_(2)
    changed = forward(encoder) != before
    assert changed[-32:].all()
    assert not changed[:-32].any()


@pytest.mark.parametrize("family", ["flux", "sd3"])
def test_t5_runs(base: BaseOf, family: str) -> None:
    component = "text_encoder_2" if family == "flux" else "text_encoder_3"
    assert forward(load_component(base(family), component)).isfinite().all()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_dora": True},
        {"use_rslora": True},
        {"lora_bias": True},
        {"rank_pattern": {"to_k": 2}, "alpha_pattern": {"to_v": 1.0}},
        {"dtype": torch.bfloat16},
        {"dtype": torch.float16, "use_dora": True},
    ],
    ids=["plain", "dora", "rslora", "bias", "patterns", "bf16", "fp16-dora"],
)
def test_truth_is_what_peft_computes_from_the_saved_folder(sd15_base: Path, tmp_path: Path, options: dict) -> None:
    from peft import PeftConfig, set_peft_model_state_dict

    adapter = peft_adapter(sd15_base, "unet", tmp_path, 4, 6, UNET, **options)
    reloaded = wrap(load_component(sd15_base, "unet"), PeftConfig.from_pretrained(tmp_path))
    set_peft_model_state_dict(reloaded, load_file(tmp_path / "adapter_model.safetensors"))
    assert torch.equal(forward(reloaded.get_base_model()), adapter.adapted_output)


def test_options_reach_the_saved_folder(sd15_base: Path, tmp_path: Path) -> None:
    peft_adapter(sd15_base, "unet", tmp_path / "dora", 4, 6, UNET, use_dora=True, lora_bias=False)
    peft_adapter(sd15_base, "unet", tmp_path / "bias", 4, 6, UNET, lora_bias=True, use_rslora=True)
    patterns = {"rank_pattern": {"to_k": 2}, "alpha_pattern": {"to_v": 1.0}}
    peft_adapter(sd15_base, "unet", tmp_path / "bf16", 4, 6, UNET, dtype=torch.bfloat16, **patterns)
    dora, bias, bf16 = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("dora", "bias", "bf16"))
    magnitudes = {key: tensor for key, tensor in dora.items() if key.endswith("lora_magnitude_vector")}
    assert len(magnitudes) == 128
    base = load_component(sd15_base, "unet").state_dict()
    for key, magnitude in magnitudes.items():
        module = key.removeprefix("base_model.model.").removesuffix(".lora_magnitude_vector")
        factor = magnitude / base[f"{module}.weight"].norm(dim=1)
        assert factor.min() >= 0.79, key
        assert factor.max() <= 1.21, key
        assert factor.std() > 0.02, key
    assert sum(key.endswith("lora_B.bias") for key in bias) == 128
    assert {tensor.dtype for tensor in bf16.values()} == {torch.bfloat16}
    ranks = {key.split(".")[-3]: len(tensor) for key, tensor in bf16.items() if key.endswith("lora_A.weight")}
    assert ranks == {"to_q": 4, "to_k": 2, "to_v": 4, "0": 4}
    config = json.loads((tmp_path / "bf16" / "adapter_config.json").read_text())
    assert {key: config[key] for key in patterns} == patterns
    assert json.loads((tmp_path / "bias" / "adapter_config.json").read_text())["use_rslora"] is True


def test_rank_4_on_the_real_sd15_unet_is_256_tensors_and_797184_parameters() -> None:
    from diffusers import UNet2DConditionModel
    from peft import LoraConfig, get_peft_model_state_dict

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(CONFIGS / "sd15_full" / "unet"))
        adapter = get_peft_model_state_dict(wrap(unet, LoraConfig(r=4, target_modules=UNET)))
    assert sum(parameter.numel() for name, parameter in unet.named_parameters() if "lora_" not in name) == 859_520_964
    assert len(adapter) == 256
    assert sum(tensor.numel() for tensor in adapter.values()) == 797_184


def test_real_sd15_text_encoder_has_its_123060480_parameters() -> None:
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        encoder = CLIPTextModel(CLIPTextConfig.from_pretrained(CONFIGS / "sd15_full" / "text_encoder"))
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 123_060_480


def test_base_loads_an_adapter_the_way_its_consumers_do(base: BaseOf, tmp_path: Path) -> None:
    adapter = peft_adapter(base("flux"), "transformer", tmp_path, 4, 4, UNET)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    renamed = {key.replace("base_model.model.", "transformer."): tensor for key, tensor in tensors.items()}
    save_file(renamed, tmp_path / "pytorch_lora_weights.safetensors")
    pipeline = DiffusionPipeline.from_pretrained(base("flux"))
    pipeline.load_lora_weights(tmp_path, weight_name="pytorch_lora_weights.safetensors")
    assert torch.allclose(forward(pipeline.transformer), adapter.adapted_output, atol=1e-5)
