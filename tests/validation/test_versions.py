"""The table of other versions: what it covers, and what a manifest says by it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from adapterline.validation.consumers import versions
from adapterline.validation.consumers.versions import RIGHT, Row, proven_by_table, table, traits_of
from adapterline.validation.files import LayoutFiles, by_layout
from adapterline.values import ExportOptions
from tests.consumers.environments import ENVIRONMENTS
from tests.consumers.page import PAGE, text_of
from tests.line import Exported
from tests.mutants.adapters import Good

BaseOf = Callable[[str], Path]


def exported(folder: Path, good: Good, mode: str = "portable") -> tuple[Exported, LayoutFiles]:
    made = good.export(mode, folder)
    (files,) = by_layout(made.bundle.files, made.plan.loads)
    return made, files


@pytest.mark.parametrize(
    ("good", "mode", "traits"),
    [
        (Good("qwenimage"), "portable", ()),
        (Good("flux"), "header", ("header", "text encoder")),
        (Good("qwenimage", "DoRA", dora=True), "portable", ("dora",)),
        (Good("wan", "mixed ranks", mixed=True), "portable", ("convolutions", "header", "mixed ranks")),
        (Good("flux", "biases", bias=True), "portable", ("biases", "header", "text encoder")),
    ],
)
def test_a_file_says_its_kind(tmp_path: Path, good: Good, mode: str, traits: tuple[str, ...]) -> None:
    made, files = exported(tmp_path, good, mode)
    assert traits_of(made.folder, files) == traits


def test_a_row_covers_what_has_no_more_than_it(monkeypatch: pytest.MonkeyPatch) -> None:
    row = Row("FluxPipeline", "diffusers", ("convolutions", "header"), {})
    assert row.covers("FluxPipeline", "diffusers", ("header",))
    assert row.covers("FluxPipeline", "diffusers", ("convolutions", "header"))
    assert not row.covers("FluxPipeline", "diffusers", ()), "a scale in the factors is another thing"
    assert not row.covers("FluxPipeline", "diffusers", ("header", "mixed ranks"))
    assert not row.covers("FluxPipeline", "kohya", ("header",))
    assert not row.covers("WanPipeline", "diffusers", ("header",))


def test_a_version_is_named_if_every_row_that_covers_the_file_says_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, files = exported(tmp_path, Good("flux"))
    traits = traits_of(made.folder, files)

    def named(*rows: Row) -> tuple[str, ...]:
        monkeypatch.setattr(versions, "table", lambda: rows)
        return proven_by_table(made.folder, files, {"diffusers": "3"})

    def row(*more: str, **verdicts: str) -> Row:
        results = {f"diffusers=={name[1:]}": verdict for name, verdict in verdicts.items()}
        return Row("FluxPipeline", "diffusers", tuple(sorted({*traits, *more})), results)

    own = row(v1=RIGHT, v2=RIGHT, v3=RIGHT)
    assert named(own) == ("diffusers==1", "diffusers==2"), "the installed one proves it itself"
    assert named(row("mixed ranks", v1="wrong: x", v2=RIGHT), row("biases", v1=RIGHT, v2=RIGHT)) == ("diffusers==2",)
    assert named(own, row("mixed ranks", v1="wrong: x")) == ("diffusers==1", "diffusers==2"), "its own kind says more"
    assert named(row("dora", v1=RIGHT)) == ()
    assert named() == ()


def test_the_manifest_names_the_versions_of_the_table_beside_what_proved_it(tmp_path: Path) -> None:
    made, files = exported(tmp_path, Good("flux"))
    oldest = f"diffusers=={ENVIRONMENTS[0].diffusers}"
    (consumers,) = made.report().consumers.values()
    assert consumers[0] == "diffusers"
    assert oldest in consumers
    assert f"diffusers=={ENVIRONMENTS[-1].diffusers}" not in consumers


def test_a_file_that_somebody_else_wrote_has_nothing_said_of_it(tmp_path: Path) -> None:
    from adapterline.validation import validate_file

    made, files = exported(tmp_path, Good("flux"))
    report = validate_file(made.folder / files.files[0], made.base, made.source, ExportOptions())
    assert report.passed
    assert not [name for names in report.consumers.values() for name in names if "==" in name]


def test_the_table_has_the_versions_that_are_tried_and_the_installed_one_is_right() -> None:
    named = {version for row in table() for version in row.results}
    assert named == {f"diffusers=={env.diffusers}" for env in ENVIRONMENTS} | {
        f"peft=={env.peft}" for env in ENVIRONMENTS
    }
    newest = ENVIRONMENTS[-1]
    for row in table():
        here = f"peft=={newest.peft}" if row.layout == "peft" else f"diffusers=={newest.diffusers}"
        assert row.results[here] == RIGHT, row


def test_the_page_is_that_of_the_table() -> None:
    assert PAGE.read_text() == text_of(table())
