"""Whatever the values allow survives the index, a reindex, and `show`."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapterline.errors import PublishError
from adapterline.lineage import Index
from adapterline.lineage.records import FolderRecords
from adapterline.lineage.writing import makes_version
from adapterline.values import (
    Bundle,
    ComponentSummary,
    ExportedFile,
    LineageRecord,
    Manifest,
    Publication,
    TrainingRun,
    Transform,
)

# As JSON has it: no halves of characters.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
digests = st.sampled_from("0123456789abcdef").map(lambda digit: digit * 64) | st.text(
    "0123456789abcdef", min_size=64, max_size=64
)
times = st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=14)), timezone(timedelta(hours=-12))]))
numbers = st.integers(0, 2**70)
floats = st.floats(allow_nan=False, allow_infinity=False)  # JSON has no others
optional = st.none() | texts


def _lists(strategy: st.SearchStrategy[Any], most: int = 2) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(strategy, max_size=most).map(tuple)


training_runs = st.builds(
    TrainingRun,
    run_id=optional,
    finished_at=st.none() | times,
    step=st.none() | numbers,
    base_model=st.none() | st.just("org/model@main"),
    dataset=optional,
    code=optional,
    trainer=optional,
    parents=_lists(texts | digests),
)
files = st.builds(
    ExportedFile, role=texts, layout=texts, path=texts, size=numbers, sha256=digests, tensors_sha256=st.none() | digests
)
components = st.builds(
    ComponentSummary,
    rank=numbers | st.lists(st.integers(0, 9), max_size=2),
    alpha=floats | st.lists(floats, max_size=2),
    modules=numbers,
    adapter_type=texts,
    dtype=texts | st.lists(texts, max_size=2),
    parameters=numbers,
)
transforms = st.builds(
    Transform, kind=texts, detail=texts, component=optional, errors=st.dictionaries(texts, floats, max_size=2)
)
reports = st.fixed_dictionaries(
    {
        "bundle_digest": digests,
        "checks": _lists(
            st.fixed_dictionaries(
                {"name": texts, "observed": st.floats() | texts, "limit": floats | texts, "passed": st.booleans()}
            )
        ),
    }
)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    written = draw(_lists(files))
    text = texts.filter(bool)
    return Manifest.model_validate(
        {
            "name": draw(text),
            "digest": draw(st.just(Bundle.digest_of(written)) | digests),
            "family": draw(texts),
            "source": {"name": draw(texts), "digest": draw(digests), "container": draw(texts), "dialect": draw(texts)},
            "training_run": draw(st.none() | training_runs),
            "base": {"architecture": draw(digests), "pipeline": draw(texts), "model": draw(texts)},
            "license": draw(st.none() | st.just({"id": "mit"})),
            "files": written,
            "components": draw(st.dictionaries(texts, components, max_size=2)),
            "transforms": draw(_lists(transforms)),
            "left_out": draw(_lists(texts)),
            "validation": draw(reports),
            "loads": (),
            "consumers": draw(st.dictionaries(texts, _lists(texts), max_size=2)),
            "tools": draw(st.dictionaries(texts, texts, max_size=2)),
        }
    )


_norms = st.floats(0, 1e30)
_layers = st.fixed_dictionaries({"norm": _norms, "before": _norms, "cosine": st.none() | st.floats(-1, 1)})
drifts = st.fixed_dictionaries(
    {
        "before": digests,
        "destination": texts,
        "beyond": _lists(texts),
        "not_measured": optional,
        "components": st.dictionaries(
            texts,
            st.builds(lambda own, modules: own | {"modules": modules}, _layers, st.dictionaries(texts, _layers)),
            max_size=3,
        ),
    }
)


@st.composite
def records(draw: st.DrawFn) -> LineageRecord:
    manifest = draw(st.none() | manifests())
    receipts = st.fixed_dictionaries(
        {
            "destination": texts,
            "name": st.just(manifest.name if manifest else "name"),
            "digest": st.just(manifest.digest if manifest else "0" * 64),
            "location": texts
            | st.sampled_from(["hf://a/b@sha-0", "s3://bucket/name/0", "/nowhere/name/0", "/", "hf://"]),
            "manifest_sha256": digests,
            "files": st.just(()),
            "published": st.booleans(),
        }
    )
    publications = st.fixed_dictionaries(
        {
            "receipt": receipts,
            "latest": st.sampled_from(["moved", "kept", "proposed"]),
            "url": texts,
            "load": texts,
            "revision": texts,
        }
    ).map(Publication.model_validate)
    outcomes = ["exported", "already-exported", "validated", "waiting", "refused", "failed"]
    started = draw(st.datetimes(datetime(2026, 1, 1), timezones=st.just(UTC)))
    return LineageRecord.model_validate(
        {
            "id": draw(st.text("0123456789abcdef", min_size=12, max_size=12)),
            "key": "unread",
            "outcome": draw(st.sampled_from(outcomes)),
            "started_at": started,
            "ended_at": draw(times),
            "checkpoint": draw(texts),
            "name": draw(optional),
            "to": draw(_lists(texts)),
            "options": {},
            "run": draw(st.none() | training_runs),
            "manifest": manifest,
            "publications": draw(_lists(publications)),
            "error": draw(optional),
            "error_type": draw(optional),
            "earlier": draw(optional),
            "previous": draw(st.none() | digests),
            "drift": draw(st.none() | drifts),
        }
    )


@settings(max_examples=10, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.lists(records(), min_size=1, max_size=3, unique_by=lambda record: record.id))
def test_any_record_survives(given_records: list[LineageRecord]) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patched:
        patched.setattr("adapterline.lineage.reindex.read_place", _unreachable)
        store, index = FolderRecords(Path(folder) / "records"), Index(f"sqlite:///{folder}/index.sqlite")
        # As runs end: of a place and of an alias, what was told last counts.
        for record in sorted(given_records, key=lambda record: (record.started_at, record.id)):
            store.append(record)
            index.add(record)
        shown = [index.show(record.id) for record in given_records]
        for record, found in zip(given_records, shown, strict=True):
            _assert_told(record, found)
        before = (index.versions(), index.runs(), index.counts(), shown)
        done = index.reindex(records=f"{folder}/records")
        assert (done.records, done.unread) == (len(given_records), 0)
        after = [index.show(record.id) for record in given_records]
        assert [each.model_dump_json() for each in after] == [each.model_dump_json() for each in shown]
        assert (index.versions(), index.runs(), index.counts()) == before[:3]


def _unreachable(uri: str) -> Any:
    """The places are made up: nobody is asked over the network."""
    raise PublishError(f"{uri} does not answer.")


def _assert_told(record: LineageRecord, found: Any) -> None:
    said = record.model_dump(mode="json")
    [told] = [run for run in found.runs if run["id"] == record.id]
    if makes_version(record):
        assert record.manifest is not None
        assert (found.version.name, found.version.digest) == (record.manifest.name, record.manifest.digest)
        said["manifest"] = None
    assert told == said
