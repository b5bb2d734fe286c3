"""Files that plain `load_lora_weights` takes without an exception, or with a warning, and that are wrong then.

Each test shows both on a small FLUX, Stable Diffusion, SD3 or Wan with real weights: what diffusers alone makes of the
file, by what the models compute, and that the proof fails for it. Where the file is what a trainer leaves behind, that
its export is right, or is refused.
"""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapterline.checkpoints import load_checkpoint
from adapterline.errors import RefusedError
from adapterline.families.base import read_base
from adapterline.families.skeleton import build_pipeline, quiet_libraries
from adapterline.validation import describe, validate_file
from adapterline.values import WEIGHT_NAME, ExportOptions, ValidationReport
from tests.families.adapted import layers_of, train
from tests.families.tiny import CASES
from tests.line import run_line
from tests.writers import cases as writers
from tests.writers.observe import Bases, check_exported, write

Tensors = dict[str, torch.Tensor]
METADATA = "lora_adapter_metadata"


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass(frozen=True)
class Trained:
    """Small models of a family, adapted with PEFT; `folder` has a PEFT folder for each component."""

    family: str
    base: Path
    folder: Path
    models: Mapping[str, Any]

    def tensors(self, component: str) -> Tensors:
        """As PEFT saved them, by key without `base_model.model.`."""
        stored = load_file(self.folder / component / "adapter_model.safetensors")
        return {key.removeprefix("base_model.model."): tensor for key, tensor in stored.items()}

    def as_diffusers(self, *components: str) -> Tensors:
        """What a training script hands to `save_lora_weights`, and that writes."""
        return {f"{name}.{key}": t for name in components or self.models for key, t in self.tensors(name).items()}

    def computed(self, component: str) -> torch.Tensor:
        return CASES[self.family].forward(component, self.models[component])

    def computed_before(self, component: str) -> torch.Tensor:
        return CASES[self.family].forward(component, CASES[self.family].build(component))

    def proof(self, file: Path, **options: Any) -> ValidationReport:
        """Against all that was trained."""
        asked = ExportOptions(**options)
        source = load_checkpoint(str(self.folder), asked, file.parent)
        return validate_file(file, read_base(self.base), source, asked)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Trained]:
    """`trained("flux", alpha=7)`: of a text encoder too where the family's loader takes one. Read only."""

    @functools.cache
    def make(family: str, alpha: float = 4, only: str = "") -> Trained:
        folder = tmp_path_factory.mktemp(family)
        base = CASES[family].write(folder / "base")
        names = [only] if only else [name for name in ("unet", "transformer", "transformer_2", "text_encoder")]
        models = {
            name: train(CASES[family].build(name), folder / "trained" / name, alpha=alpha)
            for name in names
            if name in CASES[family].models
        }
        return Trained(family, base, folder / "trained", models)

    return make


def loaded(of: Trained, file: Path) -> dict[str, Any]:
    """The pipeline's models after `load_lora_weights(file)` and nothing else."""
    case = CASES[of.family]
    models = {name: case.build(name) for name in case.models}
    pipeline = build_pipeline(read_base(of.base), models)
    with quiet_libraries(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its only sign that something is wrong
        pipeline.load_lora_weights(str(file.parent), weight_name=file.name)
    return models


def is_right(of: Trained, models: Mapping[str, Any], component: str) -> bool:
    """Does the model compute what the trained one did?"""
    wanted = of.computed(component)
    found = CASES[of.family].forward(component, models[component])
    return bool((found - wanted).norm() <= 1e-4 * wanted.norm())


def is_untouched(of: Trained, models: Mapping[str, Any], component: str) -> bool:
    found = CASES[of.family].forward(component, models[component])
    return not layers_of(models[component]) and torch.equal(found, of.computed_before(component))


def case_of(*named: str) -> writers.Case:
    """What a trainer writes: its name, the kind of adapter, the family."""
    (case,) = (case for case in writers.CASES if (case.trainer, case.kind, case.family) == named)
    return case


def renamed(tensors: Tensors, new: Callable[[str], str]) -> Tensors:
    return {new(key): tensor for key, tensor in tensors.items()}


def saved(tensors: Tensors, folder: Path, header: Mapping[str, str] | None = None) -> Path:
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / WEIGHT_NAME, header)
    return folder / WEIGHT_NAME


def failed(report: ValidationReport) -> set[str]:
    return {check.name for check in report.failures}


def said(report: ValidationReport) -> str:
    return "; ".join(map(describe, report.failures))


def test_file_as_diffusers_writes_it_is_right_and_is_proven(trained: Callable[..., Trained], tmp_path: Path) -> None:
    """What all others are compared with."""
    of = trained("flux")
    file = saved(of.as_diffusers(), tmp_path)
    models = loaded(of, file)
    assert all(is_right(of, models, name) for name in of.models)
    assert not any(is_untouched(of, models, name) for name in of.models)
    assert of.proof(file).passed


# --- names ------------------------------------------------------------------------------------------------------------

NO_ADAPTER: dict[str, Callable[[str], str]] = {
    "no prefix": lambda key: key.partition(".")[2],
    "wrong prefix": lambda key: f"denoiser.{key.partition('.')[2]}",
    "outer module.": lambda key: f"module.{key}",
    "outer _orig_mod.": lambda key: f"_orig_mod.{key}",
    "diffusion_model. on diffusers' names": lambda key: f"diffusion_model.{key.partition('.')[2]}",
}


@pytest.mark.parametrize("names", NO_ADAPTER)
def test_keys_with_a_wrong_beginning_load_as_no_adapter(
    trained: Callable[..., Trained], tmp_path: Path, names: str
) -> None:
    of = trained("flux", only="transformer")
    file = saved(renamed(of.as_diffusers(), NO_ADAPTER[names]), tmp_path)
    assert is_untouched(of, loaded(of, file), "transformer")
    report = of.proof(file)
    assert {"all layers arrive", "no module is missing"} <= failed(report)
    assert "transformer" in said(report)


@pytest.mark.parametrize("names", ["outer module.", "outer _orig_mod."])
def test_what_a_wrapper_left_in_front_is_peeled_off_by_export(
    trained: Callable[..., Trained], tmp_path: Path, names: str
) -> None:
    of = trained("flux", only="transformer")
    file = saved(renamed(of.as_diffusers(), NO_ADAPTER[names]), tmp_path)
    exported = run_line(file, of.base, tmp_path)
    assert is_right(of, loaded(of, exported.folder / WEIGHT_NAME), "transformer")


@pytest.mark.parametrize(
    "left_in",
    [
        lambda key: key.replace("transformer.", "transformer._orig_mod.", 1),
        lambda key: key.replace(".weight", ".default.weight"),
    ],
    ids=["_orig_mod after the component", "adapter name"],
)
def test_wrapper_left_in_a_key_gives_layers_that_nothing_was_loaded_into(
    trained: Callable[..., Trained], tmp_path: Path, left_in: Callable[[str], str]
) -> None:
    of = trained("flux", only="transformer")
    file = saved(renamed(of.as_diffusers(), left_in), tmp_path)
    layers = layers_of(loaded(of, file)["transformer"])
    # They are there and active, and their factors are on meta: a forward reads memory that nobody wrote.
    assert layers
    assert all(parameter.is_meta for layer in layers.values() for parameter in layer.lora_A.parameters())
    report = of.proof(file)
    assert not report.passed
    assert "transformer" in said(report)
    exported = run_line(file, of.base, tmp_path, ExportOptions(alpha=4))
    assert is_right(of, loaded(of, exported.folder / WEIGHT_NAME), "transformer")


def test_kohya_keys_on_sd3_load_as_no_adapter_and_export_right(tmp_path: Path) -> None:
    bases = Bases(tmp_path / "bases")
    (case,) = (
        case for case in writers.CASES if (case.trainer, case.kind, case.family) == ("sd-scripts", "LoRA", "sd3")
    )
    file, written = write(case, bases, tmp_path)
    of = Trained("sd3", bases.path("sd3"), file, {})
    models = loaded(of, file)
    assert all(is_untouched(of, models, name) for name in models)
    exported = run_line(file, of.base, tmp_path)
    assert exported.report().passed
    check_exported(exported, written, 2e-5)


def test_two_key_styles_in_a_file_lose_one_of_them(trained: Callable[..., Trained], tmp_path: Path) -> None:
    of = trained("sd15", only="unet")
    tensors = of.as_diffusers()
    stems = sorted({key.rpartition(".lora_")[0] for key in tensors})
    old = set(stems[len(stems) // 2 :])  # the style of the first key decides: it is taken for that of all

    def style(key: str) -> str:
        if key.rpartition(".lora_")[0] not in old:
            return key
        return key.replace(".lora_A.", ".lora.down.").replace(".lora_B.", ".lora.up.")

    file = saved(renamed(tensors, style), tmp_path)
    assert not is_right(of, loaded(of, file), "unet")
    assert "no module is missing" in failed(of.proof(file))


def test_block_that_the_model_does_not_have_is_dropped(trained: Callable[..., Trained], tmp_path: Path) -> None:
    of = trained("flux", only="transformer")
    tensors = of.as_diffusers()
    block = min(key.rpartition(".lora_")[0] for key in tensors if key.startswith("transformer.transformer_blocks."))
    other = ".".join(["transformer", "transformer_blocks", "77", *block.split(".")[3:]])
    file = saved(renamed(tensors, lambda key: key.replace(f"{block}.", f"{other}.")), tmp_path)
    assert not is_right(of, loaded(of, file), "transformer")
    assert other.removeprefix("transformer.") in said(of.proof(file))


def test_part_for_an_encoder_that_the_loader_does_not_take_vanishes(
    trained: Callable[..., Trained], tmp_path: Path
) -> None:
    """FLUX with T5: its tensors are dropped without a warning."""
    of = trained("flux", only="transformer")
    train(CASES["flux"].build("text_encoder"), tmp_path / "text_encoder_2", alpha=4)  # any tensors will do
    other = load_file(tmp_path / "text_encoder_2" / "adapter_model.safetensors")
    t5 = {key.replace("base_model.model.", "text_encoder_2."): tensor for key, tensor in other.items()}
    file = saved(of.as_diffusers() | t5, tmp_path)
    assert is_right(of, loaded(of, file), "transformer")
    report = validate_file(file, read_base(of.base))
    assert not report.passed
    assert "text_encoder_2" in said(report)
    with pytest.raises(RefusedError):
        run_line(file, of.base, tmp_path)


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_nan_loads_cleanly(trained: Callable[..., Trained], tmp_path: Path) -> None:
    of = trained("flux", only="transformer")
    tensors = of.as_diffusers()
    key = min(tensors)
    tensors[key] = tensors[key].clone()
    tensors[key].view(-1)[0] = torch.nan
    file = saved(tensors, tmp_path)
    assert layers_of(loaded(of, file)["transformer"])
    report = of.proof(file)
    assert {"finite", "effect, exact"} <= failed(report)
    assert key.partition(".")[2].rpartition(".lora_")[0] in said(report)
    assert "finite" in failed(validate_file(file, read_base(of.base)))


def test_zeros_load_cleanly(trained: Callable[..., Trained], tmp_path: Path) -> None:
    of = trained("flux", only="transformer")
    zeros = {key: torch.zeros_like(tensor) for key, tensor in of.as_diffusers().items()}
    file = saved(zeros, tmp_path)
    models = loaded(of, file)
    assert layers_of(models["transformer"])
    found = CASES["flux"].forward("transformer", models["transformer"])
    assert torch.equal(found, of.computed_before("transformer"))
    assert "alive (some B is not zero)" in failed(of.proof(file))
    assert "alive (some B is not zero)" in failed(validate_file(file, read_base(of.base)))


def test_factor_with_an_input_too_few_is_padded_silently(trained: Callable[..., Trained], tmp_path: Path) -> None:
    of = trained("flux", only="transformer")
    tensors = of.as_diffusers()
    for key in [key for key in tensors if ".lora_A." in key]:
        tensors[key] = tensors[key][:, :-1]
    file = saved(tensors, tmp_path)
    assert not is_right(of, loaded(of, file), "transformer")
    report = of.proof(file)
    assert "effect (relative change of the weight)" in failed(report)
    with pytest.raises(RefusedError):
        run_line(file, of.base, tmp_path)


def test_dtype_of_a_file_is_not_seen_in_the_model(trained: Callable[..., Trained], tmp_path: Path) -> None:
    """A bfloat16 file is cast to the model's float32: only the file tells what it lost."""
    of = trained("flux", only="transformer")
    file = saved({key: tensor.bfloat16() for key, tensor in of.as_diffusers().items()}, tmp_path)
    model = loaded(of, file)["transformer"]
    dtypes = {p.dtype for layer in layers_of(model).values() for p in layer.lora_A.parameters()}
    assert dtypes == {torch.float32}
    assert {"dtype", "effect (relative change of the weight)"} <= failed(of.proof(file))
    assert of.proof(file, dtype="bfloat16").passed


# --- what a LoRA file has no place for --------------------------------------------------------------------------------


def test_modules_that_were_trained_whole_are_dropped(trained: Callable[..., Trained], tmp_path: Path) -> None:
    of = trained("flux", only="transformer")
    whole = {"transformer.proj_out.weight": torch.ones(8, 8), "transformer.proj_out.bias": torch.ones(8)}
    file = saved(of.as_diffusers() | whole, tmp_path)
    models = loaded(of, file)
    assert is_right(of, models, "transformer")  # as if they had not been trained
    report = of.proof(file)
    assert not report.passed
    assert "transformer" in said(report)
    with pytest.raises(RefusedError):
        run_line(file, of.base, tmp_path)


@pytest.mark.parametrize("kind", ["LoHa, diffusers", "LoKr, diffusers"])
def test_forms_that_save_and_do_not_load_are_exported_as_lora(tmp_path: Path, kind: str) -> None:
    bases = Bases(tmp_path / "bases")
    file, written = write(case_of("OneTrainer", kind, "flux"), bases, tmp_path)
    of = Trained("flux", bases.path("flux"), file, {})
    with pytest.raises(ValueError, match="Invalid LoRA checkpoint"):
        loaded(of, file)
    report = validate_file(file, read_base(of.base), load_checkpoint(str(file), ExportOptions(), tmp_path))
    assert failed(report) == {"loads"}
    exported = run_line(file, of.base, tmp_path)
    assert exported.report().passed
    check_exported(exported, written, 2e-5)


def test_keys_of_a_peft_folder_are_taken_for_another_format(trained: Callable[..., Trained], tmp_path: Path) -> None:
    of = trained("flux", only="transformer")
    file = saved(load_file(of.folder / "transformer" / "adapter_model.safetensors"), tmp_path)
    with pytest.raises(KeyError, match="double_blocks"):
        loaded(of, file)
    report = validate_file(file, read_base(of.base))
    assert failed(report) == {"loads"}
    assert WEIGHT_NAME in said(report)
    exported = run_line(of.folder / "transformer", of.base, tmp_path)
    assert is_right(of, loaded(of, exported.folder / WEIGHT_NAME), "transformer")


def test_second_expert_of_a_file_with_both_does_not_load(trained: Callable[..., Trained], tmp_path: Path) -> None:
    of = trained("wan")
    file = saved(of.as_diffusers("transformer", "transformer_2"), tmp_path)
    models = loaded(of, file)
    assert is_right(of, models, "transformer")
    assert is_untouched(of, models, "transformer_2")
    report = of.proof(file)
    assert not report.passed
    assert {check.component for check in report.failures if check.component} == {"transformer_2"}
    exported = run_line(of.folder, of.base, tmp_path)
    assert len(exported.bundle.loads) == 2
    assert exported.report().passed


# --- scales -----------------------------------------------------------------------------------------------------------


def lora_config(**settings: Any) -> dict[str, Any]:
    return {"r": 4, "peft_type": "LORA", **settings}


def header_of(of: Trained, *components: str, **settings: Any) -> dict[str, str]:
    metadata = {}
    for name in components:
        targets = sorted({key.rpartition(".lora_")[0] for key in of.tensors(name)})
        config = lora_config(target_modules=targets, **settings)
        metadata |= {f"{name}.{key}": value for key, value in config.items()}
    return {METADATA: json.dumps(metadata)}


def test_alpha_that_is_not_saved_is_the_rank_after_loading(trained: Callable[..., Trained], tmp_path: Path) -> None:
    """`save_lora_weights` without adapter metadata: alpha 7 at rank 4 reloads with a scale of 1."""
    of = trained("flux", alpha=7)
    pipeline_class = type(build_pipeline(read_base(of.base), {}))
    pipeline_class.save_lora_weights(
        tmp_path,
        transformer_lora_layers=of.tensors("transformer"),
        text_encoder_lora_layers=of.tensors("text_encoder"),
    )
    file = tmp_path / WEIGHT_NAME
    models = loaded(of, file)
    assert not any(is_right(of, models, name) for name in of.models)
    layers = [layer for model in models.values() for layer in layers_of(model).values()]
    assert {scale for layer in layers for scale in layer.scaling.values()} == {1.0}
    report = of.proof(file)
    observed = {c.component: c.observed for c in report.failures if c.name == "effect (relative change of the weight)"}
    assert observed == {name: pytest.approx(1 - 4 / 7, abs=0.01) for name in of.models}
    exported = run_line(of.folder, of.base, tmp_path)
    models = loaded(of, exported.folder / WEIGHT_NAME)
    assert all(is_right(of, models, name) for name in of.models)


def test_scale_that_is_folded_and_stated_counts_twice(trained: Callable[..., Trained], tmp_path: Path) -> None:
    of = trained("flux", alpha=7, only="transformer")
    good = run_line(of.folder, of.base, tmp_path)
    file = saved(
        load_file(good.folder / WEIGHT_NAME), tmp_path, header_of(of, "transformer", lora_alpha=7, lora_bias=False)
    )
    models = loaded(of, file)
    assert not is_right(of, models, "transformer")
    assert {s for layer in layers_of(models["transformer"]).values() for s in layer.scaling.values()} == {7 / 4}
    report = of.proof(file)
    assert "effect (relative change of the weight)" in failed(report)


def test_alpha_of_one_component_alone_does_not_load(trained: Callable[..., Trained], tmp_path: Path) -> None:
    of = trained("flux", alpha=7)
    file = saved(of.as_diffusers(), tmp_path, header_of(of, "transformer", lora_alpha=7))
    with pytest.raises(ValueError, match="Please specify `target_modules`"):
        loaded(of, file)
    report = of.proof(file)
    assert failed(report) == {"loads"}
    assert "target_modules" in said(report)


def test_layer_that_the_header_does_not_name_is_dropped(trained: Callable[..., Trained], tmp_path: Path) -> None:
    of = trained("flux", alpha=7)
    tensors = of.as_diffusers("text_encoder")
    for key in [key for key in tensors if key.endswith("lora_B.weight")]:
        tensors[key.replace("weight", "bias")] = torch.ones(len(tensors[key]))
    module = next(key.split(".lora_")[0] for key in tensors if key.endswith("out_proj.lora_A.weight"))
    other = module.replace("out_proj", "k_proj").replace("layers.1", "layers.0")
    assert f"{other}.lora_A.weight" not in tensors
    header = header_of(of, "text_encoder", lora_alpha=7, lora_bias=True)
    file = saved(renamed(tensors, lambda key: key.replace(module, other)), tmp_path, header)
    report = validate_file(file, read_base(of.base))
    assert failed(report) == {"all layers arrive"}
    (check,) = report.failures
    assert check.modules == (other.replace("text_model.", ""),)


def test_setting_that_the_installed_peft_does_not_know_is_named(
    trained: Callable[..., Trained], tmp_path: Path
) -> None:
    of = trained("flux", alpha=7, only="transformer")
    file = saved(of.as_diffusers(), tmp_path, header_of(of, "transformer", lora_alpha=7, of_a_newer_peft=1))
    with pytest.raises(TypeError):
        loaded(of, file)
    report = of.proof(file)
    assert failed(report) == {"loads"}
    assert "of_a_newer_peft" in said(report)


def test_header_of_a_text_encoder_in_the_names_of_older_transformers_does_not_load(
    trained: Callable[..., Trained], tmp_path: Path
) -> None:
    of = trained("flux", alpha=7)
    header = json.loads(header_of(of, "transformer", "text_encoder", lora_alpha=7)[METADATA])
    header["text_encoder.target_modules"] = [f"text_model.{name}" for name in header["text_encoder.target_modules"]]
    file = saved(of.as_diffusers(), tmp_path, {METADATA: json.dumps(header)})
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - transformers has a class of its own for it
        loaded(of, file)
    assert type(caught.value).__name__ == "NoMatchingPeftModuleError"
    assert failed(of.proof(file)) == {"loads"}
    exported = run_line(of.folder, of.base, tmp_path, ExportOptions(scale="header"))
    models = loaded(of, exported.folder / WEIGHT_NAME)
    assert all(is_right(of, models, name) for name in of.models)
