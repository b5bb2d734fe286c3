"""Every adapter type of PEFT against PEFT itself: what it merges into the weights is what is read from its folder."""

from __future__ import annotations

import copy
import functools
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.utils.peft_types import PeftType as Known
from safetensors.torch import load_file, save_file

from adapterline.checkpoints import load_checkpoint
from adapterline.checkpoints.extract import extract
from adapterline.checkpoints.form import Layer
from adapterline.checkpoints.forms import build, form_of
from adapterline.checkpoints.peft_types import PEFT_TYPES, REASONS
from adapterline.deltas import Delta
from adapterline.errors import CheckpointError, ConversionError, FamilyError
from adapterline.families.base import read_base
from adapterline.inspection import inspect
from adapterline.values import ExportOptions
from tests.bases import load_component, wrap
from tests.line import run_line

BaseOf = Callable[[str], Path]

LINEAR = r".*(down_blocks\.[01]|mid_block)\..*(attn2\.to_k|net\.0\.proj|net\.2)"  # square, wide and tall
CONV = r".*(down_blocks\.0|mid_block)\..*(conv1|conv_shortcut|proj_in|to_q)|conv_in"


@functools.cache
def _unet(base: Path) -> torch.nn.Module:
    return load_component(base, "unet")


def unet(base: Path) -> torch.nn.Module:
    return copy.deepcopy(_unet(base))


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """By module as the base has it."""
    return {
        name.replace("base_model.model.", "").replace(".base_layer", "").removesuffix(".weight"): value.clone()
        for name, value in model.state_dict().items()
        if name.endswith(".weight") and "lora" not in name
    }


def saved(
    base: Path, config: Any, folder: Path, change: Callable[[Any], None] | None = None
) -> dict[str, torch.Tensor]:
    """Saves an adapter with random weights; gives what PEFT adds to each weight, in float64, where it is not zero."""
    torch.manual_seed(3)
    model = wrap(unet(base), config)
    for parameter in (p for p in model.parameters() if p.requires_grad):
        parameter.data = torch.randn_like(parameter) * 0.3 + 0.1
    if change is not None:
        change(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder)
        # As it is loaded again, so that what is not saved is not believed.
        again = peft.PeftModel.from_pretrained(unet(base), str(folder)).double()
        before = weights_of(again)
        again.merge_adapter()
    after = weights_of(again)
    return {name: after[name] - before[name] for name in before if not torch.equal(after[name], before[name])}


def read(folder: Path, base: Path, **options: Any) -> dict[str, Delta]:
    asked = ExportOptions(**options)
    return dict(extract(load_checkpoint(str(folder), asked, folder), read_base(base), asked).components["unet"])


def check_same(found: dict[str, Delta], wanted: dict[str, torch.Tensor]) -> None:
    """Each by its own definition, and as the LoRA that it is."""
    assert found.keys() == wanted.keys()
    for module, change in wanted.items():
        matrix = change.flatten(1)
        assert found[module].shape == tuple(change.shape)
        probe = torch.eye(matrix.shape[1], dtype=torch.float64)
        assert float((found[module].apply(probe) - matrix).norm() / matrix.norm()) < 1e-5, module
        b, a = found[module].low_rank().matrices()
        assert b.shape[1] == found[module].needed_rank
        assert float((b @ a * found[module].scale - matrix).norm() / matrix.norm()) < 1e-5, module


def lora(**more: Any) -> Any:
    return peft.LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": LINEAR} | more)


def adalora(**more: Any) -> Any:
    defaults = {"init_r": 6, "target_r": 2, "lora_alpha": 9, "total_step": 10, "target_modules": LINEAR}
    return peft.AdaLoraConfig(**defaults | more)


def spectral(kind: Any, **more: Any) -> Any:
    return kind(**{"n_frequency": 40, "scaling": 30.0, "random_loc_seed": 9, "target_modules": LINEAR} | more)


PATTERNS: dict[str, Any] = {"rank_pattern": {"to_k": 2}, "alpha_pattern": {"^mid_block.*net.2": 5}}
CASES: dict[str, Callable[[], Any]] = {
    "lora": lora,
    "lora-rslora-patterns": lambda: lora(use_rslora=True, **PATTERNS),
    "lora-conv": lambda: lora(target_modules=CONV),
    "adalora": adalora,
    "adalora-conv": lambda: adalora(target_modules=CONV),
    "adalora-no-alpha": lambda: adalora(lora_alpha=0),
    "loha": lambda: peft.LoHaConfig(r=2, alpha=5, target_modules=LINEAR, **PATTERNS),
    "loha-more-ranks-than-inputs": lambda: peft.LoHaConfig(r=8, alpha=3, target_modules=LINEAR),
    "loha-conv": lambda: peft.LoHaConfig(r=2, alpha=5, target_modules=CONV),
    "loha-conv-tucker": lambda: peft.LoHaConfig(r=2, alpha=5, target_modules=CONV, use_effective_conv2d=True),
    "lokr": lambda: peft.LoKrConfig(r=2, alpha=5, target_modules=LINEAR, **PATTERNS),
    "lokr-both": lambda: peft.LoKrConfig(r=1, alpha=5, target_modules=LINEAR, decompose_both=True),
    "lokr-factor": lambda: peft.LoKrConfig(r=1, alpha=3, target_modules=LINEAR, decompose_factor=2),
    "lokr-whole": lambda: peft.LoKrConfig(r=64, alpha=5, target_modules=LINEAR),
    "lokr-conv": lambda: peft.LoKrConfig(r=2, alpha=5, target_modules=CONV, decompose_both=True),
    "lokr-conv-tucker": lambda: peft.LoKrConfig(r=1, alpha=5, target_modules=CONV, use_effective_conv2d=True),
    "lokr-conv-whole": lambda: peft.LoKrConfig(r=64, alpha=5, target_modules=CONV),
    "vera": lambda: peft.VeraConfig(r=5, target_modules=LINEAR),
    "vera-drawn": lambda: peft.VeraConfig(r=5, target_modules=LINEAR, save_projection=False, projection_prng_key=7),
    "vblora": lambda: peft.VBLoRAConfig(r=3, num_vectors=7, vector_length=8, topk=3, target_modules=LINEAR),
    "vblora-topk": lambda: peft.VBLoRAConfig(
        r=3, num_vectors=300, vector_length=4, topk=2, target_modules=LINEAR, save_only_topk_weights=True
    ),
    "gralora": lambda: peft.GraloraConfig(r=8, alpha=5, gralora_k=4, target_modules=LINEAR),
    "gralora-hybrid": lambda: peft.GraloraConfig(r=4, alpha=5, gralora_k=2, hybrid_r=3, target_modules=LINEAR),
    "miss": lambda: peft.MissConfig(r=8, target_modules=LINEAR),
    "miss-remainder": lambda: peft.MissConfig(r=5, target_modules=LINEAR),
    "miss-mini": lambda: peft.MissConfig(r=4, mini_r=8, init_weights="mini", target_modules=LINEAR),
    "c3a": lambda: peft.C3AConfig(block_size=8, target_modules=LINEAR, block_size_pattern={"to_k": 4}),
    "randlora": lambda: peft.RandLoraConfig(r=5, randlora_alpha=7, target_modules=LINEAR),
    "randlora-sparse": lambda: peft.RandLoraConfig(r=4, randlora_alpha=7, target_modules=LINEAR, very_sparse=True),
    "fourierft": lambda: spectral(peft.FourierFTConfig, n_frequency_pattern={"to_k": 12}),
    "waveft": lambda: spectral(peft.WaveFTConfig),
    "waveft-db4": lambda: spectral(peft.WaveFTConfig, wavelet_family="db4", proportional_parameters=True),
    "waveft-sparse": lambda: spectral(peft.WaveFTConfig, use_idwt=False),
    "delora": lambda: peft.DeloraConfig(r=4, delora_lambda=9, target_modules=LINEAR, rank_pattern={"to_k": 2}),
    "pvera": lambda: peft.PveraConfig(r=5, target_modules=LINEAR),
    "unilora": lambda: peft.UniLoraConfig(r=3, theta_d_length=50, target_modules=LINEAR, save_indices=True),
    "super": lambda: peft.SupertuningConfig(sparsity=0.9, target_modules=LINEAR),
    "supra": lambda: peft.SupertuningConfig(sparsity=0.9, r=3, lora_alpha=7, target_modules=LINEAR),
    "shira": lambda: peft.ShiraConfig(r=2, random_seed=4, target_modules=LINEAR),
}


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@dataclass(frozen=True)
class Saved:
    """An adapter folder of PEFT, and what it adds to each weight."""

    folder: Path
    wanted: dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def adapter(base: BaseOf, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Saved]:
    """`adapter("loha")` is that case's folder, saved once. Read only."""

    @functools.cache
    def one(case: str) -> Saved:
        folder = tmp_path_factory.mktemp(case)
        return Saved(folder, saved(base("sd15"), CASES[case](), folder))

    return one


AdapterOf = Callable[[str], Saved]


@pytest.mark.parametrize("case", CASES)
def test_the_change_is_what_peft_merges(base: BaseOf, adapter: AdapterOf, case: str) -> None:
    folder, wanted = adapter(case).folder, adapter(case).wanted
    assert len(wanted) > 5
    check_same(read(folder, base("sd15")), wanted)
    inspected = inspect(folder).components["unet"]
    assert inspected.adapter_type == case.partition("-")[0]
    assert inspected.modules == len(wanted)
    assert (inspected.alpha is None) == (inspected.rank is None)


# --- AdaLoRA that was pruned, PiSSA that was converted ----------------------------------------------------------------


def prune(model: Any) -> None:
    """As RankAllocator leaves them: E is zero where a rank was pruned, and the pattern says so."""
    pattern = {}
    energies = ((name, p) for name, p in model.base_model.model.named_parameters() if ".lora_E." in name)
    for number, (name, energy) in enumerate(energies):
        keep = [(rank + number) % 3 != 0 for rank in range(len(energy))]
        energy.data[[not flag for flag in keep]] = 0.0
        pattern[name] = keep
    model.peft_config["default"].rank_pattern = pattern


def test_pruned_ranks_keep_the_scale_of_the_first(base: BaseOf, tmp_path: Path) -> None:
    wanted = saved(base("sd15"), adalora(), tmp_path, prune)
    found = read(tmp_path, base("sd15"))
    assert {delta.needed_rank for delta in found.values()} == {4}
    check_same(found, wanted)
    assert run_line(tmp_path, base("sd15"), tmp_path / "work").report().passed

    config = json.loads((tmp_path / "adapter_config.json").read_text())
    for wrong in ({}, {"x": 3}, [1], {name: flags[2:] for name, flags in config["rank_pattern"].items()}):
        (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"rank_pattern": wrong}))
        with pytest.raises(CheckpointError, match="rank"):
            read(tmp_path, base("sd15"))


def test_a_layer_that_was_pruned_away_changes_nothing() -> None:
    tensors = {"svd_A": torch.zeros(0, 6), "svd_B": torch.zeros(5, 0), "svd_E": torch.zeros(0, 1)}
    delta = build(form_of(frozenset(tensors), "to_q"), tensors, Layer(1.5), "to_q")
    assert delta.shape == (5, 6)
    assert not delta.apply(torch.eye(6)).any()


def test_pissa_that_was_converted_is_a_lora_of_twice_the_rank(base: BaseOf, tmp_path: Path) -> None:
    before = weights_of(unet(base("sd15")))
    model = wrap(unet(base("sd15")), lora(init_lora_weights="pissa"))
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "initial")
    model.peft_config["default"].init_lora_weights = "pissa"
    for parameter in (p for p in model.parameters() if p.requires_grad):
        parameter.data += torch.randn_like(parameter) * 0.3
    model.save_pretrained(tmp_path / "plain")
    model.save_pretrained(tmp_path / "converted", path_initial_model_for_weight_conversion=str(tmp_path / "initial"))
    model.merge_adapter()
    after = weights_of(model)
    with pytest.raises(CheckpointError, match="pissa"):
        read(tmp_path / "plain", base("sd15"))
    found = read(tmp_path / "converted", base("sd15"))
    assert {delta.needed_rank for delta in found.values()} == {8}
    for module, delta in found.items():
        change = (after[module] - before[module]).double()
        probe = torch.eye(change.shape[1], dtype=torch.float64)
        assert float((delta.apply(probe) - change).norm() / change.norm()) < 1e-5


# --- the whole line ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case", ["loha", "loha-conv-tucker", "lokr", "lokr-conv", "adalora", "adalora-conv", "vera", "vera-drawn", "c3a"]
)
def test_what_is_exported_is_proven(base: BaseOf, adapter: AdapterOf, tmp_path: Path, case: str) -> None:
    exported = run_line(adapter(case).folder, base("sd15"), tmp_path)
    report = exported.report()
    assert report.passed, [check for check in report.checks if not check.passed]
    again = run_line(adapter(case).folder, base("sd15"), tmp_path / "again")
    assert again.bundle.digest == exported.bundle.digest


# --- files that lost something ----------------------------------------------------------------------------------------


def changed(adapter: Saved, folder: Path, tensors: dict[str, torch.Tensor], **config: Any) -> Path:
    """The folder with these tensors and settings."""
    folder.mkdir(exist_ok=True)
    stated = json.loads((adapter.folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(stated | config))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def tensors_of(adapter: Saved) -> dict[str, torch.Tensor]:
    return load_file(adapter.folder / "adapter_model.safetensors")


#: Kept once for all layers and also for each, so that one of them may go.
TWICE = ("base_model.randlora_A", "base_model.randlora_B", ".randlora_A", ".randlora_B")


@pytest.mark.parametrize("case", CASES)
def test_a_layer_that_lacks_a_tensor_is_refused(base: BaseOf, adapter: AdapterOf, tmp_path: Path, case: str) -> None:
    tensors = tensors_of(adapter(case))
    layer = max((key for key in tensors if key.startswith("base_model.model.")), key=len).rpartition(".")[0]
    if layer.endswith(("lora_A", "lora_B", "_general")):
        layer = layer.rpartition(".")[0]
    own = [key for key in tensors if key.startswith(f"{layer}.") or not key.startswith("base_model.model.")]
    own = [key for key in own if not key.endswith(TWICE)]
    for number, key in enumerate(own):
        if len(own) == 1:
            continue  # without its only tensor, a layer is not there
        rest = {name: tensor for name, tensor in tensors.items() if name != key}
        with pytest.raises(CheckpointError):
            read(changed(adapter(case), tmp_path / str(number), rest), base("sd15"))


@pytest.mark.parametrize("case", CASES)
def test_a_layer_of_which_a_tensor_is_too_short_is_refused(
    base: BaseOf, adapter: AdapterOf, tmp_path: Path, case: str
) -> None:
    tensors = tensors_of(adapter(case))
    layer = (
        next(key for key in tensors if key.startswith("base_model.model.")).rpartition(".")[0].removesuffix(".lora_A")
    )
    for number, key in enumerate(key for key in tensors if key.startswith(f"{layer}.")):
        for dimension in range(tensors[key].dim()):
            if tensors[key].shape[dimension] < 2 or (case.startswith(("fourierft", "waveft"))):
                continue  # any number of frequencies has a meaning
            short = tensors[key].narrow(dimension, 0, tensors[key].shape[dimension] - 1).contiguous()
            folder = changed(adapter(case), tmp_path / f"{number}-{dimension}", tensors | {key: short})
            with pytest.raises((CheckpointError, FamilyError)):
                read(folder, base("sd15"))


@pytest.mark.parametrize("case", CASES)
def test_a_configuration_of_another_rank_is_refused(
    base: BaseOf, adapter: AdapterOf, tmp_path: Path, case: str
) -> None:
    """Where the shapes tell the rank."""
    config = json.loads((adapter(case).folder / "adapter_config.json").read_text())
    name = "init_r" if config["peft_type"] == "ADALORA" else "r"
    silent = {"lokr-whole", "lokr-conv-whole", "shira", "super"}
    if name not in config or case in silent:
        pytest.skip("no shape tells the rank")
    other = changed(adapter(case), tmp_path / "other", tensors_of(adapter(case)), **{name: config[name] + 1})
    with pytest.raises(CheckpointError, match="rank"):
        read(other, base("sd15"))


def test_matrices_that_layers_do_not_share_are_refused(base: BaseOf, adapter: AdapterOf, tmp_path: Path) -> None:
    tensors = tensors_of(adapter("randlora"))
    tensors["base_model.randlora_B"] = tensors["base_model.randlora_B"] + 1
    with pytest.raises(CheckpointError, match="share one"):
        read(changed(adapter("randlora"), tmp_path / "other", tensors), base("sd15"))


def test_projections_that_were_not_saved_are_refused_unless_the_configuration_says_so(
    base: BaseOf, adapter: AdapterOf, tmp_path: Path
) -> None:
    tensors = {key: tensor for key, tensor in tensors_of(adapter("vera")).items() if "vera_A" not in key}
    with pytest.raises(CheckpointError, match="save_projection=True"):
        read(changed(adapter("vera"), tmp_path / "half", tensors), base("sd15"))
    del tensors["base_model.vera_B"]
    with pytest.raises(CheckpointError, match="save_projection=True"):
        read(changed(adapter("vera"), tmp_path / "none", tensors), base("sd15"))
    with pytest.raises(CheckpointError, match="projection_prng_key"):
        read(
            changed(adapter("vera"), tmp_path / "key", tensors, save_projection=False, projection_prng_key="7"),
            base("sd15"),
        )


def test_indices_outside_of_the_weight_are_refused(base: BaseOf, adapter: AdapterOf, tmp_path: Path) -> None:
    for case, name in (("shira", "shira_indices"), ("super", "supertuning_indices"), ("unilora", "unilora_indices_A")):
        for wrong in (-1, 10**6):
            tensors = tensors_of(adapter(case))
            key = next(key for key in tensors if key.endswith(name))
            tensors[key].view(-1)[-1] = wrong
            with pytest.raises(CheckpointError, match="do not fit"):
                read(changed(adapter(case), tmp_path / f"{case}{wrong}", tensors), base("sd15"))


# --- configurations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("setting", "value"),
    [("a_setting_of_next_year", 0.5), ("modules_to_save", ["conv_in"]), ("bias", "all"), ("fan_in_fan_out", True)],
)
def test_a_setting_that_may_change_the_effect_is_refused(
    adapter: AdapterOf, case: str, setting: str, value: Any
) -> None:
    config = json.loads((adapter(case).folder / "adapter_config.json").read_text())
    rule = PEFT_TYPES[config["peft_type"]].rule
    rule(config, "x")
    with pytest.raises(CheckpointError, match=setting):
        rule(config | {setting: value}, "x")


def test_every_type_of_the_installed_peft_is_read_or_refused_with_its_reason() -> None:
    assert {kind.value for kind in Known} == PEFT_TYPES.keys() | REASONS.keys()
    assert not PEFT_TYPES.keys() & REASONS.keys()


@pytest.mark.parametrize("kind", REASONS)
def test_a_type_that_no_lora_can_carry_is_refused_with_its_reason(tmp_path: Path, kind: str) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": kind, "r": 4}))
    save_file({"base_model.model.to_q.thing": torch.zeros(2)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ConversionError, match=REASONS[kind]):
        load_checkpoint(str(tmp_path), ExportOptions(), tmp_path)


def test_a_type_of_another_peft_is_refused_naming_those_that_work(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "BONE", "r": 4}))
    save_file({"base_model.model.to_q.bone_block": torch.zeros(2)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="BONE.*ADALORA.*LOHA.*WAVEFT"):
        load_checkpoint(str(tmp_path), ExportOptions(), tmp_path)


def test_miss_that_multiplies_the_base_is_refused(base: BaseOf, tmp_path: Path) -> None:
    saved(base("sd15"), peft.MissConfig(r=8, init_weights="bat", target_modules=LINEAR), tmp_path)
    with pytest.raises(ConversionError, match="bat"):
        read(tmp_path, base("sd15"))


def test_uni_lora_without_its_indices_is_refused(base: BaseOf, tmp_path: Path) -> None:
    saved(base("sd15"), peft.UniLoraConfig(r=3, theta_d_length=50, target_modules=LINEAR), tmp_path)
    with pytest.raises(CheckpointError, match="save_indices=True"):
        read(tmp_path, base("sd15"))


def test_lora_on_an_embedding_is_refused(base: BaseOf, tmp_path: Path) -> None:
    model = wrap(load_component(base("sd15"), "text_encoder"), lora(target_modules=["token_embedding", "q_proj"]))
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="embedding"):
        load_checkpoint(str(tmp_path), ExportOptions(), tmp_path)


# --- state dicts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["loha", "lokr-conv", "adalora", "vera", "vblora", "fourierft", "gralora-hybrid"])
@pytest.mark.parametrize("bare", [False, True])
def test_a_state_dict_is_read_with_its_configuration(
    base: BaseOf, adapter: AdapterOf, tmp_path: Path, case: str, bare: bool
) -> None:
    tensors = tensors_of(adapter(case))
    if bare and any(not key.startswith("base_model.model.") for key in tensors):
        pytest.skip("PEFT gives no bare state dict of what layers share")
    prefix = "base_model.model." if bare else ""
    save_file({key.removeprefix(prefix): value for key, value in tensors.items()}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="--adapter-config"):
        read(tmp_path / "x.safetensors", base("sd15"), components=("unet",))
    config = str(adapter(case).folder / "adapter_config.json")
    check_same(read(tmp_path / "x.safetensors", base("sd15"), adapter_config=config), adapter(case).wanted)
