"""Losing the index loses nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import adapterline
from adapterline.lineage import Index
from adapterline.lineage.answers import Reindexed
from adapterline.lineage.index import remember
from adapterline.lineage.records import FolderRecords, open_records
from adapterline.settings import Settings
from adapterline.values import Package
from tests.hub_double.server import Hub
from tests.lineage.conftest import Run
from tests.lineage.recorded import export, index_file, keep, publish, record_of, run

Make = Callable[..., Package]


def _answers(run_cli: Run, packages: list[Package]) -> list[str]:
    asked = [("list",), ("list", "--outcome", "any")]
    asked += [("show", f"{package.name}@{package.sha12}") for package in packages]
    asked += [("show", f"{day:012x}") for day in (1, 2, 3, 9)]
    answers = []
    for question in asked:
        code, out, _ = run_cli("lineage", *question, "--json")
        assert code == 0, question
        answers.append(out)
    return answers


def test_a_deleted_index_answers_the_same_once_it_is_made_anew(
    run_cli: Run, records: Path, tmp_path: Path, s3: Any, bucket: str, hub: Hub, make: Make
) -> None:
    places = [str(tmp_path / "published"), f"s3://{bucket}/loras", "hf://acme"]
    old = make(1, run=run("run-1", dataset="cats"))
    new, other = make(2, run=run("run-2", parents=("run-1",))), make(3, name="other")
    gone = make(4, name="gone")
    export(old, *places, day=1)
    export(new, *places, day=2)
    export(other, places[0], day=3)
    keep(record_of(old, *publish(old, *places), day=4, outcome="already-exported", earlier=f"{1:012x}"))
    keep(record_of(gone, day=5))  # a dry run
    keep(record_of(None, day=9, error="No.", error_type="CheckpointError"))
    adapterline.promote("tiny", old.sha12, "production", places)
    adapterline.prune("other", [places[0]], keep_last=0, yes=True)  # `latest` keeps it

    before = _answers(run_cli, [old, new, other, gone])
    assert '"alias": "production"' in before[0]
    for suffix in ("", "-wal", "-shm"):
        Path(f"{index_file(records)}{suffix}").unlink(missing_ok=True)
    code, out, _ = run_cli("lineage", "reindex", "--json")
    done = Reindexed.model_validate_json(out)
    assert (code, done.records, done.versions, done.unread) == (0, 6, 4, 0)
    assert {place.status for place in done.places} == {"read"}
    assert _answers(run_cli, [old, new, other, gone]) == before
    # And where nothing was lost, too.
    assert run_cli("lineage", "reindex")[0] == 0
    assert _answers(run_cli, [old, new, other, gone]) == before


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # as for all that use the Hub
@pytest.mark.parametrize("kind", ["folder", "s3", "hub"])
def test_what_a_manifest_alone_tells_is_there(
    run_cli: Run, records: Path, request: pytest.FixtureRequest, tmp_path: Path, make: Make, kind: str
) -> None:
    place = {
        "folder": lambda: str(tmp_path / "published"),
        "s3": lambda: request.getfixturevalue("s3") and f"s3://{request.getfixturevalue('bucket')}/loras",
        "hub": lambda: request.getfixturevalue("hub") and "hf://acme",
    }[kind]()
    package = make(1, run=run("run-1"))
    publish(package, place)
    code, out, _ = run_cli("lineage", "reindex", "--from", place, "--json")
    assert (code, json.loads(out)["versions"]) == (0, 1)
    shown = Index().show("tiny@latest")
    assert shown.manifest == package.manifest
    assert (shown.runs, shown.version and shown.version.outcome) == ((), "exported")
    assert Index().show("run-1") == shown


def test_what_was_removed_by_others_is_published_nowhere(records: Path, tmp_path: Path, make: Make) -> None:
    old, new = make(1), make(2)
    place = tmp_path / "published"
    export(old, str(place), day=1)
    export(new, str(place), day=2)
    shutil.rmtree(place / "tiny" / old.sha12)
    Index().reindex()
    places = {version.digest: len(version.places) for version in Index().versions().versions}
    assert places == {old.manifest.digest: 0, new.manifest.digest: 1}


def test_a_prune_is_told_to_the_index(records: Path, tmp_path: Path, make: Make) -> None:
    place = str(tmp_path / "published")
    old, new = make(1), make(2)
    export(old, place, day=1)
    export(new, place, day=2)
    adapterline.prune("tiny", [place], keep_last=1)
    assert len(_places(old)) == 1
    adapterline.prune("tiny", [place], keep_last=1, yes=True)
    assert (_places(old), len(_places(new))) == ((), 1)


def _places(package: Package) -> Any:
    version = Index().show(package.manifest.digest).version
    assert version is not None
    return version.places


def test_a_place_that_fails_is_told_and_the_records_are_believed(
    run_cli: Run, records: Path, tmp_path: Path, make: Make
) -> None:
    here, other = tmp_path / "published", tmp_path / "elsewhere"
    package = make(1)
    export(package, str(here), str(other))
    shutil.rmtree(other)
    assert {place.status for place in Index().reindex().places} == {"read", "absent"}
    assert len(_places(package)) == 2
    (here / "tiny" / package.sha12 / "manifest.json").write_text("{}")
    code, out, err = run_cli("lineage", "reindex", "--json")
    assert (code, "manifest" in err) == (5, True)
    assert {place["status"] for place in json.loads(out)["places"]} == {"failed", "absent"}
    assert len(_places(package)) == 2


def test_a_damaged_index_is_made_anew(run_cli: Run, records: Path, tmp_path: Path, make: Make) -> None:
    export(make(1), str(tmp_path / "published"))
    for suffix in ("-wal", "-shm"):
        Path(f"{index_file(records)}{suffix}").unlink(missing_ok=True)
    index_file(records).write_bytes(b"no database" * 1000)
    assert run_cli("lineage", "list")[0] == 6
    assert run_cli("lineage", "reindex")[0] == 0
    assert Index().versions().total == 1


def test_an_index_is_made_where_not_even_its_folder_is_there(
    records: Path, tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(make(1), str(tmp_path / "published"))
    monkeypatch.setenv("ADAPTERLINE_INDEX", f"sqlite:///{tmp_path}/not/there/index.sqlite")
    assert Index().reindex().versions == 1


def test_a_record_of_a_later_version_is_counted_and_left_alone(records: Path, tmp_path: Path, make: Make) -> None:
    export(make(1), str(tmp_path / "published"))
    later = records / "unread" / "20270101T000000000000-ffffffffffff.json"
    later.parent.mkdir(parents=True)
    later.write_text('{"schema": "adapterline/record/v2"}')
    done = Index().reindex()
    assert (done.records, done.unread, done.versions) == (1, 1, 1)
    assert later.exists()


def test_who_exports_while_it_is_made_anew_is_in_it(
    records: Path, tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its record came after the store was listed, and what it told the index before that was cleared."""
    place = str(tmp_path / "published")
    first, late = make(1), make(2)
    export(first, place, day=1)
    listed, names = [], FolderRecords.names

    def and_then_export(store: FolderRecords) -> tuple[str, ...]:
        found = names(store)
        if not listed:
            listed.append(True)
            export(late, place, day=2)
        return found

    monkeypatch.setattr(FolderRecords, "names", and_then_export)
    assert Index().reindex().records == 2
    assert {version.digest for version in Index().versions().versions} == {
        first.manifest.digest,
        late.manifest.digest,
    }


def test_an_index_that_cannot_be_written_is_said_and_raises_nothing(
    records: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = record_of(make(1))
    index_file(records).write_bytes(b"no database" * 1000)
    assert "reindex" in (remember(lambda index: index.add(record)) or "")
    open_records(Settings().records).append(record)
    Index().reindex()
    assert remember(lambda index: index.add(record)) is None
    assert Index().versions().total == 1
