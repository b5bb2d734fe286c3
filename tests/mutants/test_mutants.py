"""The proof fails for a broken file, and names what broke; it passes one that only looks different.

Every edit is tried here on four adapters; `make mutants` tries it on all families.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.mutants import factors, header
from tests.mutants.adapters import Good
from tests.mutants.copy import Copy
from tests.mutants.edits import BREAKING, EDITS, KEEPING, Edit, meaning_of, name_of
from tests.mutants.judge import CAUGHT, KEPT, NOT_APPLICABLE, REFUSED, SURVIVED, UNNAMED, WITHIN, Trial
from tests.mutants.page import PAGE, section

PLAIN = {
    Good("sd15", few=True): "header",
    Good("sdxl", few=True): "portable",
    Good("flux", few=True): "beside",
    Good("wan", few=True): "header",
}
#: What only these have.
SPECIAL: dict[tuple[Good, str], tuple[Edit, ...]] = {
    (Good("flux", "DoRA", dora=True, few=True), "header"): (
        factors.magnitude_lost,
        factors.every_magnitude_lost,
        factors.magnitude_permuted,
        factors.one_ulp_in_a_magnitude,
        factors.magnitudes_exchanged,
        header.dora_switched_off,
    ),
    (Good("flux", "biases", bias=True, few=True), "portable"): (
        factors.bias_lost,
        factors.every_bias_zeroed,
        factors.bias_scaled,
    ),
    (Good("wan", "mixed ranks", mixed=True, few=True), "header"): (
        header.rank_pattern_lost,
        header.alpha_pattern_lost,
        header.alpha_pattern_edited,
    ),
    (Good("flux", "a scale of 2", alpha=8, few=True), "portable"): (factors.one_ulp_in_a, factors.one_ulp_in_b),
}
TRIALS = [(good, mode, edit) for good, mode in PLAIN.items() for edit in EDITS]
TRIALS += [(good, mode, edit) for (good, mode), edits in SPECIAL.items() for edit in edits]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Models this small lose more by sharing their work out than they win."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Good, str], Trial]:
    return functools.cache(lambda good, mode: Trial.of(good, mode, tmp_path_factory.mktemp("good")))


@pytest.mark.parametrize(
    ("good", "mode", "edit"), TRIALS, ids=[f"{name_of(edit)}, {good.name}" for good, _, edit in TRIALS]
)
def test_proof_fails_for_broken_files_alone_and_names_what_broke(
    trial: Callable[[Good, str], Trial], tmp_path: Path, good: Good, mode: str, edit: Edit
) -> None:
    verdict = trial(good, mode).judge(edit, tmp_path)
    assert verdict.is_good, verdict
    assert verdict.outcome != NOT_APPLICABLE or good in PLAIN


def test_every_edit_is_tried_on_one_of_these(trial: Callable[[Good, str], Trial], tmp_path: Path) -> None:
    special = {edit for edits in SPECIAL.values() for edit in edits}
    for edit in set(EDITS) - special:
        assert any(_applies(trial(good, mode), edit) for good, mode in PLAIN.items()), name_of(edit)


def _applies(trial: Trial, edit: Edit) -> bool:
    from tests.mutants.copy import NotApplicableError

    try:
        edit(Copy.of(trial.exported, f"{trial.good.name} {trial.mode} {name_of(edit)}"))
    except NotApplicableError:
        return False
    return True


# --- the judge --------------------------------------------------------------------------------------------------------


def nothing(copy: Copy) -> tuple[str, ...]:
    """nothing at all"""
    return (copy.layers[0].module,)


def something_unsaid(copy: Copy) -> tuple[str, ...]:
    """breaks one module, and wants another one named"""
    copy.get(copy.layers[0], "b").zero_()
    return (copy.layers[1].module,)


def test_judge_tells_mistakes_of_the_proof(
    trial: Callable[[Good, str], Trial], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = trial(next(iter(PLAIN)), "header")
    folders = iter([tmp_path / name for name in "abc"])
    assert good.judge(nothing, next(folders)).outcome == SURVIVED
    assert good.judge(something_unsaid, next(folders)).outcome == UNNAMED
    monkeypatch.setattr("tests.mutants.judge.KEEPING", (something_unsaid,))
    assert good.judge(something_unsaid, next(folders)).outcome == REFUSED


def test_smallest_edit_is_within_the_bound_only_where_a_scale_was_rounded(
    trial: Callable[[Good, str], Trial], tmp_path: Path
) -> None:
    sdxl, scale_of_two = Good("sdxl", few=True), Good("flux", "a scale of 2", alpha=8, few=True)
    for edit in (factors.one_ulp_in_a, factors.one_ulp_in_b):
        assert trial(sdxl, "portable").judge(edit, tmp_path / "a" / name_of(edit)).outcome == WITHIN
        assert trial(sdxl, "header").judge(edit, tmp_path / "b" / name_of(edit)).outcome == CAUGHT
        assert trial(sdxl, "beside").judge(edit, tmp_path / "c" / name_of(edit)).outcome == CAUGHT
        assert trial(scale_of_two, "portable").judge(edit, tmp_path / "d" / name_of(edit)).outcome == CAUGHT


def test_good_files_pass_in_every_mode(trial: Callable[[Good, str], Trial], tmp_path: Path) -> None:
    for mode in ("portable", "header", "beside"):
        good = trial(Good("flux", few=True), mode)
        assert good.judge(KEEPING[0], tmp_path / mode).outcome == KEPT


# --- what is said of it -----------------------------------------------------------------------------------------------


def test_page_lists_every_edit() -> None:
    assert section() in PAGE.read_text()


def test_every_edit_says_what_it_does_and_nothing_twice() -> None:
    meanings = [meaning_of(edit) for edit in EDITS]
    assert all(meanings)
    assert len(set(meanings)) == len(meanings)
    assert sum(len(edits) for edits in BREAKING.values()) >= 40
