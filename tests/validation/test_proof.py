"""The proof fails for every way in which a file can be wrong; each case is a good file, broken once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from adapterline.errors import CheckpointError, ValidationFailedError
from adapterline.families.base import read_base
from adapterline.validation import require, validate_file
from adapterline.values import WEIGHT_NAME, ExportOptions, ValidationReport
from tests.bases import peft_adapter
from tests.line import Exported, run_line

Tensors = dict[str, torch.Tensor]
Header = dict[str, str]

A = "transformer.transformer_blocks.0.attn.to_q.lora_A.weight"
B = "transformer.transformer_blocks.0.attn.to_q.lora_B.weight"
TE_B = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_B.weight"


@pytest.fixture(scope="module")
def checkpoint(base: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PEFT adapters on FLUX's transformer and text encoder: alpha is not rank, in both."""
    folder = tmp_path_factory.mktemp("checkpoint")
    peft_adapter(base("flux"), "transformer", folder / "transformer", 4, 10, ["to_q", "to_k", "to_v", "proj_mlp"])
    peft_adapter(base("flux"), "text_encoder", folder / "text_encoder", 4, 6, ["q_proj", "v_proj"])
    return folder


@pytest.fixture(scope="module")
def exported(
    checkpoint: Path, base: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Exported]:
    """The good export, with the scale folded ("portable") or in the header ("header")."""
    made = {
        mode: run_line(checkpoint, base("flux"), tmp_path_factory.mktemp(mode), ExportOptions(scale=mode))
        for mode in ("portable", "header")
    }
    return made.__getitem__


def broken(good: Exported, out: Path, edit: Callable[[Tensors, Header], None]) -> ValidationReport:
    """The report on a copy of the good file that `edit` changed."""
    with safe_open(good.folder / WEIGHT_NAME, "pt") as file:
        tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
        header = dict(file.metadata() or {})
    edit(tensors, header)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, out / WEIGHT_NAME, header)
    return validate_file(out / WEIGHT_NAME, good.base, good.source, good.options)


def failed(report: ValidationReport) -> set[str]:
    return {check.name for check in report.failures}


@pytest.mark.parametrize("mode", ["portable", "header"])
def test_a_good_file_passes_every_check(exported: Callable[[str], Exported], mode: str) -> None:
    report = exported(mode).report()
    assert report.passed
    assert {check.component for check in report.checks} == {None, "transformer", "text_encoder"}


def test_fails_when_alpha_was_dropped(exported: Callable[[str], Exported], tmp_path: Path) -> None:
    # The factors as trained, and nothing that says 10 / 4: what save_lora_weights without metadata writes.
    report = broken(exported("header"), tmp_path, lambda tensors, header: header.pop("lora_adapter_metadata") and None)
    effects = [check for check in report.failures if check.name.startswith("effect")]
    assert {check.component for check in effects} == {"transformer", "text_encoder"}
    observed = {check.component: check.observed for check in effects}
    assert observed == {"transformer": pytest.approx(0.6, abs=1e-6), "text_encoder": pytest.approx(1 / 3, abs=0.01)}


@pytest.mark.parametrize("key", [A, B, TE_B])
def test_fails_when_one_element_of_one_layer_is_one_ulp_off(
    exported: Callable[[str], Exported], tmp_path: Path, key: str
) -> None:
    def edit(tensors: Tensors, header: Header) -> None:
        element = tensors[key].view(-1)[3:4]
        element.copy_(torch.nextafter(element, torch.tensor([torch.inf])))

    report = broken(exported("header"), tmp_path, edit)
    assert failed(report) == {"effect, exact"}
    (check,) = report.failures
    assert [f"{check.component}.{module}" for module in check.modules] == [
        key.rpartition(".lora_")[0].replace("text_model.", "")
    ]
    assert "1 of" in check.detail


@pytest.mark.parametrize("component", ["transformer", "text_encoder"])
def test_fails_when_one_components_metadata_is_wrong(
    exported: Callable[[str], Exported], tmp_path: Path, component: str
) -> None:
    def edit(tensors: Tensors, header: Header) -> None:
        metadata = json.loads(header["lora_adapter_metadata"])
        metadata[f"{component}.lora_alpha"] *= 2
        header["lora_adapter_metadata"] = json.dumps(metadata)

    report = broken(exported("header"), tmp_path, edit)
    assert {check.component for check in report.failures} == {component}
    assert "effect (relative change of the weight)" in failed(report)


def test_fails_when_orig_mod_is_left_in_the_keys(exported: Callable[[str], Exported], tmp_path: Path) -> None:
    def edit(tensors: Tensors, header: Header) -> None:
        for key in [key for key in tensors if key.startswith("transformer.")]:
            tensors[key.replace("transformer.", "transformer._orig_mod.", 1)] = tensors.pop(key)

    assert not broken(exported("portable"), tmp_path, edit).passed


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_fails_when_something_is_not_finite(exported: Callable[[str], Exported], tmp_path: Path, value: float) -> None:
    report = broken(
        exported("portable"), tmp_path, lambda tensors, header: tensors[B].view(-1)[0:1].fill_(value) and None
    )
    assert {"finite", "effect, exact", "effect (relative change of the weight)"} <= failed(report)


def test_fails_when_a_component_is_dead(exported: Callable[[str], Exported], tmp_path: Path) -> None:
    def edit(tensors: Tensors, header: Header) -> None:
        for key in tensors:
            if key.startswith("text_encoder.") and "lora_B" in key:
                tensors[key].zero_()

    report = broken(exported("portable"), tmp_path, edit)
    assert "alive (some B is not zero)" in failed(report)
    assert {check.component for check in report.failures} == {"text_encoder"}


def test_fails_when_a_layer_is_missing(exported: Callable[[str], Exported], tmp_path: Path) -> None:
    def edit(tensors: Tensors, header: Header) -> None:
        del tensors[A], tensors[B]

    report = broken(exported("portable"), tmp_path, edit)
    assert "no module is missing" in failed(report)


def test_fails_when_a_layer_is_there_that_was_not_trained(exported: Callable[[str], Exported], tmp_path: Path) -> None:
    def edit(tensors: Tensors, header: Header) -> None:
        for key in (A, B):
            tensors[key.replace("attn.to_q", "attn.add_q_proj")] = tensors[key].clone()

    assert "no module is unexpected" in failed(broken(exported("portable"), tmp_path, edit))


def test_fails_when_a_block_does_not_exist(exported: Callable[[str], Exported], tmp_path: Path) -> None:
    def edit(tensors: Tensors, header: Header) -> None:
        for key in (A, B):
            tensors[key.replace("transformer_blocks.0", "transformer_blocks.77")] = tensors.pop(key)

    assert {"all layers arrive", "no module is missing"} <= failed(broken(exported("portable"), tmp_path, edit))


def test_fails_when_two_layers_are_swapped(exported: Callable[[str], Exported], tmp_path: Path) -> None:
    def edit(tensors: Tensors, header: Header) -> None:
        for key in (A, B):
            other = key.replace("to_q", "to_k")
            tensors[key], tensors[other] = tensors[other], tensors[key]

    report = broken(exported("portable"), tmp_path, edit)
    assert len({module for check in report.failures for module in check.modules}) == 2


def test_fails_when_the_dtype_is_not_the_one_asked_for(exported: Callable[[str], Exported], tmp_path: Path) -> None:
    def edit(tensors: Tensors, header: Header) -> None:
        for key in tensors:
            tensors[key] = tensors[key].half()

    assert "dtype" in failed(broken(exported("portable"), tmp_path, edit))


def test_fails_when_the_text_encoder_is_left_out(exported: Callable[[str], Exported], tmp_path: Path) -> None:
    def edit(tensors: Tensors, header: Header) -> None:
        for key in [key for key in tensors if key.startswith("text_encoder.")]:
            del tensors[key]

    report = broken(exported("portable"), tmp_path, edit)
    assert {check.component for check in report.failures} == {"text_encoder"}


def test_fails_when_the_bytes_are_not_the_bundles(exported: Callable[[str], Exported], tmp_path: Path) -> None:
    good = exported("portable")
    data = bytearray((good.folder / WEIGHT_NAME).read_bytes())
    data[-1] ^= 1
    (tmp_path / WEIGHT_NAME).write_bytes(data)
    assert f"{WEIGHT_NAME} has its digest" in failed(good.report(tmp_path))


def test_every_failure_is_in_the_one_error(exported: Callable[[str], Exported], tmp_path: Path) -> None:
    def edit(tensors: Tensors, header: Header) -> None:
        tensors[A].view(-1)[0] = torch.nan
        tensors[TE_B].mul_(2)

    report = broken(exported("portable"), tmp_path, edit)
    with pytest.raises(ValidationFailedError) as caught:
        require(report, "lora")
    assert caught.value.exit_code == 4
    assert all(check.name in str(caught.value) for check in report.failures)
    assert {"transformer", "text_encoder"} <= {check.component for check in report.failures}


def test_without_a_checkpoint_it_proves_that_the_file_loads_and_no_more(
    exported: Callable[[str], Exported], tmp_path: Path
) -> None:
    good = exported("portable")
    report = validate_file(good.folder / WEIGHT_NAME, good.base)
    assert report.passed
    assert report.source_digest is None
    assert not any("effect" in check.name for check in report.checks)


def test_a_file_for_another_base_fails(exported: Callable[[str], Exported], base: Callable[[str], Path]) -> None:
    file = exported("portable").folder / WEIGHT_NAME
    assert not validate_file(file, read_base(base("sd15"))).passed


def test_what_is_no_safetensors_file_is_refused(base: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / WEIGHT_NAME).write_bytes(b"not a file")
    with pytest.raises(CheckpointError, match="not a valid safetensors file"):
        validate_file(tmp_path / WEIGHT_NAME, read_base(base("flux")))
