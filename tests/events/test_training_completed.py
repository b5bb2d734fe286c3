"""What is told when a run ends, without a server."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import ValidationError

import adapterline
from adapterline.errors import MachineError, UsageError
from adapterline.events import EVENT, TrainingCompleted
from adapterline.events.training_completed import absolute
from adapterline.request import check_allowed
from adapterline.settings import Settings
from adapterline.values import TrainingRun


def test_the_id_is_that_of_run_checkpoint_and_name_and_of_nothing_else() -> None:
    def id_of(checkpoint: str = "s3://runs/7", name: str | None = None, **run: object) -> str:
        return str(TrainingCompleted(checkpoint=checkpoint, name=name, run=TrainingRun(**run)).id)  # type: ignore[arg-type]

    assert id_of(run_id="7") == id_of(run_id="7", finished_at=datetime.now(UTC), step=3)
    assert (
        len({id_of(run_id="7"), id_of(run_id="8"), id_of("s3://runs/8", run_id="7"), id_of(name="a", run_id="7")}) == 4
    )


def test_every_field_of_the_payload_is_there_for_a_template_to_find() -> None:
    event = TrainingCompleted(checkpoint="s3://runs/7", run=TrainingRun(run_id="a/b c")).to_event()
    assert event["event"] == EVENT
    assert event["resource"]["prefect.resource.id"] == "adapterline.training-run.a-b-c"
    assert set(event["payload"]) == {"checkpoint", "base", "name", "run"}
    assert event["payload"]["base"] is None
    assert set(event["payload"]["run"]) == set(TrainingRun.model_fields)
    json.dumps(event)


@pytest.mark.parametrize("given", [{"checkpoint": ""}, {"checkpoint": "a\nb"}, {"checkpoint": "a", "name": "../x"}])
def test_what_cannot_be_is_no_event(given: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        TrainingCompleted(**given)  # type: ignore[arg-type]
    with pytest.raises(UsageError):
        adapterline.notify(given["checkpoint"] or "\n", name=given.get("name"))


def test_a_local_path_is_told_whole_and_a_uri_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("out") == f"{tmp_path}/out"
    assert absolute("s3://runs/7") == "s3://runs/7"


def test_without_a_server_to_tell_it_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings(restore_defaults={PREFECT_API_URL}), pytest.raises(MachineError, match="is not set"):
        adapterline.notify("s3://runs/7")
    with (
        temporary_settings(updates={PREFECT_API_URL: "http://127.0.0.1:9/api"}),
        pytest.raises(MachineError, match="was not taken by") as caught,
    ):
        adapterline.notify("s3://runs/7")
    assert caught.value.transient


# --- what a deployment allows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("root", "checkpoint", "allowed"),
    [
        ("s3://runs", "s3://runs/7", True),
        ("s3://runs/", "s3://runs", True),
        ("s3://runs", "s3://runs-of-others/7", False),
        ("s3://runs/a", "s3://runs/a/../b", False),
        ("s3://runs", "/runs/7", False),
        ("hf://acme", "hf://acme/lora@main", True),
        ("hf://acme", "hf://acme2/lora", False),
        ("{tmp}/runs", "{tmp}/runs/7", True),
        ("{tmp}/runs", "file://{tmp}/runs/7", True),
        ("{tmp}/runs", "{tmp}/runs/../other", False),
        ("{tmp}/runs", "{tmp}/runs/link/7", False),
        ("{tmp}/runs", "{tmp}/runs2", False),
        ("{tmp}/runs", "s3://runs/7", False),
    ],
)
def test_a_checkpoint_lies_under_a_root_by_whole_parts(
    tmp_path: Path, root: str, checkpoint: str, allowed: bool
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "runs/link").symlink_to(tmp_path / "elsewhere")
    settings = Settings(allowed_roots=(root.format(tmp=tmp_path),))
    if allowed:
        check_allowed(checkpoint.format(tmp=tmp_path), "any", settings)
    else:
        with pytest.raises(UsageError, match="lies outside"):
            check_allowed(checkpoint.format(tmp=tmp_path), "any", settings)


def test_a_name_is_one_of_the_patterns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTERLINE_ALLOWED_NAMES", "team-a-*, shared")
    check_allowed("anywhere", "team-a-dog", Settings())
    check_allowed("anywhere", "shared", Settings())
    with pytest.raises(UsageError, match="may not be published"):
        check_allowed("anywhere", "shared-dog", Settings())
    monkeypatch.delenv("ADAPTERLINE_ALLOWED_NAMES")
    check_allowed("anywhere", "shared-dog", Settings())
