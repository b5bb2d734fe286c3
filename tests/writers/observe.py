"""Running a case, and comparing what comes of it with the truth."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from adapterline.checkpoints import load_checkpoint
from adapterline.checkpoints.extract import extract
from adapterline.deltas import Delta
from adapterline.errors import ConversionError, RefusedError
from adapterline.families.base import Base, component_of, read_base
from adapterline.families.skeleton import targets
from adapterline.values import Adapter, ExportOptions
from tests.families.tiny import CASES as TINY
from tests.line import Exported, run_line
from tests.writers.cases import Case, Truth, Written

#: Relative error by Frobenius norm: of what is read, of what is exported, of what is exported from 16-bit factors.
READ, EXPORTED, HALVES = 2e-6, 2e-5, 6e-4


class Bases:
    """The folders of every family's small pipeline, made when they are asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = functools.cache(lambda family: TINY[family].write(folder / family))
        self.base = functools.cache(lambda family: read_base(self.path(family)))

    def shapes(self, family: str) -> dict[tuple[str, str], tuple[int, ...]]:
        base: Base = self.base(family)
        return {
            (component, module): target.shape
            for component in base.models
            for module, target in targets(base, component).items()
        }


def write(case: Case, bases: Bases, folder: Path) -> tuple[Path, Written]:
    """The case's file, named as trainers name them."""
    written = case.write(bases.shapes(case.family))
    path = folder / "last.safetensors"
    save_file(written.tensors, path, metadata=written.header or None)
    return path, written


def read(case: Case, bases: Bases, folder: Path) -> tuple[Adapter, Written]:
    """What adapterline takes the case's file for."""
    path, written = write(case, bases, folder)
    options = ExportOptions(**case.options)
    return extract(load_checkpoint(str(path), options, folder), bases.base(case.family), options), written


def check_read(adapter: Adapter, written: Written) -> None:
    """Every module of the truth is there, no other, and does the same."""
    assert {name: set(deltas) for name, deltas in adapter.components.items()} == {
        name: set(modules) for name, modules in written.truth.items()
    }
    for component, modules in written.truth.items():
        for module, truth in modules.items():
            _check_delta(adapter.components[component][module], truth, f"{component}.{module}")


def _check_delta(delta: Delta, truth: Truth, where: str) -> None:
    assert delta.shape == tuple(truth.weight.shape), where
    wanted = truth.weight.flatten(1)
    error = relative(delta.apply(torch.eye(wanted.shape[1], dtype=torch.float64)), wanted)
    assert error < READ, f"{where}: {error}"
    assert (delta.magnitude is None) == (truth.magnitude is None), where
    if truth.magnitude is not None and delta.magnitude is not None:
        assert torch.equal(delta.magnitude.double().flatten(), truth.magnitude), where
    assert (delta.bias is None) == (truth.bias is None), where
    if truth.bias is not None and delta.bias is not None:
        assert relative(delta.bias.double() * delta.scale, truth.bias) < READ, where


def check_exported(exported: Exported, written: Written, limit: float) -> None:
    """The file that was written, read by nothing of adapterline: with the scale folded, it is B @ A."""
    found: dict[str, dict[str, dict[str, torch.Tensor]]] = {}
    for load in exported.bundle.loads:
        with safe_open(exported.folder / load.weight_name, "pt") as file:
            for key in file.keys():  # noqa: SIM118 - it is no mapping
                component = component_of(load, key, exported.base.family)
                stem, part = key.partition(".")[2].removeprefix("text_model.").split(".lora_")
                found.setdefault(component, {}).setdefault(stem, {})[part.removesuffix(".weight")] = file.get_tensor(
                    key
                )
    assert {name: set(modules) for name, modules in found.items()} == {
        name: set(modules) for name, modules in written.truth.items()
    }
    for component, modules in written.truth.items():
        for module, truth in modules.items():
            _check_tensors(found[component][module], truth, limit, f"{component}.{module}")


def _check_tensors(parts: Mapping[str, torch.Tensor], truth: Truth, limit: float, where: str) -> None:
    a, b = parts["A"].double().flatten(1), parts["B"].double().flatten(1)
    if groups := a.shape[0] // b.shape[1] - 1:
        b = torch.block_diag(*b.chunk(groups + 1))
    error = relative(b @ a, truth.weight.flatten(1))
    assert error < limit, f"{where}: {error}"
    if truth.magnitude is not None:
        assert torch.equal(parts["magnitude_vector"].double().flatten(), truth.magnitude), where
    if truth.bias is not None:
        assert relative(parts["B.bias"].double(), truth.bias) < limit, where


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


EXACT = "exact"
EXACT_OR_NEAR = "exact; above `--max-rank` approximate on request"


def expected(case: Case) -> str:
    """The outcome that the case is meant to have."""
    if case.refused:
        return f"refused: {case.refused}"
    return EXACT_OR_NEAR if case.rank_grows else EXACT


def outcome(case: Case, bases: Bases) -> str:
    """What becomes of the case, all the way through the line and its proof: a cell of docs/compatibility.md."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path, written = write(case, bases, folder)
        try:
            exported = run_line(path, bases.path(case.family), folder, ExportOptions(**case.options))
        except RefusedError as error:
            return f"refused: {case.refused}" if case.refused and case.refused in str(error) else f"refused: {error}"
        report = exported.report()
        assert report.passed, report.failures
        check_exported(exported, written, EXPORTED if case.dtype == torch.float32 else HALVES)
        if not case.rank_grows:
            return EXACT
        _check_rank_is_asked_for(case, path, bases.path(case.family), folder)
        return EXACT_OR_NEAR


def _check_rank_is_asked_for(case: Case, path: Path, base: Path, folder: Path) -> None:
    """A rank above the limit is refused with the way out, and the way out is proven."""
    with pytest.raises(ConversionError, match="--approximate"):
        run_line(path, base, folder, ExportOptions(**case.options, max_rank=1))
    near = run_line(path, base, folder, ExportOptions(**case.options, approximate=1))
    report = near.report()
    assert report.passed, report.failures
