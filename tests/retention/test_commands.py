"""`adapterline promote` and `adapterline prune`: what they print, and with which code they end."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import adapterline
from adapterline.cli import main
from adapterline.errors import UsageError
from adapterline.values import Package, Promotion, Pruning
from tests.retention.readers import FolderPlace

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def run_(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["adapterline", *arguments])
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        said = capsys.readouterr()
        return code, said.out or said.err

    return run_


@pytest.fixture
def published(tmp_path: Path, make: Callable[..., Package]) -> tuple[FolderPlace, Package, Package]:
    place, old, new = FolderPlace(tmp_path / "published"), make(1), make(2)
    place.publish(old, day=1)
    place.publish(new, day=2)
    return place, old, new


Published = tuple[FolderPlace, Package, Package]


def test_json_is_one_document_that_says_everything(run: Run, published: Published) -> None:
    place, old, new = published
    code, out = run("promote", "tiny", old.sha12, "--alias", "production", "--to", place.uri, "--json")
    promotion = Promotion.model_validate_json(out)
    assert (code, promotion.digest, promotion.moves[0].outcome) == (0, old.manifest.digest, "moved")
    code, out = run("prune", "tiny", "--to", place.uri, "--keep-last", "0", "--json")
    pruning = Pruning.model_validate_json(out)
    assert (code, pruning.dry_run) == (0, True)
    fates = {version.digest: version.fate for version in pruning.destinations[0].versions}
    assert fates == {old.manifest.digest: "stays", new.manifest.digest: "stays"}


def test_prune_deletes_with_yes_alone(run: Run, published: Published) -> None:
    place, old, new = published
    for option in ("--keep-last=1", "--older-than=0h", "--older-than=0d"):
        code, out = run("prune", "tiny", "--to", place.uri, option)
        assert old.sha12 in out
        assert "Nothing was deleted; --yes deletes 1." in out
        assert (code, len(place.visible())) == (0, 2)
    code, out = run("prune", "tiny", "--to", place.uri, "--older-than", "0h", "--yes")
    assert (code, place.visible().keys()) == (0, {new.sha12})
    assert "removed" in out
    assert "Nothing was deleted" not in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["prune", "tiny", "--to", "P"], "Nothing says which versions may go"),
        (["prune", "tiny", "--to", "P", "--older-than", "30"], "is no time"),
        (["prune", "tiny", "--to", "P", "--older-than=-1d"], "is no time"),
        (["prune", "tiny", "--to", "P", "--orphans", "--keep-last", "1"], "--orphans collects what is no version"),
        (["prune", "tiny", "--to", "P", "--orphans", "--keep-alias", "a"], "--orphans collects what is no version"),
        (["prune", "tiny", "--to", "P", "--keep-last", "1", "--keep-alias", "main"], "cannot be used"),
        (["prune", "Tiny", "--to", "P", "--keep-last", "1"], "cannot be used"),
        (["prune", "tiny", "--to", "ftp://x", "--keep-last", "1"], "no known scheme"),
        (["prune", "tiny", "--to", "", "--keep-last", "1"], "no destination"),
        (["promote", "tiny", "00000000", "--to", "P"], "alias"),
        (["promote", "tiny", "00000000", "--alias", "a", "--to", "P", "--expect", "nothing"], "is no digest"),
    ],
)
def test_what_cannot_be_asked_for_is_2_and_deletes_nothing(
    run: Run, published: Published, arguments: list[str], words: str
) -> None:
    place = published[0]
    before = place.everything()
    given = [place.uri if each == "P" else each for each in arguments]
    code, err = run(*given, *(["--yes"] if arguments[0] == "prune" else []))
    assert code == 2
    assert words in err
    assert place.everything() == before


def test_a_version_that_is_not_there_is_5_and_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], published: Published
) -> None:
    given = ["promote", "tiny", "0" * 12, "--alias", "production", "--to", published[0].uri, "--json"]
    monkeypatch.setattr(sys, "argv", ["adapterline", *given])
    with pytest.raises(SystemExit) as ended:
        main()
    document: Any = json.loads(capsys.readouterr().out)
    assert (ended.value.code, document["error"], document["exit_code"]) == (5, "PublishError", 5)


def test_python_has_both_calls(published: Published) -> None:
    place, old, _ = published
    assert adapterline.promote("tiny", old.sha12, "production", [place.uri]).moves[0].previous is None
    assert adapterline.prune("tiny", [place.uri], orphans=True).destinations[0].orphans == ()
    with pytest.raises(UsageError):
        adapterline.prune("tiny", [place.uri])
