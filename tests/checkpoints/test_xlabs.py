"""x-flux's LoRA of FLUX.1, against diffusers' own converter of such files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from adapterline.checkpoints.containers.base import NotMyKindError
from adapterline.checkpoints.dialects import identify
from adapterline.checkpoints.dialects.base import DENOISER, Entry
from adapterline.checkpoints.dialects.xlabs import XLabs
from adapterline.errors import CheckpointError, ConversionError
from tests.bases import forward
from tests.checkpoints.tables import FILES, Keys, reads_alone
from tests.line import run_line

RANK = 4
WIDTH = 32  # of the tiny FLUX; its MLP has four times as many
#: (inputs, outputs) of what x-flux adapts in each block.
DOUBLE = {
    "qkv_lora1": (WIDTH, 3 * WIDTH), "proj_lora1": (WIDTH, WIDTH),
    "qkv_lora2": (WIDTH, 3 * WIDTH), "proj_lora2": (WIDTH, WIDTH),
}  # fmt: skip
SINGLE = {"qkv_lora": (WIDTH, 3 * WIDTH), "proj_lora": (5 * WIDTH, WIDTH)}

pytestmark = pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning:diffusers")


@pytest.fixture
def flux_base(base: Callable[[str], Path]) -> Path:
    return base("flux")


def xlabs_file(prefix: str = "", *, single: bool = True) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for kind, layers in (("double", DOUBLE), ("single", SINGLE if single else {})):
        for block in range(2):
            for name, (width, out) in layers.items():
                stem = f"{prefix}{kind}_blocks.{block}.processor.{name}"
                tensors[f"{stem}.down.weight"] = torch.randn(RANK, width, generator=generator)
                tensors[f"{stem}.up.weight"] = torch.randn(out, RANK, generator=generator) * 0.3
    return tensors


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("prefix", ["", "diffusion_model."])
def test_export_does_what_diffusers_does_with_the_file(
    flux_base: Path, tmp_path: Path, prefix: str, single: bool
) -> None:
    from diffusers import FluxPipeline

    before, after = (FluxPipeline.from_pretrained(str(flux_base)) for _ in range(2))
    tensors = xlabs_file(prefix, single=single)
    save_file(tensors, tmp_path / "lora.safetensors")
    exported = run_line(tmp_path / "lora.safetensors", flux_base, tmp_path)
    assert exported.source.dialect == "xlabs"
    assert exported.report().passed, exported.report().failures
    unadapted = forward(before.transformer)
    before.load_lora_weights(dict(tensors))
    after.load_lora_weights(str(exported.folder), weight_name=exported.bundle.files[0].path)
    wanted = forward(before.transformer)
    assert not torch.allclose(wanted, unadapted)
    torch.testing.assert_close(forward(after.transformer), wanted)


def test_changes_are_those_of_the_blocks_fused_layers(flux_base: Path, tmp_path: Path) -> None:
    tensors = xlabs_file()
    save_file(tensors, tmp_path / "lora.safetensors")
    found = run_line(tmp_path / "lora.safetensors", flux_base, tmp_path).adapter.components["transformer"]

    def change(stem: str) -> torch.Tensor:
        return tensors[f"{stem}.up.weight"].double() @ tensors[f"{stem}.down.weight"].double()

    def check(wanted: torch.Tensor, *modules: str) -> None:
        got = [found[module].apply(torch.eye(wanted.shape[1])) for module in modules]
        torch.testing.assert_close(torch.cat(got), wanted)

    double, single = "transformer_blocks.1.attn", "single_transformer_blocks.1"
    stem = "double_blocks.1.processor"
    check(change(f"{stem}.qkv_lora1"), *(f"{double}.{name}" for name in ("to_q", "to_k", "to_v")))
    check(change(f"{stem}.qkv_lora2"), *(f"{double}.add_{name}_proj" for name in "qkv"))
    check(change(f"{stem}.proj_lora1"), f"{double}.to_out.0")
    check(change(f"{stem}.proj_lora2"), f"{double}.to_add_out")
    stem = "single_blocks.1.processor"
    check(change(f"{stem}.qkv_lora"), *(f"{single}.attn.{name}" for name in ("to_q", "to_k", "to_v")))
    check(change(f"{stem}.proj_lora"), f"{single}.proj_out")
    assert f"{single}.proj_mlp" not in found
    assert len(found) == 2 * (8 + 4)


# --- keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(len(FILES["xlabs"])))
def test_it_alone_reads_its_files(number: int) -> None:
    assert reads_alone(FILES["xlabs"][number]) == "xlabs"


@pytest.mark.parametrize("name", [name for name in FILES if name != "xlabs"])
def test_files_of_others_are_not_its_kind(name: str) -> None:
    for file in FILES[name]:
        with pytest.raises(NotMyKindError):
            XLabs().entries(file)


def test_order_of_keys_changes_nothing() -> None:
    for file in FILES["xlabs"]:
        assert identify(Keys.of(*reversed(list(file.tensors))))[1] == identify(file)[1]


def test_image_and_text_are_told_apart() -> None:
    keys = [f"double_blocks.3.processor.{name}.up.weight" for name in DOUBLE]
    entries = XLabs().entries(Keys.of(*keys))
    assert [entries[key] for key in keys] == [
        Entry(DENOISER, f"double_blocks.3.{name}", "b")
        for name in ("img_attn.qkv", "img_attn.proj", "txt_attn.qkv", "txt_attn.proj")
    ]


@pytest.mark.parametrize(
    "strange",
    [
        "double_blocks.0.processor.qkv_lora.down.weight",  # a single block's
        "single_blocks.0.processor.qkv_lora1.down.weight",  # a double block's
        "double_blocks.0.processor.mlp_lora1.down.weight",
        "double_blocks.0.processor.qkv_lora1.alpha",
        "double_blocks.0.img_attn.qkv.lora_A.weight",
        "img_in.weight",
    ],
)
@pytest.mark.parametrize("number", range(len(FILES["xlabs"])))
def test_key_that_is_no_part_of_a_layer_is_refused_by_name(strange: str, number: int) -> None:
    with pytest.raises(CheckpointError, match=strange):
        identify(Keys.of(*FILES["xlabs"][number].tensors, strange))


def test_missing_half_is_refused(flux_base: Path, tmp_path: Path) -> None:
    tensors = xlabs_file(single=False)
    del tensors["double_blocks.1.processor.proj_lora2.up.weight"]
    save_file(tensors, tmp_path / "half.safetensors")
    with pytest.raises(CheckpointError, match=r"double_blocks\.1\.txt_attn\.proj has no lora_B"):
        run_line(tmp_path / "half.safetensors", flux_base, tmp_path)


def test_one_layer_in_two_spellings_is_refused() -> None:
    key = "double_blocks.0.processor.proj_lora1.up.weight"
    with pytest.raises(CheckpointError, match="two spellings"):
        identify(Keys.of(key, f"diffusion_model.{key}"))


def test_ip_adapter_is_refused_with_the_reason() -> None:
    with pytest.raises(ConversionError, match="IP-Adapter"):
        identify(Keys.of("double_blocks.0.processor.ip_adapter_double_stream_k_proj.weight"))


def test_scale_is_one_and_no_configuration_may_say_it_too() -> None:
    file = FILES["xlabs"][0]
    rule = XLabs().scale_rule(file, DENOISER)
    assert rule is not None
    assert {rule("double_blocks.0.img_attn.qkv", rank) for rank in (1, 4, 16)} == {1.0}
    config: dict[str, Any] = {"": {"peft_type": "LORA", "r": 4, "lora_alpha": 8}}
    with pytest.raises(CheckpointError, match="too"):
        XLabs().scale_rule(Keys.of(*file.tensors, configs=config), DENOISER)
