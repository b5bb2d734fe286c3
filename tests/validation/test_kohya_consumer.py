"""The readers by the rules of sd-scripts' keys: what they take from a file, and what they find wrong with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from adapterline.checkpoints import load_checkpoint
from adapterline.deltas import LowRank
from adapterline.families.base import Base, load_call, read_base
from adapterline.families.skeleton import targets
from adapterline.layouts import convert
from adapterline.scratch import Scratch
from adapterline.serialize import serialize
from adapterline.validation import validate_bundle, validate_file
from adapterline.validation.consumers import CONSUMERS, Loaded
from adapterline.validation.consumers.kohya import KohyaRules
from adapterline.values import Adapter, Check, ExportOptions, LoadCall, ValidationReport
from tests.bases import peft_adapter
from tests.families.tiny import CASES
from tests.line import Exported, run_line

BaseOf = Callable[[str], Path]
Tensors = dict[str, torch.Tensor]

KOHYA = ExportOptions(layouts=("kohya",))
QKV = "lora_unet_double_blocks_0_img_attn_qkv"
PROJ = "lora_unet_double_blocks_0_img_attn_proj"
TO_Q = "lora_unet_transformer_blocks_0_attn_to_q"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Base]:
    """The base of a family, without weights."""
    made: dict[str, Base] = {}

    def open_tiny(name: str) -> Base:
        if name not in made:
            made[name] = read_base(CASES[name].write(tmp_path_factory.mktemp(name) / "base"))
        return made[name]

    return open_tiny


def layer(stem: str, out: int, inner: int, rank: int = 4, alpha: float | None = 6.0, seed: int = 0) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        f"{stem}.lora_down.weight": torch.randn(rank, inner, generator=generator),
        f"{stem}.lora_up.weight": torch.randn(out, rank, generator=generator),
    }
    return tensors if alpha is None else tensors | {f"{stem}.alpha": torch.tensor(alpha)}


def read(
    base: Base,
    tensors: Tensors,
    folder: Path,
    program: Any = "comfyui",
    loads: tuple[LoadCall, ...] = (),
    name: str = "f",
) -> Loaded | None:
    save_file(tensors, folder / f"{name}.safetensors")
    return KohyaRules(program).load(folder, (f"{name}.safetensors",), loads, base, ())


def change(loaded: Loaded | None, component: str, module: str) -> torch.Tensor:
    """What is added to the weight."""
    assert loaded is not None
    delta = loaded.components[component][module].delta
    assert isinstance(delta, LowRank)
    b, a = delta.matrices()
    return (b @ a * delta.scale).float()


# --- what is read -----------------------------------------------------------------------------------------------------


def test_layer_changes_by_alpha_over_rank(tiny: Callable[[str], Base], tmp_path: Path) -> None:
    tensors = layer(PROJ, 32, 32)
    loaded = read(tiny("flux"), tensors, tmp_path)
    wanted = 1.5 * tensors[f"{PROJ}.lora_up.weight"] @ tensors[f"{PROJ}.lora_down.weight"]
    torch.testing.assert_close(change(loaded, "transformer", "transformer_blocks.0.attn.to_out.0"), wanted)
    assert loaded
    assert loaded.written == loaded.arrived == {"transformer": 3}


@pytest.mark.parametrize("diagonal", [True, False])
def test_fused_layer_is_taken_apart(tiny: Callable[[str], Base], tmp_path: Path, diagonal: bool) -> None:
    """Parts with factors of their own, and parts that share A, as a trainer of the fused layer leaves them."""
    tensors = layer(QKV, 96, 32, rank=6, alpha=3.0)
    if diagonal:
        blocks = tensors[f"{QKV}.lora_up.weight"].chunk(3)
        parts = [part[:, 2 * number : 2 * number + 2] for number, part in enumerate(blocks)]
        tensors[f"{QKV}.lora_up.weight"] = torch.block_diag(*parts)  # type: ignore[no-untyped-call]
    loaded = read(tiny("flux"), tensors, tmp_path)
    whole = 0.5 * tensors[f"{QKV}.lora_up.weight"] @ tensors[f"{QKV}.lora_down.weight"]
    for name, wanted in zip("qkv", whole.chunk(3), strict=True):
        module = f"transformer_blocks.0.attn.to_{name}"
        torch.testing.assert_close(change(loaded, "transformer", module), wanted)
        assert loaded
        assert loaded.components["transformer"][module].delta.a.shape[0] == (2 if diagonal else 6)
    assert loaded
    assert loaded.written == loaded.arrived == {"transformer": 3}


def test_part_of_zeros_was_not_adapted(tiny: Callable[[str], Base], tmp_path: Path) -> None:
    tensors = layer(QKV, 96, 32, rank=6)
    tensors[f"{QKV}.lora_up.weight"][32:] = 0
    loaded = read(tiny("flux"), tensors, tmp_path)
    assert loaded
    assert set(loaded.components["transformer"]) == {"transformer_blocks.0.attn.to_q"}
    tensors[f"{QKV}.lora_up.weight"][:, 2:] = 0  # along the diagonal now: the others have an A and no B
    loaded = read(tiny("flux"), tensors, tmp_path)
    assert loaded
    assert len(loaded.components["transformer"]) == 3
    tensors[f"{QKV}.lora_down.weight"][2:] = 0
    loaded = read(tiny("flux"), tensors, tmp_path)
    assert loaded
    assert set(loaded.components["transformer"]) == {"transformer_blocks.0.attn.to_q"}


def test_layer_of_zeros_counts_and_changes_nothing(tiny: Callable[[str], Base], tmp_path: Path) -> None:
    zeros = {key: torch.zeros_like(tensor) for key, tensor in layer(PROJ, 32, 32).items()}
    loaded = read(tiny("flux"), layer(QKV, 96, 32, 6) | zeros, tmp_path)
    assert loaded
    assert "transformer_blocks.0.attn.to_out.0" not in loaded.components["transformer"]
    assert loaded.written == loaded.arrived == {"transformer": 6}


def test_swapped_halves_are_swapped(tiny: Callable[[str], Base], tmp_path: Path) -> None:
    stem = "lora_unet_final_layer_adaLN_modulation_1"
    out, inner = targets(tiny("flux"), "transformer")["norm_out.linear"].shape
    tensors = layer(stem, out, inner)
    shift, scale = (1.5 * tensors[f"{stem}.lora_up.weight"] @ tensors[f"{stem}.lora_down.weight"]).chunk(2)
    loaded = read(tiny("flux"), tensors, tmp_path)
    torch.testing.assert_close(change(loaded, "transformer", "norm_out.linear"), torch.cat([scale, shift]))


def test_convolution_with_a_core_is_read_as_comfyui_reads_it(tiny: Callable[[str], Base], tmp_path: Path) -> None:
    module = "down_blocks.0.resnets.0.conv1"
    stem = f"lora_unet_{module.replace('.', '_')}"
    out, inner, *kernel = targets(tiny("sd15"), "unet")[module].shape
    generator = torch.Generator().manual_seed(0)
    down, core, up = (
        torch.randn(*shape, generator=generator) for shape in ((3, inner, 1, 1), (3, 3, *kernel), (out, 3, 1, 1))
    )
    tensors = {
        f"{stem}.lora_down.weight": down,
        f"{stem}.lora_mid.weight": core,
        f"{stem}.lora_up.weight": up,
        f"{stem}.alpha": torch.tensor(3.0),
    }
    wanted = torch.einsum("or,rshw,si->oihw", up[:, :, 0, 0], core, down[:, :, 0, 0]).flatten(1)
    torch.testing.assert_close(change(read(tiny("sd15"), tensors, tmp_path), "unet", module), wanted)
    assert read(tiny("sd15"), tensors, tmp_path, "sd-scripts") is None, "which passes over the core"


def test_missing_alpha_is_the_rank_or_an_error(tiny: Callable[[str], Base], tmp_path: Path) -> None:
    tensors = layer(PROJ, 32, 32, alpha=None)
    wanted = tensors[f"{PROJ}.lora_up.weight"] @ tensors[f"{PROJ}.lora_down.weight"]
    found = read(tiny("flux"), tensors, tmp_path)
    torch.testing.assert_close(change(found, "transformer", "transformer_blocks.0.attn.to_out.0"), wanted)
    trainer = read(tiny("flux"), tensors, tmp_path, "sd-scripts")
    assert trainer
    assert "has no alpha" in trainer.error
    fc1 = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    out, inner = targets(tiny("sd15"), "text_encoder")["encoder.layers.0.mlp.fc1"].shape
    loaded = read(tiny("sd15"), layer(fc1, out, inner, alpha=None), tmp_path, "sd-scripts")
    assert loaded
    assert not loaded.error
    assert loaded.components["text_encoder"]["encoder.layers.0.mlp.fc1"].delta.scale == 1.0


def test_file_is_of_the_expert_that_its_call_or_its_name_says(tiny: Callable[[str], Base], tmp_path: Path) -> None:
    base, tensors = tiny("wan"), layer("lora_unet_blocks_0_self_attn_q", 24, 24)
    first, second = base.family.components
    for loads, name, component in (
        ((), "mine", "transformer"),
        ((), "mine_2", "transformer_2"),
        ((load_call(base, first, "mine_2.safetensors"),), "mine_2", "transformer"),
        ((load_call(base, second, "mine.safetensors"),), "mine", "transformer_2"),
    ):
        loaded = read(base, tensors, tmp_path, loads=loads, name=name)
        assert loaded
        assert set(loaded.components) == {component}


# --- whose file it is -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "stem", "programs"),
    [
        ("flux", PROJ, {"comfyui", "sd-scripts"}),
        ("flux", "lora_unet_img_in", {"comfyui"}),
        ("flux", "lora_unet_transformer_blocks_0_attn_to_out_0", set()),  # diffusers' name, which nobody flattens
        ("qwenimage", TO_Q, {"comfyui", "musubi-tuner"}),
        ("z_image", "lora_unet_layers_0_attention_to_q", set()),  # musubi-tuner's own
        ("z_image", "lora_unet_layers_0_feed_forward_w1", {"comfyui"}),
        ("sd15", "lora_unet_conv_in", {"comfyui"}),
        ("sd15", "lora_unet_input_blocks_0_0", {"comfyui"}),
        ("sana", "lora_unet_transformer_blocks_0_attn1_to_q", set()),
        ("flux", "lora_te3_encoder_block_0_layer_0_SelfAttention_q", set()),
        ("sdxl", "lycoris_conv_in", set()),
    ],
)
def test_reader_is_for_files_of_which_its_program_has_every_layer(
    tiny: Callable[[str], Base], tmp_path: Path, family: str, stem: str, programs: set[str]
) -> None:
    for program in ("comfyui", "sd-scripts", "musubi-tuner"):
        loaded = read(tiny(family), layer(stem, 32, 32), tmp_path, program)
        assert (loaded is not None) == (program in programs), program


@pytest.mark.parametrize("key", ["dora_scale", "hada_w1_a", "lokr_w1", "diff"])
def test_reader_is_for_plain_lora_alone(tiny: Callable[[str], Base], tmp_path: Path, key: str) -> None:
    tensors = layer(PROJ, 32, 32) | {f"{PROJ}.{key}": torch.ones(32)}
    assert read(tiny("flux"), tensors, tmp_path) is None


@pytest.mark.parametrize("stem", ["lora_unet_double_blocks_9_img_attn_proj", "unet_double_blocks_0_img_attn_proj"])
def test_name_that_means_nothing_does_not_arrive(tiny: Callable[[str], Base], tmp_path: Path, stem: str) -> None:
    loaded = read(tiny("flux"), layer(PROJ, 32, 32) | layer(stem, 32, 32), tmp_path)
    assert loaded
    assert sum(loaded.written.values()) == 6
    assert sum(loaded.arrived.values()) == 3


def test_file_without_one_of_the_factors_does_not_arrive(tiny: Callable[[str], Base], tmp_path: Path) -> None:
    tensors = layer(PROJ, 32, 32)
    del tensors[f"{PROJ}.lora_down.weight"]
    loaded = read(tiny("flux"), tensors, tmp_path)
    assert loaded
    assert (loaded.written, loaded.arrived) == ({"transformer": 2}, {})


# --- the proof --------------------------------------------------------------------------------------------------------

TARGETS = {
    "unet": ["to_q", "to_k", "to_v", "to_out.0"],
    "transformer": r"(?!single).*blocks\.\d\.attn\.(to_[qkv]|to_out\.0)",
}


@pytest.fixture(scope="module", params=["sd15", "flux", "qwenimage"])
def exported(request: pytest.FixtureRequest, base: BaseOf, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A PEFT adapter of alpha 6 and rank 4, and the file that was made of it."""
    folder = base(request.param)
    work = tmp_path_factory.mktemp(f"kohya-{request.param}")
    component = next(iter(read_base(folder).models))
    peft_adapter(folder, component, work / "peft", 4, 6, TARGETS[component])
    return run_line(work / "peft", folder, work, KOHYA)


def test_export_is_proven_with_each_program(exported: Exported) -> None:
    report = exported.report()
    assert report.passed, report.failures
    trainer = "musubi-tuner-rules" if exported.base.family.name == "qwenimage" else "sd-scripts-rules"
    (proven,) = report.consumers.values()
    assert set(report.consumers) == {"kohya/adapter.safetensors"}
    assert proven[:3] == ("diffusers", "comfyui-rules", trainer)
    assert all("==" in other for other in proven[3:]), "what a table says of other versions"
    for name in ("diffusers", "comfyui-rules", trainer):
        assert any(check.consumer == name and "effect" in check.name for check in report.checks)


def test_file_alone_is_proven_too(exported: Exported) -> None:
    path = exported.folder / "kohya" / "adapter.safetensors"
    for against in (None, exported.source):
        report = validate_file(path, exported.base, against)
        assert report.passed, report.failures
        assert set(report.consumers) == {"adapter.safetensors"}


def first(tensors: Tensors, suffix: str) -> str:
    return next(key for key in sorted(tensors) if key.endswith(suffix))


def double_alpha(tensors: Tensors) -> None:
    tensors[first(tensors, ".alpha")] *= 2


def lose_alphas(tensors: Tensors) -> None:
    """What that does depends on the program: some take the rank for it, others look it up in vain."""
    for key in [key for key in tensors if key.endswith(".alpha")]:
        del tensors[key]


def one_ulp(tensors: Tensors) -> None:
    up = tensors[first(tensors, "lora_up.weight")].flatten()
    place = int(up.abs().argmax())
    up[place] = torch.nextafter(up[place], torch.tensor(torch.inf))


def drop_layer(tensors: Tensors) -> None:
    stem = first(tensors, "lora_up.weight").partition(".")[0]
    for key in [key for key in tensors if key.startswith(f"{stem}.")]:
        del tensors[key]


def drop_factor(tensors: Tensors) -> None:
    del tensors[first(tensors, "lora_down.weight")]


def exchange_layers(tensors: Tensors) -> None:
    one = first(tensors, "lora_up.weight")
    other = next(
        k for k in sorted(tensors) if k > one and k.endswith("up.weight") and tensors[k].shape == tensors[one].shape
    )
    tensors[one], tensors[other] = tensors[other], tensors[one]


def zero_layer(tensors: Tensors) -> None:
    tensors[first(tensors, "lora_up.weight")].zero_()


def not_a_number(tensors: Tensors) -> None:
    tensors[first(tensors, "lora_down.weight")].flatten()[0] = torch.nan


def another_block(tensors: Tensors) -> None:
    stem = first(tensors, "lora_up.weight").partition(".")[0]
    for key in [key for key in tensors if key.startswith(f"{stem}.")]:
        tensors[key.replace("_0_", "_77_", 1)] = tensors.pop(key)


def another_prefix(tensors: Tensors) -> None:
    for key in list(tensors):
        tensors[key.replace("lora_unet_", "lora_other_")] = tensors.pop(key)


BROKEN = [
    double_alpha, lose_alphas, one_ulp, drop_layer, drop_factor, exchange_layers, zero_layer, not_a_number,
    another_block, another_prefix,
]  # fmt: skip


def proof_of(exported: Exported, tensors: Tensors, work: Path) -> ValidationReport:
    """Of these tensors in the place of the file's. A manifest would find another digest; this is what is found else."""
    file = work / "kohya" / "adapter.safetensors"
    file.parent.mkdir()
    with safe_open(exported.folder / "kohya" / "adapter.safetensors", framework="pt") as opened:
        save_file(tensors, file, opened.metadata())
    return exported.report(work)


def found_in(report: ValidationReport) -> list[Check]:
    return [check for check in report.failures if not check.name.endswith("has its digest")]


@pytest.mark.parametrize("breaking", BROKEN, ids=lambda each: each.__name__)
def test_broken_file_is_found_out(exported: Exported, tmp_path: Path, breaking: Callable[[Tensors], None]) -> None:
    tensors = load_file(exported.folder / "kohya" / "adapter.safetensors")
    breaking(tensors)
    assert found_in(proof_of(exported, tensors, tmp_path))


def test_the_same_tensors_pass(exported: Exported, tmp_path: Path) -> None:
    tensors = load_file(exported.folder / "kohya" / "adapter.safetensors")
    assert not found_in(proof_of(exported, tensors, tmp_path))


def test_equal_change_passes(exported: Exported, tmp_path: Path) -> None:
    tensors = load_file(exported.folder / "kohya" / "adapter.safetensors")
    for key in tensors:
        if "lora_" in key.partition(".")[2]:
            tensors[key] = -tensors[key]
    assert not found_in(proof_of(exported, tensors, tmp_path))


def test_file_that_nothing_reads_is_not_proven(tiny: Callable[[str], Base], tmp_path: Path) -> None:
    """SD3 has no converter in diffusers, so no call is there; and these names are no program's."""
    base = tiny("sd3")
    deltas = {"transformer_blocks.0.attn.to_q": LowRank(torch.ones(1, 32), torch.ones(32, 1), 1.0)}
    plan = convert(Adapter("sd3", {"transformer": deltas}), base, KOHYA)
    scratch = Scratch(tmp_path / "scratch", 10**9, 1e6)
    bundle = serialize(plan, scratch)
    folder = tmp_path / "other"
    (folder / "kohya").mkdir(parents=True)
    save_file(layer(TO_Q, 32, 32), folder / "kohya" / "adapter.safetensors")
    save_file(layer("transformer_blocks.0.attn.to_q", 32, 32), tmp_path / "source.safetensors")
    source = load_checkpoint(str(tmp_path / "source.safetensors"), KOHYA, tmp_path)
    report = validate_bundle(bundle, folder, source, base, KOHYA)
    assert "something reads it" in {check.name for check in report.failures}
    assert report.consumers == {}


def test_several_alphas_are_wrong_in_diffusers_and_right_by_the_rules(base: BaseOf, tmp_path: Path) -> None:
    """A file of sd-scripts with conv_dim or block_dims: diffusers makes patterns of the alphas that match nothing."""
    model = read_base(base("sd15"))
    modules = sorted(module for module in targets(model, "unet") if module.endswith("attn1.to_q"))[:4]
    tensors: Tensors = {}
    for number, module in enumerate(modules):
        out, inner = targets(model, "unet")[module].shape
        tensors |= layer(f"lora_unet_{module.replace('.', '_')}", out, inner, 4, 1.0 + number, seed=number)
    path = tmp_path / "mixed.safetensors"
    save_file(tensors, path)
    report = validate_file(path, model, load_checkpoint(str(path), ExportOptions(), tmp_path))
    assert {check.consumer for check in report.failures} == {"diffusers"}
    assert report.consumers == {"mixed.safetensors": ("diffusers", "comfyui-rules", "sd-scripts-rules")}


def test_dora_that_diffusers_drops_is_found_out(base: BaseOf, tmp_path: Path) -> None:
    model = read_base(base("sd15"))
    (module, *_) = sorted(module for module in targets(model, "unet") if module.endswith("attn1.to_q"))
    out, inner = targets(model, "unet")[module].shape
    stem = f"lora_unet_{module.replace('.', '_')}"
    save_file(layer(stem, out, inner) | {f"{stem}.dora_scale": torch.ones(out, 1)}, tmp_path / "f.safetensors")
    report = validate_file(tmp_path / "f.safetensors", model)
    (check,) = report.failures
    assert check.name == "loads"
    assert "dora_scale" in str(check.observed)


def test_text_encoders_of_a_file_are_loaded_without_a_checkpoint_to_name_them(base: BaseOf, tmp_path: Path) -> None:
    model = read_base(base("sdxl"))
    tensors: Tensors = {}
    for name, prefix in (("text_encoder", "lora_te1"), ("text_encoder_2", "lora_te2")):
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            module = f"encoder.layers.0.self_attn.{part}"
            out, inner = targets(model, name)[module].shape
            tensors |= layer(f"{prefix}_text_model_{module.replace('.', '_')}", out, inner)
    save_file(tensors, tmp_path / "f.safetensors")
    report = validate_file(tmp_path / "f.safetensors", model)
    assert report.passed, report.failures
    alive = {(check.consumer, check.component) for check in report.checks if check.name.startswith("alive")}
    assert {("diffusers", "text_encoder"), ("diffusers", "text_encoder_2")} <= alive


def test_consumers_are_in_the_report_as_data(exported: Exported) -> None:
    names = [consumer.name for consumer in CONSUMERS["kohya"]]
    assert names == ["diffusers", "comfyui-rules", "sd-scripts-rules", "musubi-tuner-rules"]
    dumped = json.loads(exported.report().model_dump_json())
    assert {name for name in dumped["consumers"]["kohya/adapter.safetensors"] if "==" not in name} < set(names)
