"""OneTrainer's ORIGINAL format, and what only looks like it: PEFT's state dicts, Black Forest Labs', fal's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from adapterline.checkpoints import load_checkpoint
from adapterline.checkpoints.containers.base import NotMyKindError
from adapterline.checkpoints.dialects import identify
from adapterline.checkpoints.dialects.base import DENOISER, NORM, Entry
from adapterline.checkpoints.dialects.original import Original
from adapterline.checkpoints.extract import extract
from adapterline.deltas import LowRank
from adapterline.errors import CheckpointError, ConversionError
from adapterline.families.base import read_base
from adapterline.families.shipped import shipped
from adapterline.values import ExportOptions
from tests.checkpoints.tables import FILES, Keys, layer, reads_alone
from tests.line import Exported, run_line

RANK, ALPHA = 4, 1.0
WIDTH = 32  # of the tiny FLUX
#: original name -> (inputs, outputs, the layers of diffusers that its output rows are)
FLUX = {
    "double_blocks.0.img_attn.qkv": (
        WIDTH, 3 * WIDTH, [f"transformer_blocks.0.attn.{name}" for name in ("to_q", "to_k", "to_v")]
    ),
    "double_blocks.1.txt_mlp.0": (WIDTH, 4 * WIDTH, ["transformer_blocks.1.ff_context.net.0.proj"]),
    "single_blocks.1.linear1": (
        WIDTH, 7 * WIDTH,
        [f"single_transformer_blocks.1.{name}" for name in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")],
    ),
    "single_blocks.0.linear2": (5 * WIDTH, WIDTH, ["single_transformer_blocks.0.proj_out"]),
}  # fmt: skip

pytestmark = pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning:diffusers")


@pytest.fixture
def flux_base(base: Callable[[str], Path]) -> Path:
    return base("flux")


def flux_file(prefix: str = "", *, alpha: bool = True) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, (width, out, _) in FLUX.items():
        tensors[f"{prefix}{name}.lora_A.weight"] = torch.randn(RANK, width, generator=generator)
        tensors[f"{prefix}{name}.lora_B.weight"] = torch.randn(out, RANK, generator=generator) * 0.3
        if alpha:
            tensors[f"{prefix}{name}.alpha"] = torch.tensor(ALPHA)
    return tensors


def exported(tensors: Mapping[str, torch.Tensor], base: Path, work: Path, **options: float) -> Exported:
    work.mkdir(exist_ok=True)
    save_file(dict(tensors), work / "lora.safetensors")
    return run_line(work / "lora.safetensors", base, work, ExportOptions.model_validate(options))


def test_changes_are_those_of_the_original_layers(flux_base: Path, tmp_path: Path) -> None:
    tensors = flux_file()
    export = exported(tensors, flux_base, tmp_path)
    assert export.source.dialect == "original"
    assert export.report().passed, export.report().failures
    found = export.adapter.components["transformer"]
    assert set(found) == {module for _, _, modules in FLUX.values() for module in modules}
    for name, (width, _, modules) in FLUX.items():
        wanted = tensors[f"{name}.lora_B.weight"].double() @ tensors[f"{name}.lora_A.weight"].double() * ALPHA / RANK
        got = torch.cat([found[module].apply(torch.eye(width)) for module in modules])
        torch.testing.assert_close(got, wanted)


def one_trainers_loha(name: str, keys: Callable[[str], str]) -> dict[str, torch.Tensor]:
    """LoHa with a dora_scale on a layer of WIDTH inputs and 2 * WIDTH outputs (LoHaModule, LoKrModule.forward)."""
    generator = torch.Generator().manual_seed(1)
    shapes = {
        "hada_w1_a": (2 * WIDTH, 2),
        "hada_w1_b": (2, WIDTH),
        "hada_w2_a": (2 * WIDTH, 2),
        "hada_w2_b": (2, WIDTH),
    }
    tensors = {keys(f"{name}.{part}"): torch.randn(shape, generator=generator) for part, shape in shapes.items()}
    scale = torch.rand(2 * WIDTH, 1, generator=generator) + 0.5
    return {**tensors, keys(f"{name}.dora_scale"): scale, keys(f"{name}.alpha"): torch.tensor(ALPHA)}


@pytest.mark.parametrize("header", [{}, {"ot_branch": "master"}])
@pytest.mark.parametrize(
    "keys",
    [str, "diffusion_model.{}".format, lambda key: "lora_unet_{}.{}".format(*key.replace(".", "_", 2).split("."))],
    ids=["original", "comfy", "kohya"],
)
def test_one_trainer_leaves_the_halves_of_lohas_factors(
    flux_base: Path, tmp_path: Path, keys: Callable[[str], str], header: dict[str, str]
) -> None:
    """modules/util/convert_util.py: chunk_swap swaps lora_up and dora_scale, and renames other factors as they are."""
    name = "final_layer.adaLN_modulation.1"
    tensors = one_trainers_loha(name, keys)
    save_file(tensors, tmp_path / "lora.safetensors", header)
    export = run_line(tmp_path / "lora.safetensors", flux_base, tmp_path)
    assert export.report().passed, export.report().failures
    w1_a, w1_b, w2_a, w2_b, scale = (
        tensors[keys(f"{name}.{part}")] for part in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "dora_scale")
    )
    stored = (w1_a.double() @ w1_b.double()) * (w2_a.double() @ w2_b.double()) * ALPHA / 2
    [found] = export.adapter.components["transformer"].values()
    got = found.apply(torch.eye(WIDTH))
    torch.testing.assert_close(got, stored if header else stored.roll(WIDTH, 0))
    assert found.magnitude is not None
    assert torch.equal(found.magnitude.flatten(), scale.flatten().roll(WIDTH))


def test_file_is_the_same_adapter_as_comfyuis(flux_base: Path, tmp_path: Path) -> None:
    first = exported(flux_file(), flux_base, tmp_path / "original")
    second = exported(flux_file("diffusion_model."), flux_base, tmp_path / "comfy")
    assert second.source.dialect == "comfy"
    assert first.bundle.digest == second.bundle.digest


def test_dora_and_lokr_of_a_unet_are_proven(sd15_base: Path, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    attention = "input_blocks.1.1.transformer_blocks.0.attn1"
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(sd15_base / "unet")
    width = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to_q.weight.shape[0]
    dora = {
        f"{attention}.to_q.lora_A.weight": torch.randn(RANK, width, generator=generator),
        f"{attention}.to_q.lora_B.weight": torch.randn(width, RANK, generator=generator),
        f"{attention}.to_q.alpha": torch.tensor(ALPHA),
        f"{attention}.to_q.dora_scale": torch.rand(width, 1, generator=generator) + 0.5,
    }
    export = exported(dora, sd15_base, tmp_path / "dora")
    assert export.report().passed, export.report().failures
    (delta,) = export.adapter.components["unet"].values()
    assert delta.magnitude is not None
    assert torch.equal(delta.magnitude, dora[f"{attention}.to_q.dora_scale"].flatten())

    lokr = {
        f"{attention}.to_v.lokr_w1": torch.randn(4, 4, generator=generator),
        f"{attention}.to_v.lokr_w2_a": torch.randn(width // 4, 2, generator=generator),
        f"{attention}.to_v.lokr_w2_b": torch.randn(2, width // 4, generator=generator),
        f"{attention}.to_v.alpha": torch.tensor(ALPHA),
    }
    export = exported(lokr, sd15_base, tmp_path / "lokr")
    assert export.report().passed, export.report().failures
    first, second_a, second_b = (lokr[f"{attention}.to_v.lokr_{name}"].double() for name in ("w1", "w2_a", "w2_b"))
    (delta,) = export.adapter.components["unet"].values()
    wanted = torch.kron(first, second_a @ second_b) * ALPHA / 2
    torch.testing.assert_close(delta.apply(torch.eye(width)), wanted)


# --- keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(len(FILES["original"])))
def test_it_alone_reads_its_files(number: int) -> None:
    assert reads_alone(FILES["original"][number]) == "original"


@pytest.mark.parametrize("name", [name for name in FILES if name != "original"])
def test_files_of_others_are_not_its_kind(name: str) -> None:
    for file in FILES[name]:
        with pytest.raises(NotMyKindError):
            Original().entries(file)


def test_order_of_keys_changes_nothing() -> None:
    for file in FILES["original"]:
        assert identify(Keys.of(*reversed(list(file.tensors))))[1] == identify(file)[1]


def test_what_anima_lies_in_is_no_part_of_a_name() -> None:
    _, entries = identify(Keys.of(*layer("net.blocks.0.mlp.layer1", "lora_A.weight", "lora_B.weight", "alpha")))
    assert set(entries.values()) == {Entry(DENOISER, "blocks.0.mlp.layer1", part) for part in ("a", "b", "alpha")}


@pytest.mark.parametrize("strange", ["img_in.weight", "bundle_emb.token", "double_blocks.0.img_attn.qkv.lora_C.weight"])
def test_key_that_is_no_part_of_a_layer_is_refused_by_name(strange: str) -> None:
    with pytest.raises(CheckpointError, match=strange):
        identify(Keys.of(*FILES["original"][0].tensors, strange))


def test_oft_is_refused_with_the_reason() -> None:
    with pytest.raises(ConversionError, match="rotations"):
        identify(Keys.of(*layer("double_blocks.0.img_attn.qkv", "oft_R.weight", "alpha")))


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("double_blocks.0.img_attn.qkv.lora_B.weight", r"double_blocks\.0\.img_attn\.qkv has no lora_B"),
        ("single_blocks.0.linear2.alpha", r"single_blocks\.0\.linear2 has no alpha tensor, and 3 other layers have"),
    ],
)
def test_missing_part_is_refused(flux_base: Path, tmp_path: Path, lost: str, message: str) -> None:
    tensors = flux_file()
    del tensors[lost]
    with pytest.raises(CheckpointError, match=message):
        exported(tensors, flux_base, tmp_path)


def test_configuration_is_not_passed_over() -> None:
    config = {"": {"peft_type": "LORA", "r": 4, "lora_alpha": 8}}
    for file in FILES["original"]:
        with pytest.raises(NotMyKindError, match="adapter_config"):
            Original().entries(Keys.of(*file.tensors, configs=config))
        with pytest.raises(CheckpointError):
            identify(Keys.of(*file.tensors, configs=config))


# --- what says no scale -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "base_model.model."])
def test_original_names_without_alpha_need_one(flux_base: Path, tmp_path: Path, prefix: str) -> None:
    with pytest.raises(CheckpointError, match="Nothing in .* says alpha"):
        exported(flux_file(prefix, alpha=False), flux_base, tmp_path / "none")
    given = exported(flux_file(prefix, alpha=False), flux_base, tmp_path / "given", alpha=ALPHA)
    stated = exported(flux_file(), flux_base, tmp_path / "stated")
    assert given.source.dialect == "peft"
    assert given.bundle.digest == stated.bundle.digest


def test_what_only_others_than_peft_write_needs_an_alpha_too() -> None:
    file = Keys.of(*layer("double_blocks.0.img_attn.qkv", "lora_down.weight", "lora_up.weight"))
    dialect, _ = identify(file)
    assert dialect.name == "original"
    assert dialect.scale_rule(file, DENOISER) is None


def test_differences_of_whole_weights_have_no_alpha() -> None:
    rule = Original().scale_rule(Keys.of("double_blocks.0.img_attn.qkv.diff"), DENOISER)
    assert rule is not None
    assert rule("double_blocks.0.img_attn.qkv", None) == 1.0


def test_fals_file_at_its_rank_is_what_diffusers_makes_of_it(tmp_path: Path) -> None:
    from diffusers.loaders.lora_conversion_utils import _convert_fal_kontext_lora_to_diffusers

    tensors = fal_file()
    save_file(tensors, tmp_path / "lora.safetensors")
    wanted = _convert_fal_kontext_lora_to_diffusers(dict(tensors))
    folder, options = shipped("flux-kontext-dev"), ExportOptions(alpha=1)
    assert folder is not None
    source = load_checkpoint(str(tmp_path / "lora.safetensors"), options, tmp_path)
    found = extract(source, read_base(folder), options).components["transformer"]
    assert {f"transformer.{module}.lora_{factor}.weight" for module in found for factor in "AB"} == set(wanted)
    for module, delta in found.items():
        assert isinstance(delta, LowRank)
        assert delta.scale == 1.0
        assert torch.equal(delta.a, wanted[f"transformer.{module}.lora_A.weight"])
        assert torch.equal(delta.b, wanted[f"transformer.{module}.lora_B.weight"])


def test_trained_norms_mean_scale_1() -> None:
    names = layer("double_blocks.0.img_attn.qkv", "lora_A.weight", "lora_B.weight", "lora_B.bias")
    norms = ("double_blocks.0.img_attn.norm.query_norm.scale", "single_blocks.3.norm.key_norm.scale")
    file = Keys.of(*names, *norms)
    dialect, entries = identify(file)
    assert dialect.name == "original"
    assert {entries[norm].part for norm in norms} == {NORM}
    rule = dialect.scale_rule(file, DENOISER)
    assert rule is not None
    assert rule("double_blocks.0.img_attn.qkv", 128) == 1.0
    assert identify(Keys.of(*names))[0].name == "peft"


def test_whole_model_of_original_names_is_no_adapter() -> None:
    with pytest.raises(CheckpointError, match="No adapter is in there"):
        identify(Keys.of("double_blocks.0.img_attn.norm.query_norm.scale", "double_blocks.0.img_attn.qkv.weight"))


def fal_file() -> dict[str, torch.Tensor]:
    """Of rank 1, and whole: diffusers' converter wants FLUX.1 in its real size, every layer of every block."""
    width, generator = 3072, torch.Generator().manual_seed(0)
    double = {
        f"{stream}_{name}": sizes
        for stream in ("img", "txt")
        for name, sizes in {
            "mod.lin": (1, 6), "attn.qkv": (1, 3), "attn.proj": (1, 1), "mlp.0": (1, 4), "mlp.2": (4, 1)
        }.items()
    }  # fmt: skip
    single = {"modulation.lin": (1, 3), "linear1": (1, 7), "linear2": (5, 1)}
    sizes = {f"double_blocks.{block}.{name}": size for block in range(19) for name, size in double.items()}
    sizes |= {f"single_blocks.{block}.{name}": size for block in range(38) for name, size in single.items()}
    tensors = {}
    for name, (inputs, outputs) in sizes.items():
        stem = f"base_model.model.{name}"
        tensors[f"{stem}.lora_A.weight"] = torch.randn(1, inputs * width, generator=generator)
        tensors[f"{stem}.lora_B.weight"] = torch.randn(outputs * width, 1, generator=generator)
    for factor, shape in (("A", (1, width)), ("B", (64, 1))):
        name = f"base_model.model.final_layer.linear.lora_{factor}.weight"
        tensors[name] = torch.randn(*shape, generator=generator)
    return tensors
