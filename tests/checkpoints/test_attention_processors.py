"""LoRA as diffusers stored it before 0.22, against diffusers' own loader of such files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapterline.checkpoints.containers.base import NotMyKindError
from adapterline.checkpoints.dialects import DIALECTS, identify
from adapterline.checkpoints.dialects.attention_processors import AttentionProcessors
from adapterline.checkpoints.dialects.base import Entry
from adapterline.deltas import LowRank
from adapterline.errors import CheckpointError, ConversionError
from tests.bases import forward
from tests.checkpoints.tables import FILES, Keys, reads_alone
from tests.line import run_line

UNET = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
CLIP = "text_model.encoder.layers.0"
RANK = 4
#: (as the file spells it, as the model does) of layers of the tiny Stable Diffusion, by component.
LAYERS = {
    "unet": [
        (f"{block}.processor.{old}_lora", f"{block}.{new}")
        for block in (UNET, UNET.replace("attn1", "attn2"), "mid_block.attentions.0.transformer_blocks.0.attn2")
        for old, new in (("to_q", "to_q"), ("to_k", "to_k"), ("to_v", "to_v"), ("to_out", "to_out.0"))
    ],
    "text_encoder": [
        *(
            (f"{CLIP}.self_attn.{old}_lora", f"encoder.layers.0.self_attn.{new}")
            for old, new in (("to_q", "q_proj"), ("to_k", "k_proj"), ("to_v", "v_proj"), ("to_out", "out_proj"))
        ),
        (f"{CLIP}.mlp.fc1.lora_linear_layer", "encoder.layers.0.mlp.fc1"),
    ],
}


@pytest.fixture
def pipeline(sd15_base: Path) -> Callable[[], Any]:
    from diffusers import StableDiffusionPipeline

    return lambda: StableDiffusionPipeline.from_pretrained(str(sd15_base), safety_checker=None)


def old_file(pipe: Any, components: tuple[str, ...], *, prefixed: bool = True) -> dict[str, torch.Tensor]:
    """What save_lora_weights wrote then, or save_attn_procs, without the prefix."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for component in components:
        shapes = {
            name.removeprefix("text_model."): module.weight.shape
            for name, module in getattr(pipe, component).named_modules()
            if hasattr(module, "weight") and module.weight is not None
        }
        for spelled, module in LAYERS[component]:
            out, width = shapes[module]
            stem = f"{component}.{spelled}" if prefixed else spelled
            tensors[f"{stem}.down.weight"] = torch.randn(RANK, width, generator=generator)
            tensors[f"{stem}.up.weight"] = torch.randn(out, RANK, generator=generator) * 0.3
    return tensors


@pytest.mark.parametrize("components", [("unet",), ("unet", "text_encoder")])
def test_export_does_what_diffusers_does_with_the_old_file(
    pipeline: Callable[[], Any], sd15_base: Path, tmp_path: Path, components: tuple[str, ...]
) -> None:
    before, after = pipeline(), pipeline()
    tensors = old_file(before, components)
    save_file(tensors, tmp_path / "old.safetensors")
    exported = run_line(tmp_path / "old.safetensors", sd15_base, tmp_path)
    assert exported.report().passed, exported.report().failures
    unadapted = {name: forward(getattr(before, name)) for name in components}
    before.load_lora_weights(dict(tensors))
    after.load_lora_weights(str(exported.folder), weight_name=exported.bundle.files[0].path)
    for name in components:
        wanted = forward(getattr(before, name))
        assert not torch.allclose(wanted, unadapted[name])
        torch.testing.assert_close(forward(getattr(after, name)), wanted)


def test_layers_are_found_by_the_names_of_the_models(
    pipeline: Callable[[], Any], sd15_base: Path, tmp_path: Path
) -> None:
    save_file(old_file(pipeline(), ("unet", "text_encoder")), tmp_path / "old.safetensors")
    adapter = run_line(tmp_path / "old.safetensors", sd15_base, tmp_path).adapter
    assert {name: set(deltas) for name, deltas in adapter.components.items()} == {
        name: {module for _, module in layers} for name, layers in LAYERS.items()
    }


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_file_of_save_attn_procs_is_the_same_adapter(
    pipeline: Callable[[], Any], sd15_base: Path, tmp_path: Path, suffix: str
) -> None:
    bare, named = tmp_path / f"pytorch_lora_weights.{suffix}", tmp_path / "named.safetensors"
    tensors = old_file(pipeline(), ("unet",), prefixed=False)
    save_file(tensors, bare) if suffix == "safetensors" else torch.save(tensors, bare)
    save_file(old_file(pipeline(), ("unet",)), named)
    first, second = (run_line(path, sd15_base, tmp_path) for path in (bare, named))
    assert first.source.dialect == "attention-processors"
    assert first.bundle.digest == second.bundle.digest


def test_scale_is_one_without_alpha_and_alpha_over_rank_with_it(
    pipeline: Callable[[], Any], sd15_base: Path, tmp_path: Path
) -> None:
    tensors = old_file(pipeline(), ("unet",))
    save_file(tensors, tmp_path / "plain.safetensors")
    alphas = {
        key.replace(".down.weight", ".alpha"): torch.tensor(1.0) for key in tensors if key.endswith("down.weight")
    }
    save_file(tensors | alphas, tmp_path / "alpha.safetensors")
    for name, scale in (("plain", 1.0), ("alpha", 1 / RANK)):
        exported = run_line(tmp_path / f"{name}.safetensors", sd15_base, tmp_path)
        assert exported.report().passed
        assert {delta.scale for delta in exported.adapter.components["unet"].values()} == {scale}


def test_factors_are_those_of_the_file(pipeline: Callable[[], Any], sd15_base: Path, tmp_path: Path) -> None:
    tensors = old_file(pipeline(), ("unet",))
    save_file(tensors, tmp_path / "old.safetensors")
    exported = run_line(tmp_path / "old.safetensors", sd15_base, tmp_path)
    for spelled, module in LAYERS["unet"]:
        delta = exported.adapter.components["unet"][module]
        assert isinstance(delta, LowRank)
        assert torch.equal(delta.a, tensors[f"unet.{spelled}.down.weight"])
        assert torch.equal(delta.b, tensors[f"unet.{spelled}.up.weight"])
    written = load_file(exported.folder / exported.bundle.files[0].path)
    assert len(written) == len(tensors)


# --- keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(len(FILES["attention-processors"])))
def test_it_alone_reads_its_files(number: int) -> None:
    assert reads_alone(FILES["attention-processors"][number]) == "attention-processors"


@pytest.mark.parametrize("name", [name for name in FILES if name != "attention-processors"])
def test_files_of_others_are_not_its_kind(name: str) -> None:
    for file in FILES[name]:
        with pytest.raises(NotMyKindError):
            AttentionProcessors().entries(file)


@pytest.mark.parametrize(
    ("key", "entry"),
    [
        ("unet.mid_block.attentions.0.processor.add_k_proj_lora.up.weight",
         Entry("unet", "mid_block.attentions.0.add_k_proj", "b")),
        ("mid_block.attentions.0.processor.to_out_lora.down.weight",
         Entry(None, "mid_block.attentions.0.to_out.0", "a")),
        (f"text_encoder_2.{CLIP}.self_attn.to_out_lora.down.weight",
         Entry("text_encoder_2", f"{CLIP}.self_attn.out_proj", "a")),
        (f"text_encoder.{CLIP}.self_attn.k_proj.lora_linear_layer.up.weight",
         Entry("text_encoder", f"{CLIP}.self_attn.k_proj", "b")),
        (f"unet.{UNET}.processor.to_v_lora.alpha", Entry("unet", f"{UNET}.to_v", "alpha")),
    ],
)  # fmt: skip
def test_key_has_its_place(key: str, entry: Entry) -> None:
    old = f"unet.{UNET}.processor.to_q_lora.down.weight"
    assert AttentionProcessors().entries(Keys.of(old, key))[key] == entry


def test_order_of_keys_changes_nothing() -> None:
    file = FILES["attention-processors"][0]
    turned = Keys.of(*reversed(list(file.tensors)))
    assert identify(turned)[1] == identify(file)[1]


@pytest.mark.parametrize("strange", ["unet.conv_in.weight", f"unet.{UNET}.processor.to_q_lora.mid.weight", "x.lora_C"])
def test_key_that_is_no_part_of_a_layer_is_refused_by_name(strange: str) -> None:
    with pytest.raises(CheckpointError, match=strange):
        identify(Keys.of(*FILES["attention-processors"][0].tensors, strange))


def test_missing_half_is_refused(pipeline: Callable[[], Any], sd15_base: Path, tmp_path: Path) -> None:
    tensors = old_file(pipeline(), ("unet",))
    del tensors[f"unet.{UNET}.processor.to_k_lora.up.weight"]
    save_file(tensors, tmp_path / "half.safetensors")
    with pytest.raises(CheckpointError, match=rf"{UNET}\.to_k has no lora_B"):
        run_line(tmp_path / "half.safetensors", sd15_base, tmp_path)


@pytest.mark.parametrize("layer", ["to_k_custom_diffusion.weight", "to_out_custom_diffusion.0.bias"])
def test_custom_diffusion_is_refused_with_the_reason(layer: str) -> None:
    with pytest.raises(ConversionError, match="Custom Diffusion, which trains the weights of keys and values whole"):
        identify(Keys.of(f"{UNET}.processor.{layer}", f"{UNET}.processor.to_v_custom_diffusion.weight"))


def test_scale_that_is_stated_twice_is_refused() -> None:
    stem = f"unet.{UNET}.processor.to_q_lora"
    header = {"lora_adapter_metadata": '{"unet.r": 4, "unet.lora_alpha": 8}'}
    names = (f"{stem}.down.weight", f"{stem}.up.weight")
    rule = AttentionProcessors().scale_rule(Keys.of(*names, header=header), "unet")
    assert rule is not None
    assert rule(f"{UNET}.to_q", 4) == 2.0
    with pytest.raises(CheckpointError, match="twice"):
        AttentionProcessors().scale_rule(Keys.of(*names, f"{stem}.alpha", header=header), "unet")


def test_every_dialect_has_a_table_here() -> None:
    assert {dialect.name for dialect in DIALECTS} == set(FILES)
