"""Every trainer's files, read: what comes out is what the trainer computed."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapterline.errors import RefusedError
from adapterline.layouts import convert
from adapterline.values import ExportOptions
from tests.writers.cases import CASES, Case
from tests.writers.observe import Bases, check_read, read


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    return Bases(tmp_path_factory.mktemp("bases"))


def test_cases_are_told_apart() -> None:
    assert len({case.id for case in CASES}) == len(CASES)


def _readable() -> list[object]:
    """Those of SDXL, the largest of the small models, are slow together; only a type that others lack is not."""
    others = {(case.trainer, case.kind) for case in CASES if case.family != "sdxl"}
    marks = {True: (pytest.mark.slow,), False: ()}
    return [
        pytest.param(case, id=case.id, marks=marks[case.family == "sdxl" and (case.trainer, case.kind) in others])
        for case in CASES
        if not case.refused
    ]


@pytest.mark.parametrize("case", _readable())
def test_file_means_what_its_trainer_computed(case: Case, bases: Bases, tmp_path: Path) -> None:
    check_read(*read(case, bases, tmp_path))


@pytest.mark.parametrize("case", [case for case in CASES if case.refused], ids=lambda case: case.id)
def test_what_no_lora_file_carries_is_refused_with_the_reason(case: Case, bases: Bases, tmp_path: Path) -> None:
    with pytest.raises(RefusedError) as caught:
        convert(read(case, bases, tmp_path)[0], bases.base(case.family), ExportOptions(**case.options))
    assert case.refused
    assert case.refused in str(caught.value)
