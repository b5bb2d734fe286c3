"""The folders that PEFT loads: what is in them, and that `PeftModel.from_pretrained` computes what was trained."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import fields, replace
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from peft import LoKrConfig, LoraConfig, PeftModel
from safetensors.torch import load_file, save_file

from adapterline.deltas import LowRank
from adapterline.destinations.hub import HubDestination
from adapterline.destinations.s3 import S3Destination
from adapterline.errors import ConversionError
from adapterline.families.base import Base, read_base
from adapterline.families.skeleton import targets
from adapterline.layouts import convert
from adapterline.package import make_package
from adapterline.package.card import make_card, snippets
from adapterline.summaries import summarize
from adapterline.validation import validate_file
from adapterline.values import (
    WEIGHT_NAME,
    Adapter,
    ExportedFile,
    ExportOptions,
    FilePlan,
    LoadCall,
    Plan,
    canonical_json,
)
from tests.bases import VARIANTS, PeftAdapter, forward, load_component, peft_adapter
from tests.families.adapted import layers_of, same_layers, train
from tests.families.tiny import CASES
from tests.hub_double.server import Hub
from tests.hub_fixtures import WRITER
from tests.layouts.random_deltas import deltas_for, names_in
from tests.line import Exported, run_line
from tests.packages import order_of
from tests.publishing import manifest_of, publish
from tests.validation.test_embeddings import encoded
from tests.validation.test_embeddings import train as pivotal_tuning

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

BaseOf = Callable[[str], Path]

BOTH = ExportOptions(layouts=("diffusers", "peft"))
ALONE = ExportOptions(layouts=("peft",))
UNET = ["to_q", "to_k", "to_v", "to_out.0"]
CONV = ["conv1", "conv2", "conv_shortcut", "conv_in", "proj_in"]
CLIP = ["q_proj", "k_proj", "v_proj", "out_proj"]
COMPONENTS: dict[tuple[str, str], list[str]] = {
    ("sd15", "unet"): UNET + CONV,
    ("sd15", "text_encoder"): CLIP,
    ("sdxl", "unet"): UNET,
    ("sdxl", "text_encoder"): CLIP,
    ("sdxl", "text_encoder_2"): [*CLIP, "text_projection"],
    ("flux", "transformer"): UNET,
    ("flux", "text_encoder"): CLIP,
}
#: UNets are large, SDXL's above all; a variant that is tried with a convolution is not tried without.
SLOW = {("sdxl", "unet", variant) for variant in VARIANTS} | {
    ("sd15", "unet", variant) for variant in ("alpha", "rslora")
}
CASES_OF_EFFECT = [
    pytest.param(*place, variant, marks=[pytest.mark.slow] if (*place, variant) in SLOW else [])
    for place in COMPONENTS
    for variant in VARIANTS
]
#: The fields of PEFT 0.13's LoraConfig and LoKrConfig (with those of PeftConfig) that could be in a file of ours.
KNOWN_TO_PEFT_0_13 = {
    *("peft_type", "task_type", "base_model_name_or_path", "inference_mode", "r", "rank_pattern", "alpha_pattern"),
    *("target_modules", "lora_alpha", "bias", "use_dora", "use_rslora", "alpha", "decompose_both", "decompose_factor"),
}


def trained(base: Path, component: str, folder: Path, variant: str = "alpha", **more: Any) -> PeftAdapter:
    """`folder/{component}` as PEFT saved it."""
    names = next(names for (_, name), names in COMPONENTS.items() if name == component)
    if "text_projection" not in dict(load_component(base, component).named_modules()):
        names = [name for name in names if name != "text_projection"]
    return peft_adapter(base, component, folder / component, 4, 6, names, **{**VARIANTS[variant], **more})


def loaded(call: LoadCall, folder: Path, model: Any) -> Any:
    """What its users do, with no option: the model with real weights that PEFT made of `model`."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
        warnings.filterwarnings("ignore", ".*(lora_bias=True|groups > 1).*")  # over what could not be merged
        adapted = attrgetter(call.method)(importlib.import_module(call.library))(
            model, str(folder), subfolder=call.weight_name
        )
    assert isinstance(adapted, PeftModel)
    return adapted.get_base_model().eval()


def config_of(exported: Exported, component: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((exported.folder / f"peft/{component}/adapter_config.json").read_bytes())
    return found


def tensors_of(exported: Exported, component: str) -> dict[str, torch.Tensor]:
    return load_file(exported.folder / f"peft/{component}/adapter_model.safetensors")


def call_of(exported: Exported, component: str) -> LoadCall:
    return next(load for load in exported.bundle.loads if load.attributes == {"model": component})


# --- the effect -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "component", "variant"), CASES_OF_EFFECT)
def test_peft_computes_what_was_trained_and_the_proof_says_so(
    base: BaseOf, tmp_path: Path, family: str, component: str, variant: str
) -> None:
    adapter = trained(base(family), component, tmp_path / "trained", variant)
    exported = run_line(tmp_path / "trained", base(family), tmp_path, ALONE)
    report = exported.report()
    assert report.passed, report.failures
    assert {tuple(each for each in names if "==" not in each) for names in report.consumers.values()} == {("peft",)}
    effect = (adapter.adapted_output - adapter.base_output).norm()
    assert effect > 1e-3 * adapter.base_output.norm(), "an adapter without effect would prove nothing"
    model = loaded(call_of(exported, component), exported.folder, load_component(base(family), component))
    assert (forward(model) - adapter.adapted_output).norm() <= 1e-6 * effect


def test_another_alpha_has_another_effect(base: BaseOf, tmp_path: Path) -> None:
    """The comparison above can fail: by the smallest mistake that is made."""
    adapter = trained(base("flux"), "transformer", tmp_path / "trained")
    exported = run_line(tmp_path / "trained", base("flux"), tmp_path, ALONE)
    config = exported.folder / "peft/transformer/adapter_config.json"
    config.write_text(json.dumps(config_of(exported, "transformer") | {"lora_alpha": 6.0001}))
    model = loaded(call_of(exported, "transformer"), exported.folder, load_component(base("flux"), "transformer"))
    effect = (adapter.adapted_output - adapter.base_output).norm()
    assert (forward(model) - adapter.adapted_output).norm() > 1e-6 * effect


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", ["sd15", "sdxl", "flux"])
def test_exporting_what_was_written_gives_the_same_export(
    base: BaseOf, tmp_path: Path, family: str, variant: str
) -> None:
    for of, component in COMPONENTS:
        if of == family and component != "unet":
            trained(base(family), component, tmp_path / "trained", variant)
    exported = run_line(tmp_path / "trained", base(family), tmp_path, BOTH)
    again = run_line(exported.folder / "peft", base(family), tmp_path, BOTH)
    assert again.source.root != exported.source.root
    assert again.bundle.files == exported.bundle.files
    assert {file.layout for file in again.bundle.files} == {"diffusers", "peft"}


@pytest.mark.parametrize("scale", [2.0, 1 / 3, 0.1, 5.656854249492381])
def test_scale_is_stated_and_not_folded(base: BaseOf, tmp_path: Path, scale: float) -> None:
    model = read_base(base("sd15"))
    names = names_in(model, "text_encoder", "_proj$")
    deltas = deltas_for(model, "text_encoder", names, 3, scale) | deltas_for(model, "text_encoder", names[:2], 4, 1.5)
    for options in (ALONE, ExportOptions(layouts=("peft",), scale="header")):
        plan = planned(model, {"text_encoder": deltas}, options)
        assert plan.transforms == ()
        layers = layers_of(load_planned(plan, tmp_path, base("sd15")))
        assert set(layers) == set(deltas)
        for name, delta in deltas.items():
            assert layers[name].scaling["default"] == pytest.approx(delta.scale, rel=1e-15), name
            assert torch.equal(layers[name].lora_A["default"].weight, delta.a), name
            assert torch.equal(layers[name].lora_B["default"].weight, delta.b), name


# --- the files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["dora", "bias", "patterns"])
@pytest.mark.parametrize(("family", "component"), [place for place in COMPONENTS if place != ("sdxl", "unet")])
def test_tensors_are_those_that_peft_saved_by_the_names_that_it_gave_them(
    base: BaseOf, tmp_path: Path, family: str, component: str, variant: str
) -> None:
    adapter = trained(base(family), component, tmp_path / "trained", variant)
    written = tensors_of(run_line(tmp_path / "trained", base(family), tmp_path, ALONE), component)
    saved = load_file(adapter.folder / "adapter_model.safetensors")
    assert set(written) == set(saved)
    assert all(torch.equal(written[key], tensor) for key, tensor in saved.items())


def test_files_and_calls_are_one_folder_for_each_component(base: BaseOf, tmp_path: Path) -> None:
    for component in ("text_encoder", "transformer"):
        trained(base("flux"), component, tmp_path / "trained")
    exported = run_line(tmp_path / "trained", base("flux"), tmp_path, BOTH)
    assert [(file.role, file.path) for file in exported.bundle.files if file.layout == "peft"] == [
        (role, f"peft/{component}/{name}")
        for component in ("transformer", "text_encoder")
        for role, name in (("config", "adapter_config.json"), ("weights", "adapter_model.safetensors"))
    ]
    assert [load for load in exported.bundle.loads if load.library == "peft"] == [
        LoadCall(
            library="peft",
            pipeline="FluxPipeline",
            method="PeftModel.from_pretrained",
            weight_name=f"peft/{component}",
            attributes={"model": component},
        )
        for component in ("transformer", "text_encoder")
    ]


@pytest.mark.parametrize("variant", VARIANTS)
def test_config_is_minimal_and_says_nothing_that_some_version_does_not_know(
    base: BaseOf, tmp_path: Path, variant: str
) -> None:
    trained(base("flux"), "transformer", tmp_path / "trained", variant)
    exported = run_line(tmp_path / "trained", base("flux"), tmp_path, ALONE)
    config = config_of(exported, "transformer")
    more = {"lora_bias"} if variant == "bias" else set()
    assert set(config) - more <= KNOWN_TO_PEFT_0_13
    assert set(config) <= {field.name for field in fields(LoraConfig)}
    assert (config["peft_type"], config["bias"], config["task_type"]) == ("LORA", "none", None)
    assert config["inference_mode"] is True
    assert config["use_rslora"] is False, "its scale is an alpha like any other"
    assert config["use_dora"] is (variant == "dora")
    assert config.get("lora_bias", False) is (variant == "bias")
    assert config["base_model_name_or_path"] is None
    content = (exported.folder / "peft/transformer/adapter_config.json").read_bytes()
    assert content == canonical_json(config)


def test_config_names_the_base_by_its_hub_id_and_never_by_a_path(base: BaseOf) -> None:
    model = read_base(base("flux"))
    deltas = {"transformer": deltas_for(model, "transformer", names_in(model, "transformer", "to_q$"))}
    assert planned_config(model, deltas)["base_model_name_or_path"] is None
    assert planned_config(replace(model, model="org/flux"), deltas)["base_model_name_or_path"] == "org/flux"


def test_bytes_do_not_depend_on_the_order_of_the_layers(base: BaseOf, tmp_path: Path) -> None:
    model = read_base(base("flux"))
    names = names_in(model, "transformer", "to_[qk]$")
    deltas = deltas_for(model, "transformer", names) | deltas_for(model, "transformer", names[:3], 2, 1.5)
    there = written(planned(model, {"transformer": deltas}), tmp_path / "there")
    back = written(planned(model, {"transformer": dict(reversed(deltas.items()))}), tmp_path / "back")
    assert len(there) == 2
    assert there == back


def test_file_without_tensors_says_so(base: BaseOf, tmp_path: Path) -> None:
    trained(base("flux"), "transformer", tmp_path / "trained")
    exported = run_line(tmp_path / "trained", base("flux"), tmp_path, ALONE)
    config, weights = exported.bundle.files
    assert (config.role, config.tensors_sha256) == ("config", None)
    assert weights.tensors_sha256 is not None
    path = exported.folder / config.path
    assert config.size == path.stat().st_size
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask, "as its siblings, and not as a temporary file"
    assert {each.name for each in path.parent.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}


def test_requested_dtype_is_that_of_the_factors(base: BaseOf, tmp_path: Path) -> None:
    trained(base("flux"), "transformer", tmp_path / "trained", "dora")
    options = ExportOptions(layouts=("diffusers", "peft"), dtype="bfloat16")
    exported = run_line(tmp_path / "trained", base("flux"), tmp_path, options)
    report = exported.report()
    assert report.passed, report.failures
    assert {tensor.dtype for tensor in tensors_of(exported, "transformer").values()} == {torch.bfloat16}
    said = [(transform.kind, transform.layout) for transform in exported.bundle.transforms]
    assert said == [("fold-scale", "diffusers"), ("cast", "diffusers"), ("cast", "peft")]


def test_dtype_that_cannot_hold_a_layer_leaves_it_in_float32(base: BaseOf, tmp_path: Path) -> None:
    model = read_base(base("flux"))
    small, *names = names_in(model, "transformer", "to_q$")
    deltas = deltas_for(model, "transformer", [small, *names])
    deltas[small] = replace(deltas[small], b=deltas[small].b * 1e-9)
    plan = planned(model, {"transformer": deltas}, ExportOptions(layouts=("peft",), dtype="float16"))
    tensors = next(file.tensors for file in plan.files if file.role == "weights")
    assert {key for key, tensor in tensors.items() if tensor.dtype == "F32"} == {
        f"base_model.model.{small}.lora_{part}.weight" for part in "AB"
    }
    assert [(t.kind, t.modules) for t in plan.transforms if t.kind == "store-fp32"] == [("store-fp32", (small,))]


def test_summary_counts_an_adapter_once(base: BaseOf, tmp_path: Path) -> None:
    trained(base("flux"), "transformer", tmp_path / "trained")
    exported = run_line(tmp_path / "trained", base("flux"), tmp_path, BOTH)
    alone = run_line(tmp_path / "trained", base("flux"), tmp_path, ALONE)
    summary = summarize(exported.adapter, exported.plan)
    assert summary == summarize(alone.adapter, alone.plan)
    assert summary["transformer"].parameters == sum(t.numel() for t in tensors_of(exported, "transformer").values())


# --- names ------------------------------------------------------------------------------------------------------------


def planned(base: Base, components: dict[str, dict[str, LowRank]], options: ExportOptions = ALONE) -> Plan:
    return convert(Adapter(base.family.name, components), base, options, "anyone")


def planned_config(base: Base, components: dict[str, dict[str, LowRank]]) -> dict[str, Any]:
    content = planned(base, components).files[0].content
    assert content is not None
    found: dict[str, Any] = json.loads(content)
    return found


def written(plan: Plan, folder: Path) -> dict[str, bytes]:
    from adapterline.scratch import Scratch
    from adapterline.serialize import serialize

    scratch = Scratch(folder, 10**9, 1e6)
    bundle = serialize(plan, scratch)
    return {file.path: (scratch.folder(bundle.digest) / file.path).read_bytes() for file in bundle.files}


def load_planned(plan: Plan, folder: Path, base: Path) -> Any:
    """The model that the plan's only component is for, with it."""
    for path, content in written(plan, folder / "scratch").items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    (call,) = plan.loads
    return loaded(call, folder, load_component(base, call.attributes["model"]))


def test_layer_whose_name_ends_others_is_adapted_alone(base: BaseOf, tmp_path: Path) -> None:
    """FLUX has a `proj_out`, and one in every single block: peft takes a name for all that end in it."""
    model = read_base(base("flux"))
    assert len(names_in(model, "transformer", r"(^|\.)proj_out$")) > 2
    plan = planned(model, {"transformer": deltas_for(model, "transformer", ["proj_out"])})
    assert set(layers_of(load_planned(plan, tmp_path, base("flux")))) == {"proj_out"}


def test_rank_and_alpha_of_a_look_alike_are_its_own(base: BaseOf, tmp_path: Path) -> None:
    model = read_base(base("flux"))
    names = names_in(model, "transformer", r"(^|\.)proj_out$")
    deltas = deltas_for(model, "transformer", names) | deltas_for(model, "transformer", ["proj_out"], 2, 0.5)
    config = planned_config(model, {"transformer": deltas})
    assert (config["rank_pattern"], config["alpha_pattern"]) == ({"^proj_out": 2}, {"^proj_out": 1})
    layers = layers_of(load_planned(planned(model, {"transformer": deltas}), tmp_path, base("flux")))
    found = {name: (layer.r["default"], layer.scaling["default"]) for name, layer in layers.items()}
    assert found == {name: (2, 0.5) if name == "proj_out" else (4, 2.0) for name in names}


def test_patterns_are_whole_names_which_every_version_of_peft_understands(base: BaseOf) -> None:
    model = read_base(base("flux"))
    names = names_in(model, "transformer", "to_q$")
    deltas = deltas_for(model, "transformer", names) | deltas_for(model, "transformer", names[:1], 2)
    assert planned_config(model, {"transformer": deltas})["rank_pattern"] == {names[0]: 2}


def test_names_of_text_encoders_are_those_of_their_classes(base: BaseOf, tmp_path: Path) -> None:
    for component in ("text_encoder", "text_encoder_2"):
        trained(base("sdxl"), component, tmp_path / "trained")
    exported = run_line(tmp_path / "trained", base("sdxl"), tmp_path, ALONE)
    for component in ("text_encoder", "text_encoder_2"):
        own = {f"base_model.model.{name}" for name, _ in load_component(base("sdxl"), component).named_modules()}
        assert {key.partition(".lora_")[0] for key in tensors_of(exported, component)} <= own


def test_other_names_of_a_text_encoder_load_by_a_key_mapping(base: BaseOf, tmp_path: Path) -> None:
    """As the file for a `CLIPTextModel` does where transformers 4 calls its modules `text_model.`."""
    adapter = trained(base("sdxl"), "text_encoder_2", tmp_path / "trained")
    folder = adapter.folder
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors = {k.replace("text_model.", ""): t for k, t in tensors.items() if "text_model." in k}
    save_file(tensors, folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"target_modules": CLIP}))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
        model = load_component(base("sdxl"), "text_encoder_2")
        adapted = PeftModel.from_pretrained(model, str(folder), key_mapping={"^": "text_model."})
    loaded_tensors = dict(adapted.named_parameters())
    assert len(tensors) > 4
    for key, tensor in tensors.items():
        name = key.replace("base_model.model.", "base_model.model.text_model.").replace(".weight", ".default.weight")
        assert torch.equal(loaded_tensors[name], tensor)


def test_depthwise_layer_keeps_its_rank_and_its_groups(tmp_path: Path) -> None:
    sana = CASES["sana"]

    def depthwise(model: torch.nn.Module) -> list[str]:
        return [name for name, _ in model.named_modules() if name.endswith("ff.conv_depth")]

    model = train(sana.build("transformer"), tmp_path / "trained" / "transformer", depthwise, 32, 5)
    exported = run_line(tmp_path / "trained", sana.write(tmp_path / "base"), tmp_path, BOTH)
    report = exported.report()
    assert report.passed, report.failures
    same_layers(model, loaded(call_of(exported, "transformer"), exported.folder, sana.build("transformer")))


def test_second_expert_of_wan_has_a_folder_of_its_own(tmp_path: Path) -> None:
    wan = CASES["wan"]
    models = {
        name: train(wan.build(name), tmp_path / "trained" / name, lambda model: ["blocks.1.attn1.to_q"])
        for name in ("transformer", "transformer_2")
    }
    exported = run_line(tmp_path / "trained", wan.write(tmp_path / "base"), tmp_path, BOTH)
    report = exported.report()
    assert report.passed, report.failures
    for name, model in models.items():
        same_layers(model, loaded(call_of(exported, name), exported.folder, wan.build(name)))


# --- LoKr -------------------------------------------------------------------------------------------------------------

LOKR = ExportOptions(layouts=("diffusers", "peft"), keep_form=True)


def lokr_checkpoint(base: Path, folder: Path, *ranks: int | None, left: tuple[int, int] = (4, 4)) -> Path:
    """A LoKr layer for each rank of the right factor; None: it is whole."""
    layers = ("transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.to_k")
    draw = torch.Generator().manual_seed(0)
    tensors = {}
    for module, rank in zip(layers, ranks, strict=False):
        out, inputs = targets(read_base(base), "transformer")[module].shape
        stem, rows, columns = f"lycoris_{module.replace('.', '_')}", out // left[0], inputs // left[1]
        tensors |= {f"{stem}.lokr_w1": torch.randn(left, generator=draw), f"{stem}.alpha": torch.tensor(3.0)}
        if rank is None:
            tensors[f"{stem}.lokr_w2"] = torch.randn(rows, columns, generator=draw)
        else:
            tensors[f"{stem}.lokr_w2_a"] = torch.randn(rows, rank, generator=draw)
            tensors[f"{stem}.lokr_w2_b"] = torch.randn(rank, columns, generator=draw)
    save_file(tensors, folder / "lokr.safetensors")
    return folder / "lokr.safetensors"


@pytest.mark.parametrize("ranks", [(2, 2), (2, 1), (None, None), (2, None)])
def test_lokr_that_is_kept_is_lokr_to_peft_too(base: BaseOf, tmp_path: Path, ranks: tuple[int | None, ...]) -> None:
    checkpoint = lokr_checkpoint(base("flux2"), tmp_path, *ranks)
    exported = run_line(checkpoint, base("flux2"), tmp_path, LOKR)
    report = exported.report()
    assert report.passed, report.failures
    assert "peft" in {check.consumer for check in report.checks}
    config, source = config_of(exported, "transformer"), load_file(checkpoint)
    assert config["peft_type"] == "LOKR"
    assert set(config) <= KNOWN_TO_PEFT_0_13 & {field.name for field in fields(LoKrConfig)}
    stem = "transformer_blocks.0.attn.to_q"
    left = tensors_of(exported, "transformer")[f"base_model.model.{stem}.lokr_w1"]
    assert torch.equal(left, source[f"lycoris_{stem.replace('.', '_')}.lokr_w1"]), "the scale is stated, not folded"
    again = run_line(exported.folder / "peft", base("flux2"), tmp_path, LOKR)
    assert again.bundle.files == exported.bundle.files


@pytest.mark.parametrize(
    ("ranks", "left", "message"),
    [((7,), (4, 4), "PEFT would make it whole"), ((2,), (8, 2), "no single decompose_factor")],
)
def test_lokr_that_peft_would_build_otherwise_is_refused(
    base: BaseOf, tmp_path: Path, ranks: tuple[int, ...], left: tuple[int, int], message: str
) -> None:
    with pytest.raises(ConversionError, match=message):
        run_line(lokr_checkpoint(base("flux2"), tmp_path, *ranks, left=left), base("flux2"), tmp_path, LOKR)


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_magnitude_that_some_layers_lack_is_refused(base: BaseOf) -> None:
    model = read_base(base("flux"))
    deltas = deltas_for(model, "transformer", names_in(model, "transformer", "to_q$"))
    (first, *_) = deltas
    deltas[first] = replace(deltas[first], magnitude=torch.ones(deltas[first].shape[0]))
    with pytest.raises(ConversionError, match="have a DoRA magnitude"):
        planned(model, {"transformer": deltas})


def test_bias_beside_a_magnitude_is_refused(base: BaseOf) -> None:
    model = read_base(base("flux"))
    deltas = {
        name: replace(delta, magnitude=torch.ones(delta.shape[0]), bias=torch.ones(delta.shape[0]))
        for name, delta in deltas_for(model, "transformer", names_in(model, "transformer", "to_q$")).items()
    }
    with pytest.raises(ConversionError, match="biases beside its DoRA magnitudes"):
        planned(model, {"transformer": deltas})


def test_control_adapter_whose_first_layer_is_wider_is_refused(base: BaseOf) -> None:
    model = read_base(base("flux"))
    (delta,) = deltas_for(model, "transformer", ["x_embedder"]).values()
    wide = {"transformer": {"x_embedder": replace(delta, a=torch.cat([delta.a, delta.a], 1))}}
    assert planned(model, wide, ExportOptions()).files
    with pytest.raises(ConversionError, match="x_embedder changes a weight of"):
        planned(model, wide)


def test_norms_that_are_replaced_are_refused(base: BaseOf) -> None:
    model = read_base(base("flux"))
    deltas = deltas_for(model, "transformer", names_in(model, "transformer", "to_q$"))
    norms = {"transformer": {"transformer_blocks.0.attn.norm_q.weight": torch.ones(16)}}
    adapter = Adapter("flux", {"transformer": deltas}, norms=norms)
    assert convert(adapter, model, ExportOptions()).files
    with pytest.raises(ConversionError, match="the peft layout cannot carry them"):
        convert(adapter, model, BOTH)


# --- published --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(base: BaseOf, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Both layouts of an adapter of a transformer and a text encoder."""
    folder = tmp_path_factory.mktemp("exported")
    for component in ("transformer", "text_encoder"):
        trained(base("flux"), component, folder / "trained")
    return run_line(folder / "trained", base("flux"), folder, BOTH)


def test_each_published_snippet_does_the_same(base: BaseOf, exported: Exported, tmp_path: Path) -> None:
    published = publish(exported, "anyone", tmp_path / "published")
    outputs = []
    for text in snippets(manifest_of(exported, "anyone"), published.load, str(base("flux"))):
        names: dict[str, Any] = {}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
            exec(text, names)
        pipe = names["pipe"]
        models = (
            getattr(model, "get_base_model", lambda m=model: m)() for model in (pipe.transformer, pipe.text_encoder)
        )
        outputs.append([forward(model) for model in models])
    usual, pefts = outputs
    plain = [forward(load_component(base("flux"), name)) for name in ("transformer", "text_encoder")]
    for one, other, without in zip(usual, pefts, plain, strict=True):
        assert (one - other).norm() <= 1e-5 * (one - without).norm()
        assert (one - without).norm() > 0.01 * without.norm()


def test_tokens_and_a_text_encoders_adapter_load_together(base: BaseOf, tmp_path: Path) -> None:
    """PEFT's model around a text encoder is no place to add tokens to: its snippet adds them before."""
    pivotal = pivotal_tuning(base("sd15"), "sd15", tmp_path / "trained")
    draw = torch.Generator().manual_seed(0)
    tensors = load_file(pivotal.folder / WEIGHT_NAME)
    for name in names_in(read_base(base("sd15")), "text_encoder", "q_proj$"):
        out, inputs = targets(read_base(base("sd15")), "text_encoder")[name].shape
        stem = f"text_encoder.text_model.{name}"
        tensors |= {
            f"{stem}.lora_A.weight": torch.randn(4, inputs, generator=draw),
            f"{stem}.lora_B.weight": torch.randn(out, 4, generator=draw),
        }
    save_file(tensors, pivotal.folder / WEIGHT_NAME)
    exported = run_line(pivotal.folder, base("sd15"), tmp_path, BOTH)
    published = publish(exported, "anyone", tmp_path / "published")
    pipes = []
    for text in snippets(manifest_of(exported, "anyone"), published.load, str(base("sd15"))):
        names: dict[str, Any] = {}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
            exec(text, names)
        pipes.append(names["pipe"])
    usual, pefts = pipes
    assert isinstance(pefts.text_encoder, PeftModel)
    (one,), (other,) = encoded(usual), encoded(pefts)
    assert (one - other).norm() <= 1e-5 * one.norm()
    with pefts.text_encoder.disable_adapter():
        assert (encoded(pefts)[0] - one).norm() > 1e-3 * one.norm()


def test_published_folder_is_proven_whole(exported: Exported, tmp_path: Path) -> None:
    published = publish(exported, "anyone", tmp_path / "published")
    report = validate_file(Path(published.load), exported.base, exported.source)
    assert report.passed, report.failures
    assert report.bundle_digest == exported.bundle.digest
    assert set(report.consumers) == {file.path for file in exported.bundle.files}
    (Path(published.load) / "peft/transformer/adapter_config.json").write_bytes(b"{}\n")
    with pytest.raises(Exception, match="peft_type"):
        validate_file(Path(published.load), exported.base, exported.source)


def test_snippet_has_one_load_for_the_weights_and_pefts_is_its_own(exported: Exported) -> None:
    manifest = manifest_of(exported, "anyone")
    kohya = LoadCall(pipeline="FluxPipeline", method="load_lora_weights", weight_name="kohya/anyone.safetensors")
    file = ExportedFile(**manifest.files[0].model_dump() | {"layout": "kohya", "path": kohya.weight_name})
    all_three = manifest.model_copy(update={"files": (file, *manifest.files), "loads": (kohya, *manifest.loads)})
    usual, pefts = snippets(all_three, "here", None)
    assert usual.splitlines() == [
        "import diffusers",
        "",
        "pipe = diffusers.FluxPipeline.from_pretrained('the base model')",
        f"pipe.load_lora_weights('here', weight_name={WEIGHT_NAME!r})",
    ]
    assert pefts.splitlines() == [
        "import diffusers",
        "from peft import PeftModel",
        "",
        "pipe = diffusers.FluxPipeline.from_pretrained('the base model')",
        "pipe.transformer = PeftModel.from_pretrained(pipe.transformer, 'here', subfolder='peft/transformer')",
        "pipe.text_encoder = PeftModel.from_pretrained(pipe.text_encoder, 'here', subfolder='peft/text_encoder')",
    ]
    alone = manifest.model_copy(update={"files": (file,), "loads": (kohya,)})
    (only,) = snippets(alone, "here", None)
    assert only.splitlines()[-1] == "pipe.load_lora_weights('here', weight_name='kohya/anyone.safetensors')"
    card = make_card(all_three).decode()
    assert card.count("PeftModel.from_pretrained") == 2
    assert card.count("load_lora_weights(") == 1


def test_in_a_bucket_every_file_lies_in_its_folder(
    exported: Exported, tmp_path: Path, s3: S3Client, bucket: str
) -> None:
    package = make_package(manifest_of(exported, "anyone"), exported.folder, tmp_path / "package")
    place = S3Destination(f"s3://{bucket}/loras", "anyone")
    place.release(package, place.stage(package), order_of(1))
    for file in exported.bundle.files:
        found = s3.get_object(Bucket=bucket, Key=f"loras/anyone/{package.sha12}/{file.path}")["Body"].read()
        assert found == (exported.folder / file.path).read_bytes()


@pytest.mark.slow
def test_on_the_hub_peft_finds_its_folder_and_the_usual_file_is_still_found_by_the_repository_alone(
    base: BaseOf, exported: Exported, tmp_path: Path, hub: Hub
) -> None:
    package = make_package(manifest_of(exported, "anyone"), exported.folder, tmp_path / "package")
    place = HubDestination("hf://acme", "anyone")
    place.release(package, place.stage(package), order_of(1))
    code = """
import sys
import warnings
from diffusers.loaders.lora_base import _best_guess_weight_name
from tests.bases import forward

def computed(code):
    names = {}
    exec(code, names)
    return forward(names["pipe"].transformer.get_base_model())

warnings.simplefilter("ignore")
there, here = sys.argv[1:]
assert computed(there).equal(computed(here))
print(_best_guess_weight_name("acme/anyone"))
"""
    manifest = package.manifest
    texts = [snippets(manifest, where, str(base("flux")))[1] for where in ("acme/anyone", str(package.folder))]
    done = subprocess.run(
        [sys.executable, "-c", code, *texts],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": hub.url, "HF_TOKEN": WRITER},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == WEIGHT_NAME, done.stderr[-2000:]


def test_plan_without_content_is_a_safetensors_file() -> None:
    assert FilePlan("weights", "peft", "x").content is None
