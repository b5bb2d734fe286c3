"""docs/compatibility.md says what really happens."""

from __future__ import annotations

import pytest

from tests.compatibility import PAGE, page
from tests.writers.cases import CASES, Case
from tests.writers.observe import Bases, expected, outcome


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    return Bases(tmp_path_factory.mktemp("bases"))


def _quick() -> set[str]:
    """One family for each type of adapter of each trainer, the smallest in the tests: the others are slow together."""
    found: dict[tuple[str, str], Case] = {}
    for case in CASES:
        key = case.trainer, case.kind
        if key not in found or _SIZES.get(case.family, 1) < _SIZES.get(found[key].family, 1):
            found[key] = case
    return {case.id for case in found.values()}


_SIZES = {"sd15": 2, "sdxl": 3}


def _parameters() -> list[object]:
    quick = _quick()
    marks = {case.id: () if case.id in quick else (pytest.mark.slow,) for case in CASES}
    return [pytest.param(case, id=case.id, marks=marks[case.id]) for case in CASES]


@pytest.mark.parametrize("case", _parameters())
def test_case_comes_out_as_the_page_says(case: Case, bases: Bases) -> None:
    assert outcome(case, bases) == expected(case)


def test_page_is_what_the_cases_give() -> None:
    assert PAGE.read_text() == page({case: expected(case) for case in CASES}), "run `make compatibility`"
