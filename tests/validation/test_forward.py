"""Models with their real weights are run with a file and without it; each case is a good export, broken once."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from adapterline.families.base import read_base
from adapterline.families.shipped import shipped
from adapterline.validation import forward, validate_bundle, validate_file
from adapterline.validation.inputs import INPUTS, inputs_for
from adapterline.values import WEIGHT_NAME, Check, ExportOptions, ValidationReport
from tests import bases
from tests.bases import load_component, peft_adapter
from tests.families.tiny import CASES
from tests.line import Exported, run_line
from tests.publishing import manifest_of

Tensors = dict[str, torch.Tensor]

A = "transformer.transformer_blocks.0.attn.to_q.lora_A.weight"
B = "transformer.transformer_blocks.0.attn.to_q.lora_B.weight"
TE_B = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_B.weight"
MAGNITUDE = "transformer.transformer_blocks.0.attn.to_k.lora_magnitude_vector"
NAMES = {
    "forward: runs",
    "forward: the same twice",
    "forward: finite",
    "forward: on differs from off",
    "forward: off is the base",
    "forward: on again is on",
    "forward: unloaded is the base",
    "forward: weights after unloading",
}
EFFECT = "forward: effect of the source (relative)"


@pytest.fixture(scope="module")
def flux(base: Callable[[str], Path]) -> Path:
    return base("flux")


@pytest.fixture(scope="module")
def exported(flux: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """DoRA on FLUX's transformer and LoRA on its text encoder, at scales that are no power of two."""
    folder = tmp_path_factory.mktemp("flux-export")
    peft_adapter(flux, "transformer", folder / "in/transformer", 4, 10, ["to_q", "to_k", "proj_mlp"], use_dora=True)
    peft_adapter(flux, "text_encoder", folder / "in/text_encoder", 4, 6, ["q_proj", "v_proj"])
    return run_line(folder / "in", flux, folder)


def broken(good: Exported, out: Path, edit: Callable[[Tensors], None]) -> ValidationReport:
    """The report on a copy of the good file that `edit` changed."""
    with safe_open(good.folder / WEIGHT_NAME, "pt") as file:
        tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
        header = dict(file.metadata() or {})
    edit(tensors)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, out / WEIGHT_NAME, header)
    return validate_file(out / WEIGHT_NAME, good.base, good.source, good.options)


def _multiply(tensor: torch.Tensor, factor: float) -> None:
    tensor.mul_(factor)


def passes(report: ValidationReport) -> dict[str, set[str]]:
    """The names of the checks of forward passes, by component."""
    found: dict[str, set[str]] = {}
    for check in report.checks:
        if check.name.startswith("forward"):
            found.setdefault(check.component or "", set()).add(check.name)
    return found


def failed(report: ValidationReport) -> set[tuple[str | None, str]]:
    return {(check.component, check.name) for check in report.failures if check.name.startswith("forward")}


def effect(report: ValidationReport, component: str) -> Check:
    (check,) = (check for check in report.checks if check.name == EFFECT and check.component == component)
    return check


def on(base: Path, components: dict[str, list[str]], folder: Path, **more: Any) -> Exported:
    for component, targets in components.items():
        peft_adapter(base, component, folder / "in" / component, 4, 10, targets, **more)
    return run_line(folder / "in", base, folder)


# --- what passes ------------------------------------------------------------------------------------------------------


def test_a_good_file_does_what_the_source_would_do_and_goes_without_a_trace(exported: Exported) -> None:
    report = exported.report()
    assert passes(report) == {"transformer": {*NAMES, EFFECT}, "text_encoder": {*NAMES, EFFECT}}
    assert report.passed
    assert report.not_run == {}
    for component in ("transformer", "text_encoder"):
        assert 0 <= float(effect(report, component).observed) < 2e-5


@pytest.mark.parametrize(
    ("family", "components"),
    [
        ("sd15", {"unet": ["to_q", "conv1", "conv_shortcut", "conv_in"], "text_encoder": ["q_proj"]}),
        ("sd3", {"transformer": ["to_q", "add_k_proj"], "text_encoder_2": ["q_proj", "fc1"]}),
        ("flux2", {"transformer": ["to_q"]}),
        ("qwenimage", {"transformer": ["to_q", "add_v_proj"]}),
    ],
)
@pytest.mark.parametrize("dora", [False, True])
def test_linear_layers_and_convolutions_of_each_family(
    base: Callable[[str], Path], tmp_path: Path, family: str, components: dict[str, list[str]], dora: bool
) -> None:
    report = on(base(family), components, tmp_path, use_dora=dora).report()
    assert report.passed
    assert passes(report) == {component: {*NAMES, EFFECT} for component in components}
    assert report.not_run == {}


def test_rounded_files_have_the_room_that_rounding_takes(flux: Path, tmp_path: Path) -> None:
    peft_adapter(flux, "transformer", tmp_path / "in/transformer", 4, 10, ["to_q", "to_k"])
    errors = {}
    for dtype in ("float32", "float16", "bfloat16"):
        report = run_line(tmp_path / "in", flux, tmp_path / dtype, ExportOptions(dtype=dtype)).report()
        assert report.passed
        errors[dtype] = float(effect(report, "transformer").observed)
    assert errors["float32"] < 2e-5 < errors["float16"] < errors["bfloat16"] < 3.2e-2


def test_without_a_source_it_shows_that_the_file_acts_and_goes(exported: Exported) -> None:
    report = validate_file(exported.folder / WEIGHT_NAME, exported.base)
    assert passes(report) == {"transformer": NAMES, "text_encoder": NAMES}
    assert report.passed


def test_a_base_in_half_precision_is_run_in_float32(flux: Path, exported: Exported, tmp_path: Path) -> None:
    shutil.copytree(flux, tmp_path / "base")
    load_component(flux, "transformer").to(torch.bfloat16).save_pretrained(tmp_path / "base/transformer")
    half = replace(exported, base=read_base(tmp_path / "base"))
    assert half.report().passed
    assert float(effect(half.report(), "transformer").observed) < 2e-5


def test_files_of_the_base_and_of_the_export_are_left_alone(flux: Path, exported: Exported) -> None:
    def digests() -> dict[Path, str]:
        files = [file for root in (flux, exported.folder) for file in root.rglob("*") if file.is_file()]
        return {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}

    before = digests()
    exported.report()
    assert digests() == before


def test_the_manifest_says_nothing_of_it(exported: Exported) -> None:
    # Whether it is run, and its last digits, depend on the machine.
    said = manifest_of(exported, "lora").validation
    assert said.not_run == {}
    assert not passes(said)
    assert {check.name for check in exported.report().checks} - {check.name for check in said.checks} == {
        *NAMES,
        EFFECT,
    }


# --- what fails -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "component"), [(B, "transformer"), (A, "transformer"), (MAGNITUDE, "transformer"), (TE_B, "text_encoder")]
)
def test_fails_when_one_layer_is_one_percent_off(exported: Exported, tmp_path: Path, key: str, component: str) -> None:
    report = broken(exported, tmp_path, lambda tensors: _multiply(tensors[key], 1.01))
    assert failed(report) == {(component, EFFECT)}
    assert 2e-4 < float(effect(report, component).observed) < 1e-1


def test_fails_when_something_is_not_finite(exported: Exported, tmp_path: Path) -> None:
    report = broken(exported, tmp_path, lambda tensors: _multiply(tensors[B].view(-1)[:1], torch.nan))
    assert failed(report) == {("transformer", "forward: finite"), ("transformer", EFFECT)}


def test_fails_when_nothing_is_added(exported: Exported, tmp_path: Path) -> None:
    def edit(tensors: Tensors) -> None:
        for key in tensors:
            if key.startswith("text_encoder.") and "lora_B" in key:
                tensors[key].zero_()

    report = broken(exported, tmp_path, edit)
    assert failed(report) == {("text_encoder", "forward: on differs from off"), ("text_encoder", EFFECT)}
    assert effect(report, "text_encoder").observed == 1.0


def test_fails_when_unloading_leaves_something_in_the_weights(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    import diffusers

    unload = diffusers.FluxPipeline.unload_lora_weights

    def broken_unload(self: Any) -> None:
        self.fuse_lora(components=["transformer"])
        unload(self)

    monkeypatch.setattr(diffusers.FluxPipeline, "unload_lora_weights", broken_unload)
    report = exported.report()
    assert failed(report) == {
        ("transformer", "forward: unloaded is the base"),
        ("transformer", "forward: weights after unloading"),
    }
    observed = {check.name: check.observed for check in report.failures}
    layers = len(exported.adapter.components["transformer"])
    assert str(observed["forward: weights after unloading"]).startswith(f"{layers} of ")


def test_fails_when_one_weight_is_one_bit_off_after_unloading(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    import diffusers

    unload = diffusers.FluxPipeline.unload_lora_weights

    def broken_unload(self: Any) -> None:
        unload(self)
        bits = self.text_encoder.get_input_embeddings().weight.data.view(torch.int32)
        bits[-3, 0] ^= 1  # a token that no input has

    monkeypatch.setattr(diffusers.FluxPipeline, "unload_lora_weights", broken_unload)
    assert failed(exported.report()) == {("text_encoder", "forward: weights after unloading")}


@pytest.mark.parametrize(
    ("method", "name"), [("disable_lora", "forward: off is the base"), ("enable_lora", "forward: on again is on")]
)
def test_fails_when_it_cannot_be_switched(
    exported: Exported, monkeypatch: pytest.MonkeyPatch, method: str, name: str
) -> None:
    import diffusers

    monkeypatch.setattr(diffusers.FluxPipeline, method, lambda self: None)
    assert failed(exported.report()) == {("transformer", name), ("text_encoder", name)}


def test_what_is_not_the_same_twice_is_refused_and_nothing_else_is_said_of_it(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = forward.load_model

    def noisy(*given: Any) -> Any:
        model = load(*given)
        if type(model).__name__ == "FluxTransformer2DModel":
            model.proj_out.register_forward_hook(lambda module, inputs, out: out + 1e-6 * torch.randn_like(out))
        return model

    monkeypatch.setattr(forward, "load_model", noisy)
    report = exported.report()
    assert failed(report) == {("transformer", "forward: the same twice")}
    assert passes(report)["transformer"] == {"forward: runs", "forward: the same twice"}


def test_a_file_that_the_loader_refuses_on_real_weights_fails(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    models: list[Any] = []

    def forbidden(self: Any) -> None:
        models.append(self)
        raise RuntimeError("no")

    import diffusers

    monkeypatch.setattr(diffusers.FluxPipeline, "enable_lora", forbidden)
    report = exported.report()
    assert failed(report) == {("transformer", "forward: runs"), ("text_encoder", "forward: runs")}
    assert models
    assert "RuntimeError: no" in {check.observed for check in report.failures}


# --- what is not run, and says so -------------------------------------------------------------------------------------


def test_a_base_without_weights_is_not_run(flux: Path, exported: Exported, tmp_path: Path) -> None:
    shutil.copytree(flux, tmp_path / "base", ignore=shutil.ignore_patterns("*.safetensors"))
    report = replace(exported, base=read_base(tmp_path / "base")).report()
    assert passes(report) == {}
    assert "no weights" in report.not_run["forward"]
    assert report.passed


def test_a_base_that_comes_with_adapterline_is_not_run(tmp_path: Path) -> None:
    folder = shipped("sd15")
    assert folder is not None
    layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    save_file({f"{layer}.lora_A.weight": torch.randn(4, 1280), f"{layer}.lora_B.weight": torch.randn(1280, 4)},
              tmp_path / WEIGHT_NAME)  # fmt: skip
    report = validate_file(tmp_path / WEIGHT_NAME, read_base(folder))
    assert report.passed
    assert "no weights" in report.not_run["forward"]


def test_pickled_weights_are_not_read(flux: Path, exported: Exported, tmp_path: Path) -> None:
    shutil.copytree(flux, tmp_path / "base")
    (weights,) = (tmp_path / "base/transformer").glob("*.safetensors")
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    report = replace(exported, base=read_base(tmp_path / "base")).report()
    assert "no weights" in report.not_run["forward"]


def test_a_base_that_lacks_a_weight_is_not_run(flux: Path, exported: Exported, tmp_path: Path) -> None:
    # The library would draw it at random, another one each time.
    shutil.copytree(flux, tmp_path / "base")
    (weights,) = (tmp_path / "base/transformer").glob("*.safetensors")
    tensors = load_file(weights)
    del tensors["proj_out.weight"]
    save_file(tensors, weights, {"format": "pt"})
    report = replace(exported, base=read_base(tmp_path / "base")).report()
    assert "proj_out.weight" in report.not_run["forward"]
    assert passes(report) == {}


def test_more_weights_than_the_limit_need_a_gpu(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "_device", lambda: "cpu")
    monkeypatch.setattr(forward, "MOST_GB", 1e-6)
    report = exported.report()
    assert passes(report) == {}
    assert "need a GPU" in report.not_run["forward"]


def test_a_gpu_without_room_is_not_used(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "_device", lambda: "cuda")
    monkeypatch.setattr(forward, "_free", lambda device: 100_000)
    assert "GB free" in exported.report().not_run["forward"]


def test_an_effect_below_rounding_is_not_claimed(flux: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bases, "_pretend_trained", lambda name, values: "lora_B" in name and values.normal_(std=1e-6))
    report = on(flux, {"transformer": ["to_q"]}, tmp_path).report()
    assert report.passed
    assert passes(report) == {"transformer": NAMES}
    assert "rounding" in report.not_run["forward of transformer, effect of the source"]


def test_an_approximation_is_not_compared_by_its_output(exported: Exported) -> None:
    options = ExportOptions(approximate=64)
    report = validate_bundle(exported.bundle, exported.folder, exported.source, exported.base, options)
    assert EFFECT not in passes(report)["transformer"]
    assert "approximation" in report.not_run["forward of transformer, effect of the source"]


def test_a_model_whose_inputs_are_not_known_is_not_run(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        forward, "inputs_for", lambda model: None if "Flux" in type(model).__name__ else inputs_for(model)
    )
    report = exported.report()
    assert set(passes(report)) == {"text_encoder"}
    assert "FluxTransformer2DModel" in report.not_run["forward of transformer"]
    assert report.passed


# --- inputs -----------------------------------------------------------------------------------------------------------

MODELS = [
    pytest.param(case, name, id=f"{family}-{name}")
    for family, case in CASES.items()
    for name, tiny in case.models.items()
    if tiny.model_class in INPUTS
]


@pytest.mark.filterwarnings("ignore:In CPU autocast, but the target dtype")  # Mochi's, of fp32
@pytest.mark.parametrize(("case", "name"), MODELS)
def test_inputs_fit_the_class_and_are_the_same_each_time(case: Any, name: str) -> None:
    model = case.build(name)
    first, second = (
        torch.cat([tensor.float().flatten() for tensor in forward._tensors(model(**(inputs_for(model) or {})))])
        for _ in range(2)
    )
    assert torch.equal(first, second)
    assert bool(first.isfinite().all())
    assert bool(first.any())


def test_the_classes_without_inputs_are_those_that_the_docs_name() -> None:
    from adapterline.families import FAMILIES

    loaded = {model for family in FAMILIES for part in family.components if part.loads for model in part.models}
    page = (Path(__file__).parent.parent.parent / "docs/validate.md").read_text()
    assert {model for model in loaded - set(INPUTS) if f"`{model}`" not in page} == set()
