from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapterline.checkpoints import load_checkpoint
from adapterline.checkpoints.extract import extract
from adapterline.errors import AdapterlineError, CheckpointError, ConversionError, FamilyError, UsageError
from adapterline.families.base import read_base
from adapterline.families.skeleton import targets
from adapterline.values import Adapter, ExportOptions
from tests.bases import peft_adapter
from tests.families.tiny import CASES

BaseOf = Callable[[str], Path]

UNET = ["to_q", "to_k", "to_v", "to_out.0"]
CLIP = ["q_proj", "v_proj"]


def extracted(path: Path, base_folder: Path, **options: Any) -> Adapter:
    asked = ExportOptions(**options)
    return extract(load_checkpoint(str(path), asked, path.parent), read_base(base_folder), asked)


def refused(path: Path, base_folder: Path, kind: type[AdapterlineError], **options: Any) -> str:
    with pytest.raises(kind) as caught:
        extracted(path, base_folder, **options)
    assert type(caught.value) is kind
    return str(caught.value)


def layer(base_folder: Path, component: str, rank: int = 4, number: int = 0, **changes: Any) -> dict[str, torch.Tensor]:
    """A diffusers file's tensors for one layer that the base really has."""
    name, target = sorted(targets(read_base(base_folder), component).items())[number]
    out, *inner = target.shape
    shapes = {"lora_A.weight": (rank, *inner), "lora_B.weight": (out, rank, *[1] * (len(inner) - 1))} | changes
    return {f"{component}.{name}.{part}": torch.randn(shape) for part, shape in shapes.items() if shape is not None}


def saved(tensors: dict[str, torch.Tensor], path: Path, header: dict[str, Any] | None = None) -> Path:
    save_file(tensors, path, {"lora_adapter_metadata": json.dumps(header)} if header else None)
    return path


# --- which component --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "component", "modules"),
    [
        ("sd15", "unet", UNET),
        ("sd15", "text_encoder", CLIP),
        ("sdxl", "unet", UNET),
        ("flux", "transformer", UNET),
        ("flux2", "transformer", UNET),
        ("qwenimage", "transformer", UNET),
        ("sd3", "transformer", UNET),
    ],
)
def test_component_of_a_bare_state_dict_is_found_by_its_modules(
    base: BaseOf, tmp_path: Path, family: str, component: str, modules: list[str]
) -> None:
    adapter = peft_adapter(base(family), component, tmp_path / "peft", 4, 8, modules)
    bare = saved(load_file(adapter.folder / "adapter_model.safetensors"), tmp_path / "bare.safetensors")
    found = extracted(bare, base(family), alpha=8)
    assert set(found.components) == {component}
    assert {(delta.rank, delta.scale) for delta in found.components[component].values()} == {(4, 2.0)}
    assert set(found.components[component]) <= set(targets(read_base(base(family)), component))


def test_component_that_two_models_could_be_is_refused_with_the_way_out(base: BaseOf, tmp_path: Path) -> None:
    adapter = peft_adapter(base("sd3"), "text_encoder", tmp_path / "peft", 4, 8, CLIP)
    config = json.loads((adapter.folder / "adapter_config.json").read_text())
    message = refused(adapter.folder, base("sd3"), CheckpointError)
    assert "text_encoder or text_encoder_2" in message
    assert "a folder of that name" in message
    adapter.folder.rename(tmp_path / "text_encoder_2")
    (tmp_path / "around").mkdir()
    (tmp_path / "text_encoder_2").rename(tmp_path / "around" / "text_encoder_2")
    assert set(extracted(tmp_path / "around", base("sd3")).components) == {"text_encoder_2"}
    assert config["r"] == 4


def test_class_that_peft_noted_tells_models_of_one_shape_apart(base: BaseOf, tmp_path: Path) -> None:
    adapter = peft_adapter(base("sd15"), "unet", tmp_path / "peft", 4, 8, UNET)
    path = adapter.folder / "adapter_config.json"
    config = json.loads(path.read_text()) | {"auto_mapping": {"base_model_class": "FluxTransformer2DModel"}}
    path.write_text(json.dumps(config))
    assert "FluxTransformer2DModel" in refused(adapter.folder, base("sd15"), FamilyError)


def test_adapter_of_another_family_is_refused(base: BaseOf, tmp_path: Path) -> None:
    adapter = peft_adapter(base("sd15"), "unet", tmp_path / "peft", 4, 8, UNET)
    for other in ("flux", "sd3", "sdxl"):
        assert "fits no component" in refused(adapter.folder, base(other), FamilyError)
    named = saved(layer(base("sd15"), "unet"), tmp_path / "sd15.safetensors")
    assert "FluxPipeline" in refused(named, base("flux"), FamilyError)
    flux = saved(layer(base("flux"), "transformer"), tmp_path / "flux.safetensors")
    assert "does not fit transformer" in refused(flux, base("qwenimage"), FamilyError)


def test_keys_with_and_without_a_component_are_refused(base: BaseOf, tmp_path: Path) -> None:
    adapter = peft_adapter(base("sd15"), "unet", tmp_path / "peft", 4, 8, UNET)
    bare = load_file(adapter.folder / "adapter_model.safetensors")
    mixed = bare | {f"unet.{key.replace('to_q', 'to_z')}": tensor.clone() for key, tensor in bare.items()}
    assert "others do not" in refused(saved(mixed, tmp_path / "m.safetensors"), base("sd15"), CheckpointError, alpha=8)


def test_t5_is_refused_and_may_be_left_out_by_name(base: BaseOf, tmp_path: Path) -> None:
    for family, t5 in (("flux", "text_encoder_2"), ("sd3", "text_encoder_3")):
        tensors = layer(base(family), "transformer") | layer(base(family), t5)
        path = saved(tensors, tmp_path / f"{family}.safetensors")
        assert "--components transformer" in refused(path, base(family), ConversionError)
        adapter = extracted(path, base(family), components=("transformer",))
        assert (set(adapter.components), adapter.left_out) == ({"transformer"}, (t5,))
        alone = saved(layer(base(family), t5), tmp_path / f"{family}_t5.safetensors")
        assert t5 in refused(alone, base(family), ConversionError)


@pytest.mark.parametrize(
    ("family", "component"),
    [
        ("sd3", "text_encoder_3"),
        ("flux", "text_encoder_2"),
        ("lumina2", "text_encoder"),
        ("sana", "text_encoder"),
        *(("hidream", f"text_encoder{number}") for number in ("", "_2", "_3", "_4")),
        *(("hunyuan_video", f"text_encoder{number}") for number in ("", "_2")),
        ("amused", "text_encoder"),
    ],
)
def test_text_encoder_that_the_loader_drops_is_refused_by_name(family: str, component: str, tmp_path: Path) -> None:
    """Trainers adapt it, and load_lora_weights takes the file and leaves it out without a word."""
    folder = CASES[family].write(tmp_path / "base")
    adapted = read_base(folder).family.components[0].name
    stem = f"{component}.layers.0.self_attn.q_proj"
    encoder = {f"{stem}.lora_A.weight": torch.ones(2, 8), f"{stem}.lora_B.weight": torch.ones(8, 2)}
    path = saved(layer(folder, adapted) | encoder, tmp_path / "both.safetensors")
    message = refused(path, folder, ConversionError)
    assert f"adapts {component}, and load_lora_weights of" in message
    assert f"pass --components {adapted}" in message
    assert extracted(path, folder, components=(adapted,)).left_out == (component,)


def test_text_encoder_of_lumina_is_refused_and_may_be_left_out_by_name(tmp_path: Path) -> None:
    folder = CASES["lumina2"].write(tmp_path / "base")
    gemma = {
        f"lora_te_layers_0_self_attn_q_proj.{part}": torch.randn(shape)  # networks/lora_lumina.py
        for part, shape in {"lora_down.weight": (2, 8), "lora_up.weight": (8, 2), "alpha": ()}.items()
    }
    denoiser = layer(folder, "transformer")
    flat = {
        "lora_unet_"
        + re.sub(r"\.(?=.*\.lora_)", "_", key.removeprefix("transformer."))
        .replace("lora_A", "lora_down")
        .replace("lora_B", "lora_up"): tensor
        for key, tensor in denoiser.items()
    }
    path = saved(gemma | flat, tmp_path / "both.safetensors")
    assert "text_encoder, and load_lora_weights of Lumina" in refused(path, folder, ConversionError)
    adapter = extracted(path, folder, components=("transformer",))
    assert (set(adapter.components), adapter.left_out) == ({"transformer"}, ("text_encoder",))


def test_components_are_chosen_by_name(base: BaseOf, tmp_path: Path) -> None:
    tensors = layer(base("sdxl"), "unet") | layer(base("sdxl"), "text_encoder") | layer(base("sdxl"), "text_encoder_2")
    path = saved(tensors, tmp_path / "all.safetensors")
    assert set(extracted(path, base("sdxl")).components) == {"unet", "text_encoder", "text_encoder_2"}
    chosen = extracted(path, base("sdxl"), components=("text_encoder", "unet"))
    assert (set(chosen.components), chosen.left_out) == ({"unet", "text_encoder"}, ("text_encoder_2",))
    assert "transformer" in refused(path, base("sdxl"), UsageError, components=("transformer",))


# --- layers that are not whole ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["A", "B"])
def test_layer_without_a_factor_is_refused_by_name(base: BaseOf, tmp_path: Path, missing: str) -> None:
    tensors = layer(base("sd15"), "unet") | layer(base("sd15"), "unet", number=3)
    gone = next(key for key in tensors if f"lora_{missing}" in key)
    del tensors[gone]
    message = refused(saved(tensors, tmp_path / "l.safetensors"), base("sd15"), CheckpointError)
    assert f"{gone.rpartition('.lora_')[0]} has no lora_{missing}" in message


@pytest.mark.parametrize(
    "changes",
    [
        {"lora_B.weight": (8, 3)},
        {"lora_B.weight": (8,)},
        {"lora_A.weight": (4,)},
        {"lora_A.weight": ()},
        {"lora_B.weight": ()},
        {"lora_B.weight": (8, 4, 3, 3)},
        {"lora_magnitude_vector": (3,)},
        {"lora_B.bias": (3,)},
    ],
)
def test_shapes_that_do_not_belong_together_are_refused(
    base: BaseOf, tmp_path: Path, changes: dict[str, tuple[int, ...]]
) -> None:
    path = saved(layer(base("sd15"), "unet", **changes), tmp_path / "l.safetensors")
    refused(path, base("sd15"), CheckpointError)


@pytest.mark.parametrize("side", ["lora_A.weight", "lora_B.weight"])
def test_shape_that_the_base_does_not_have_is_refused(base: BaseOf, tmp_path: Path, side: str) -> None:
    tensors = layer(base("flux"), "transformer", number=5)
    key = next(key for key in tensors if key.endswith(side))
    axis = 1 if "lora_A" in side else 0
    tensors[key] = tensors[key].narrow(axis, 0, tensors[key].shape[axis] - 1).contiguous()
    assert "does not fit" in refused(saved(tensors, tmp_path / "l.safetensors"), base("flux"), FamilyError)


def test_block_that_the_base_does_not_have_is_refused_by_name(base: BaseOf, tmp_path: Path) -> None:
    tensors = {
        "transformer.transformer_blocks.99.attn.to_q.lora_A.weight": torch.ones(4, 8),
        "transformer.transformer_blocks.99.attn.to_q.lora_B.weight": torch.ones(8, 4),
    }
    path = saved(tensors, tmp_path / "l.safetensors")
    assert "transformer_blocks.99.attn.to_q" in refused(path, base("flux"), FamilyError)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.float8_e4m3fn, torch.bool])
def test_factors_that_are_no_floating_point_numbers_are_refused(
    base: BaseOf, tmp_path: Path, dtype: torch.dtype
) -> None:
    tensors = {key: tensor.to(dtype) for key, tensor in layer(base("sd15"), "unet").items()}
    assert "F32" in refused(saved(tensors, tmp_path / "l.safetensors"), base("sd15"), CheckpointError)


@pytest.mark.parametrize("setting", ["use_dora", "lora_bias"])
def test_part_that_the_configuration_promises_is_there_or_the_adapter_is_refused(
    base: BaseOf, tmp_path: Path, setting: str
) -> None:
    adapter = peft_adapter(base("sd15"), "unet", tmp_path / "peft", 4, 8, UNET, **{setting: True})
    extracted(adapter.folder, base("sd15"))
    path = adapter.folder / "adapter_model.safetensors"
    tensors = load_file(path)
    kept = {key: tensor for key, tensor in tensors.items() if "magnitude" not in key and not key.endswith("bias")}
    assert len(kept) < len(tensors)
    path.unlink()
    save_file(kept, path)
    assert setting in refused(adapter.folder, base("sd15"), CheckpointError)


@pytest.mark.parametrize("setting", ["use_dora", "lora_bias"])
def test_part_that_the_configuration_denies_is_refused(base: BaseOf, tmp_path: Path, setting: str) -> None:
    adapter = peft_adapter(base("sd15"), "unet", tmp_path / "peft", 4, 8, UNET, **{setting: True})
    path = adapter.folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {setting: False}))
    assert f"{setting}=False" in refused(adapter.folder, base("sd15"), CheckpointError)


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "component"), [("sd15", "text_encoder"), ("sdxl", "text_encoder_2")])
def test_text_model_is_no_part_of_a_modules_name(base: BaseOf, tmp_path: Path, family: str, component: str) -> None:
    plain = layer(base(family), component, number=2)
    long = {key.replace(f"{component}.", f"{component}.text_model.", 1): tensor for key, tensor in plain.items()}
    without = extracted(saved(plain, tmp_path / "plain.safetensors"), base(family))
    with_it = extracted(saved(long, tmp_path / "long.safetensors"), base(family))
    assert list(without.components[component]) == list(with_it.components[component])
    assert not any("text_model" in name for name in with_it.components[component])
    both = saved(plain | {key: tensor.clone() for key, tensor in long.items()}, tmp_path / "both.safetensors")
    assert "text_model" in refused(both, base(family), CheckpointError)


# --- scales -----------------------------------------------------------------------------------------------------------


def scales(adapter: Adapter) -> dict[str, set[float]]:
    return {name: {delta.scale for delta in deltas.values()} for name, deltas in adapter.components.items()}


def test_state_dict_without_alpha_is_refused_until_it_is_given(base: BaseOf, tmp_path: Path) -> None:
    adapter = peft_adapter(base("sd15"), "unet", tmp_path / "peft", 4, 6, UNET)
    bare = saved(load_file(adapter.folder / "adapter_model.safetensors"), tmp_path / "bare.safetensors")
    message = refused(bare, base("sd15"), CheckpointError)
    assert "--alpha" in message
    assert "--adapter-config" in message
    assert scales(extracted(bare, base("sd15"), alpha=6)) == {"unet": {1.5}}
    config = str(adapter.folder / "adapter_config.json")
    assert scales(extracted(bare, base("sd15"), adapter_config=config)) == {"unet": {1.5}}
    assert scales(extracted(bare, base("sd15"), adapter_config=config, alpha=6)) == {"unet": {1.5}}
    assert "--alpha" in refused(bare, base("sd15"), UsageError, adapter_config=config, alpha=7)


def test_alpha_that_contradicts_the_checkpoint_is_refused(base: BaseOf, tmp_path: Path) -> None:
    adapter = peft_adapter(base("sd15"), "unet", tmp_path / "peft", 4, 6, UNET)
    assert scales(extracted(adapter.folder, base("sd15"), alpha=6)) == {"unet": {1.5}}
    for alpha in (8, 4, 6 * (1 + 5e-9), 6 * (1 - 5e-9)):
        assert "Leave --alpha out" in refused(adapter.folder, base("sd15"), UsageError, alpha=alpha)
    extracted(adapter.folder, base("sd15"), alpha=6 * (1 + 1e-15))
    config = str(adapter.folder / "adapter_config.json")
    assert "--adapter-config" in refused(adapter.folder, base("sd15"), UsageError, adapter_config=config)


def test_diffusers_file_without_metadata_has_scale_one_unless_alpha_is_given(base: BaseOf, tmp_path: Path) -> None:
    path = saved(layer(base("sd15"), "unet") | layer(base("sd15"), "text_encoder", rank=2), tmp_path / "l.safetensors")
    assert scales(extracted(path, base("sd15"))) == {"unet": {1.0}, "text_encoder": {1.0}}
    assert scales(extracted(path, base("sd15"), alpha=8)) == {"unet": {2.0}, "text_encoder": {4.0}}


def test_alpha_tensors_are_not_overridden(base: BaseOf, tmp_path: Path) -> None:
    tensors = {
        f"lora_unet_{key.removeprefix('unet.').rpartition('.lora_')[0].replace('.', '_')}.{part}": tensor
        for (key, tensor), part in zip(
            sorted(layer(base("sd15"), "unet").items()), ("lora_down.weight", "lora_up.weight"), strict=True
        )
    }
    stem = next(iter(tensors)).partition(".")[0]
    path = saved(tensors | {f"{stem}.alpha": torch.tensor(8.0)}, tmp_path / "l.safetensors")
    assert scales(extracted(path, base("sd15"))) == {"unet": {2.0}}
    assert scales(extracted(path, base("sd15"), alpha=8)) == {"unet": {2.0}}
    assert "the checkpoint says 2" in refused(path, base("sd15"), UsageError, alpha=4)


def test_diffusers_metadata_is_read_and_not_overridden(base: BaseOf, tmp_path: Path) -> None:
    header = {"unet.r": 4, "unet.lora_alpha": 8}
    path = saved(layer(base("sd15"), "unet"), tmp_path / "l.safetensors", header)
    assert scales(extracted(path, base("sd15"))) == {"unet": {2.0}}
    assert scales(extracted(path, base("sd15"), alpha=8)) == {"unet": {2.0}}
    refused(path, base("sd15"), UsageError, alpha=4)


def test_configuration_for_a_diffusers_file_that_lost_its_own_is_used(base: BaseOf, tmp_path: Path) -> None:
    adapter = peft_adapter(base("sd15"), "unet", tmp_path / "peft", 4, 6, UNET, alpha_pattern={"to_q": 2})
    tensors = load_file(adapter.folder / "adapter_model.safetensors")
    renamed = {key.replace("base_model.model.", "unet."): tensor for key, tensor in tensors.items()}
    config = str(adapter.folder / "adapter_config.json")
    lost = saved(renamed, tmp_path / "lost.safetensors")
    assert scales(extracted(lost, base("sd15"))) == {"unet": {1.0}}
    assert scales(extracted(lost, base("sd15"), adapter_config=config)) == {"unet": {0.5, 1.5}}
    header = {"unet.r": 4, "unet.lora_alpha": 8}
    kept = saved(renamed, tmp_path / "kept.safetensors", header)
    refused(kept, base("sd15"), CheckpointError, adapter_config=config)


def test_rank_that_the_configuration_denies_is_refused(base: BaseOf, tmp_path: Path) -> None:
    path = saved(layer(base("sd15"), "unet"), tmp_path / "l.safetensors", {"unet.r": 8, "unet.lora_alpha": 8})
    assert "rank 4" in refused(path, base("sd15"), CheckpointError)


def test_tensors_are_those_of_the_file(base: BaseOf, tmp_path: Path) -> None:
    tensors = layer(base("sd15"), "unet", **{"lora_B.bias": None})
    adapter = extracted(saved(tensors, tmp_path / "l.safetensors"), base("sd15"))
    ((module, delta),) = adapter.components["unet"].items()
    assert torch.equal(delta.a, tensors[f"unet.{module}.lora_A.weight"])
    assert torch.equal(delta.b, tensors[f"unet.{module}.lora_B.weight"])
    assert (delta.magnitude, delta.bias, adapter.family) == (None, None, "sd15")
