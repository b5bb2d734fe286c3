"""Sweeps in the record store and the index: nobody takes them for runs of the line."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from adapterline.errors import MachineError
from adapterline.lineage import Index
from adapterline.lineage.records import open_records
from adapterline.sweeps import SweepItem, SweepJournal
from adapterline.values import SweepRecord
from tests.lineage.recorded import keep, record_of, sweep_of


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, records: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A record store, which is the one of the settings."""
    if request.param == "folder":
        return str(records)
    request.getfixturevalue("s3")
    uri = f"s3://{request.getfixturevalue('bucket')}/records"
    monkeypatch.setenv("ADAPTERLINE_RECORDS", uri)
    return uri


def test_sweeps_are_kept_beside_records_and_read_by_a_reindex(store: str) -> None:
    kept = open_records(store)
    run = keep(record_of(None, error="No.", error_type="CheckpointError"))
    first, second = sweep_of(1, exported=3), sweep_of(2, failed=1)
    for sweep in (second, first):
        kept.append_sweep(sweep)
    kept_bytes = [kept.read_sweep(name) for name in kept.sweep_names()]
    assert kept_bytes == [first, second]
    assert [kept.read(name) for name in kept.names()] == [run]
    done = Index().reindex()
    assert (done.records, done.sweeps, done.unread) == (1, 2, 0)
    page = Index().sweeps(limit=1)
    assert (page.sweeps, page.total) == ((second,), 2)
    assert Index().runs().total == 1


def test_who_knows_of_no_sweep_takes_it_for_a_record_of_a_later_version(store: str) -> None:
    kept = open_records(store)
    kept.append_sweep(sweep_of(1))
    [name] = kept.sweep_names()
    assert kept.read(name) is None


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, OSError])
def test_a_sweep_that_is_stopped_says_how_far_it_came(stop: type[BaseException]) -> None:
    refused = SweepItem(checkpoint="s3://runs/a", outcome="refused", told=True)
    journal = SweepJournal(("s3://runs",), (), "all", "export-adapter/on-completion", found=2, items=[refused])
    kept: list[SweepRecord] = []
    with pytest.raises(stop, match="enough"), journal.keeping(kept.append):
        raise stop("enough")
    [left] = kept
    assert (left.found, left.refused, left.told, left.exported) == (2, 1, 1, 0)
    assert (left.is_whole, left.error, left.error_type) == (False, "enough", stop.__name__)
    assert (left.deployment, left.steps) == ("export-adapter/on-completion", "all")


def test_a_record_that_cannot_be_written_hides_no_error_and_is_one_itself() -> None:
    def full(_: SweepRecord) -> None:
        raise MachineError("The disk is full.")

    journal = SweepJournal(("s3://runs",), (), "all", None)
    with pytest.raises(KeyboardInterrupt), journal.keeping(full):
        raise KeyboardInterrupt
    with pytest.raises(MachineError, match="disk"), journal.keeping(full):
        pass


def test_the_same_sweep_twice_is_one(records: Path) -> None:
    index = Index()
    assert [index.add_sweep(sweep_of(1)), index.add_sweep(sweep_of(1))] == [True, False]
    assert index.sweeps().total == 1


def test_a_sweep_of_a_later_version_is_counted_and_left_alone(records: Path) -> None:
    later = records / "sweeps" / "20270101T000000000000-ffffffffffff.json"
    later.parent.mkdir(parents=True)
    later.write_text('{"schema": "adapterline/sweep/v2"}')
    done = Index().reindex()
    assert (done.sweeps, done.unread) == (0, 1)
    assert later.exists()


def test_a_sweep_that_ends_while_the_index_is_made_anew_is_in_it(records: Path, monkeypatch: Any) -> None:
    from adapterline.lineage.records import FolderRecords

    late, names, listed = sweep_of(1), FolderRecords.sweep_names, []

    def and_then_sweep(store: FolderRecords) -> tuple[str, ...]:
        found = names(store)
        if not listed:
            listed.append(store.append_sweep(late))
        return found

    monkeypatch.setattr(FolderRecords, "sweep_names", and_then_sweep)
    assert Index().reindex().sweeps == 1
    [found] = Index().sweeps().sweeps
    assert found.ended_at - found.started_at == timedelta(minutes=5)
