"""OpenLineage: events of any record are what the specification allows, and arrive where they are sent."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from adapterline.lineage.openlineage import as_json, emit, events_of
from adapterline.schemas import SCHEMAS, schema_bytes
from adapterline.values import (
    ComponentDrift,
    DriftFromLatest,
    FlowRun,
    LineageRecord,
    Package,
    TrainingRun,
)
from tests.lineage.conftest import Run
from tests.lineage.recorded import export, keep, publish, record_of
from tests.lineage.test_any_record import records as any_records

Make = Callable[..., Package]
SPECIFICATION = Path(__file__).parent / "openlineage_schemas"
_READ = [json.loads(path.read_bytes()) for path in SPECIFICATION.glob("*.json")]
_OWN = json.loads(schema_bytes(SCHEMAS["openlineage-adapter-v1.json"]))
REGISTRY: Registry[Any] = Registry().with_resources(
    [(schema["$id"], Resource.from_contents(schema)) for schema in (*_READ, _OWN)]
)


@pytest.fixture(autouse=True)
def _nothing_is_configured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def validate(text: str) -> dict[str, Any]:
    """The event, after it was compared with the specification, and each facet with the schema that it names."""
    event: dict[str, Any] = json.loads(text)
    check(event, event["schemaURL"])
    assert event["schemaURL"].endswith("/OpenLineage.json#/$defs/RunEvent")
    facets = [*event["run"]["facets"].items(), *event["job"]["facets"].items()]
    for dataset in (*event["inputs"], *event["outputs"]):
        facets += [*dataset.get("facets", {}).items(), *dataset.get("outputFacets", {}).items()]
    for name, facet in facets:
        check(facet, facet["_schemaURL"])
        # The file of a standard facet says under which name it is found.
        whole = REGISTRY.contents(facet["_schemaURL"].partition("#")[0])
        assert name == "adapterline_adapter" or name in whole["properties"]
    return event


def check(value: Any, schema: str) -> None:
    validator = Draft202012Validator(
        {"$ref": schema}, registry=REGISTRY, format_checker=Draft202012Validator.FORMAT_CHECKER
    )
    validator.validate(value)


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(any_records())
def test_the_events_of_any_record_are_what_the_specification_allows(record: LineageRecord) -> None:
    start, end = (validate(as_json(event)) for event in events_of(record))
    assert (start["eventType"], start["run"]["runId"]) == ("START", end["run"]["runId"])
    assert end["eventType"] in ("COMPLETE", "FAIL", "ABORT")
    assert [as_json(event) for event in events_of(record)] == [as_json(event) for event in events_of(record)]


def test_an_export_says_what_it_read_and_wrote_what_was_proven_and_where_it_lies(tmp_path: Path, make: Make) -> None:
    training = TrainingRun(
        run_id="run-1",
        base_model="org/base@v1",
        dataset="s3://data/cats",
        code="https://me:secret@git.example/repo/commit/1?token=secret",
        parents=("run-0",),
    )
    package = make(1, run=training)
    record = record_of(
        package,
        *publish(package, str(tmp_path / "published")),
        checkpoint="s3://runs/a/checkpoint-1",
        flow_run=FlowRun(id="0b0f1a76-62ab-4d7e-9df0-6a2b7e7f9d2f", name="export-tiny"),
        previous="1" * 64,
        drift=DriftFromLatest(
            components={"unet": ComponentDrift(norm=1, before=1, cosine=0.5, modules={})},
            before="1" * 64,
            destination="out",
        ),
    )
    start, end = (validate(as_json(event)) for event in events_of(record))
    assert (start["eventTime"], end["eventTime"]) == (record.started_at.isoformat(), record.ended_at.isoformat())
    assert (end["eventType"], end["job"]["namespace"], end["job"]["name"]) == (
        "COMPLETE",
        "adapterline",
        "export-adapter.tiny",
    )
    assert start["outputs"] == []
    inputs = [(each["namespace"], each["name"]) for each in end["inputs"]]
    assert inputs == [("s3://runs", "a/checkpoint-1"), ("hf", "org/base"), ("s3://data", "cats")]
    assert end["inputs"][1]["facets"]["version"]["datasetVersion"] == "v1"
    assert end["inputs"][0]["facets"]["version"]["datasetVersion"] == package.manifest.source.digest
    assert end["run"]["facets"]["parent"]["run"]["runId"] == record.flow_run.id if record.flow_run else False
    [test] = end["run"]["facets"]["test"]["tests"]
    assert (test["name"], test["status"], test["expected"], test["actual"]) == (
        "effect of unet",
        "pass",
        "0.0005",
        "0.0",
    )
    assert end["job"]["facets"]["sourceCodeLocation"]["url"] == "https://git.example/repo/commit/1"
    [output] = end["outputs"]
    facets = output["facets"]
    assert (output["namespace"], output["name"]) == ("adapterline", "tiny")
    assert facets["version"]["datasetVersion"] == package.manifest.digest
    assert facets["schema"]["fields"][0]["name"] == "unet"
    assert facets["schema"]["fields"][0]["type"] == "lora rank 4"
    [link] = facets["symlinks"]["identifiers"]
    assert (link["namespace"], link["name"]) == ("file", f"{tmp_path}/published/tiny/{package.sha12}")
    assert facets["lifecycleStateChange"]["lifecycleStateChange"] == "OVERWRITE"
    own = facets["adapterline_adapter"]
    assert (own["record"], own["digest"], own["drift"]) == (record.id, package.manifest.digest, {"unet": 0.5})
    assert own["published"] == {f"{tmp_path}/published": "moved"}
    assert "secret" not in json.dumps([start, end])


@pytest.mark.parametrize(
    ("outcome", "kind"), [("refused", "FAIL"), ("failed", "FAIL"), ("waiting", "ABORT"), ("validated", "COMPLETE")]
)
def test_what_did_not_publish_says_how_it_ended(make: Make, outcome: str, kind: str) -> None:
    package = make(1) if outcome == "validated" else None
    error = "s3://me:secret@bucket/x?X-Amz-Signature=secret was refused." if package is None else None
    record = record_of(package, outcome=outcome, error=error, error_type="PublishError" if error else None)
    end = validate(as_json(events_of(record)[1]))
    assert end["eventType"] == kind
    if error:
        assert end["run"]["facets"]["errorMessage"]["message"] == "PublishError: s3://bucket/x was refused."
        assert end["outputs"] == []


def test_a_check_that_failed_is_told_as_failed_and_one_that_was_not_run_as_skipped(make: Make) -> None:
    report = make(1).manifest.validation
    failed = report.model_copy(
        update={
            "checks": (report.checks[0].model_copy(update={"passed": False, "observed": 0.5}),),
            "not_run": {"render": "no weights"},
        }
    )
    record = record_of(None, outcome="failed", error="No.", error_type="ValidationFailedError", report=failed)
    tests = validate(as_json(events_of(record)[1]))["run"]["facets"]["test"]["tests"]
    told = [(test["name"], test["status"]) for test in tests]
    assert told == [("effect of unet", "fail"), ("render", "skip")]
    assert tests[0]["actual"] == "0.5"


# --- where they go ----------------------------------------------------------------------------------------------------


@contextmanager
def receiver(status: int = 201) -> Iterator[tuple[str, list[str]]]:
    """A server that takes events; its address, and what came."""
    came: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            came.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", came
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_receiver_gets_what_the_file_gets(tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    record = record_of(make(1))
    assert emit(record, str(tmp_path / "events" / "openlineage.jsonl")) is None
    assert emit(record_of(None), str(tmp_path / "events" / "openlineage.jsonl")) is None
    lines = (tmp_path / "events" / "openlineage.jsonl").read_text().splitlines()
    assert len(lines) == 4
    with receiver() as (url, came):
        monkeypatch.setenv("OPENLINEAGE_URL", url)
        assert emit(record, str(tmp_path / "not-there")) is None
    assert [json.loads(each) for each in came] == [json.loads(line) for line in lines[:2]]
    assert not (tmp_path / "not-there").exists()


def test_a_configuration_file_of_openlineage_counts(tmp_path: Path, make: Make) -> None:
    (tmp_path / "openlineage.yml").write_text(
        f"transport: {{type: file, log_file_path: {tmp_path / 'theirs'}, append: true}}\n"
    )
    assert emit(record_of(make(1)), str(tmp_path / "ours")) is None
    assert len((tmp_path / "theirs").read_text().splitlines()) == 2
    assert not (tmp_path / "ours").exists()


def test_off_writes_nothing_and_so_does_openlineage_disabled(
    tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert emit(record_of(make(1)), "off") is None
    monkeypatch.setenv("OPENLINEAGE_DISABLED", "true")
    assert emit(record_of(make(1)), str(tmp_path / "ours")) is None
    assert [path.name for path in tmp_path.iterdir() if "ours" in path.name or path.name == "off"] == []


@pytest.mark.slow  # the library tries for ten seconds
def test_a_receiver_that_is_not_there_costs_a_bounded_time_and_says_why(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("OPENLINEAGE_URL", f"http://me:secret@127.0.0.1:{closed.getsockname()[1]}")
        start = time.monotonic()
        why = emit(record_of(make(1)), "off")
    assert time.monotonic() - start < 60
    assert why
    assert "secret" not in why


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path, make: Make) -> None:
    (tmp_path / "file").touch()
    assert "file" in (emit(record_of(make(1)), str(tmp_path / "file" / "events")) or "")


def test_the_record_store_is_told_again_by_a_command(records: Path, tmp_path: Path, make: Make, run_cli: Run) -> None:
    first = export(make(1), str(tmp_path / "published"), day=1)
    second = keep(record_of(None, day=3, error="No.", error_type="CheckpointError"))
    expected = [as_json(event) for each in (first, second) for event in events_of(each)]
    code, out, err = run_cli("lineage", "openlineage")
    assert (code, err) == (0, "")
    assert sorted(out.splitlines()) == sorted(expected)
    code, out, _ = run_cli("lineage", "openlineage", "--since", "2026-05-02")
    assert out.splitlines() == expected[2:]
    code, out, _ = run_cli("lineage", "openlineage", "--until", datetime(2026, 5, 2, tzinfo=UTC).isoformat())
    assert out.splitlines() == expected[:2]


@pytest.mark.parametrize(
    ("uri", "named"),
    [
        ("s3://b/run#1/a b?x", ("s3://b", "run#1/a b?x")),
        ("file:///x/run#1/ck", ("file", "/x/run#1/ck")),
        ("runs/7#1", ("file", "runs/7#1")),
        ("cats-v2", ("adapterline", "cats-v2")),
        ("hf://org/data@v1", ("hf", "org/data")),
        ("gs://bucket/key", ("gs://bucket", "key")),
        ("HTTPS://u:p@h/x?token=1", ("HTTPS://h", "x")),
        ("S3://u:p@b/key", ("S3://b", "key")),
    ],
)
def test_a_data_set_has_the_name_that_others_give_it(uri: str, named: tuple[str, str]) -> None:
    record = record_of(None, checkpoint=uri)
    [dataset] = validate(as_json(events_of(record)[1]))["inputs"]
    assert (dataset["namespace"], dataset["name"]) == named
