"""What platforms send, as their documentation shows it, becomes exactly one event for each run that ended."""

from __future__ import annotations

import contextlib
import copy
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from adapterline.errors import EventError, UsageError
from adapterline.events import TrainingCompleted
from adapterline.events.sender import Sender
from adapterline.events.translators import TRANSLATORS, recognize, translator_of, unwrapped
from adapterline.events.translators.base import moment
from adapterline.settings import Settings
from adapterline.sweeps.runs import Descriptor
from adapterline.values import TrainingRun

PAYLOADS = Path(__file__).parent / "payloads"
ENDED = datetime(2026, 10, 6, 12, 26, 13, tzinfo=UTC)


class Around:
    """What lies outside of a message, in memory."""

    def __init__(self, **described: Descriptor) -> None:
        self.jobs: dict[str, str] = {}
        self.described = described

    def remember(self, job: str, checkpoint: str) -> None:
        self.jobs[job] = checkpoint

    def recall(self, job: str) -> str | None:
        return self.jobs.get(job)

    def describe(self, uri: str) -> Descriptor:
        return self.described.get(uri.rpartition("/")[2], Descriptor())


def payload(name: str) -> Any:
    return json.loads((PAYLOADS / f"{name}.json").read_text())


def sent(sender: str, *payloads: Any, around: Around | None = None) -> tuple[TrainingCompleted, ...]:
    around = around or Around()
    return tuple(event for each in payloads for event in TRANSLATORS[sender](each, around))


def edited(name: str, *path: str, to: Any) -> Any:
    document = copy.deepcopy(payload(name))
    at = document
    for part in path[:-1]:
        at = at[part]
    at[path[-1]] = to
    return document


# --- SimpleTuner ------------------------------------------------------------------------------------------------------


def test_simpletuners_end_is_of_the_folder_that_its_model_was_saved_to() -> None:
    (event,) = sent(
        "simpletuner",
        *map(payload, ("simpletuner-checkpoint", "simpletuner-model-save")),
        ending := payload("simpletuner-complete"),
    )
    assert event.checkpoint == "/mnt/runs/sks-dog"
    assert (event.run.run_id, event.run.finished_at, event.run.trainer) == ("job-7", ENDED, "SimpleTuner")
    assert ending["stage"]["key"] == "training_complete"


def test_without_it_simpletuners_end_is_of_the_jobs_last_checkpoint() -> None:
    other = edited("simpletuner-checkpoint", "job_id", to="job-8")
    other["checkpoint"]["path"] = "/mnt/runs/other/checkpoint-9"
    (event,) = sent("simpletuner", payload("simpletuner-checkpoint"), other, payload("simpletuner-complete"))
    assert event.checkpoint == "/mnt/runs/sks-dog/checkpoint-500"


def test_an_end_of_simpletuner_without_any_checkpoint_is_an_error() -> None:
    with pytest.raises(EventError, match="none of its checkpoints was told of"):
        sent("simpletuner", payload("simpletuner-complete"))


def test_a_relative_path_of_simpletuner_is_an_error() -> None:
    document = payload("simpletuner-checkpoint")
    document["checkpoint"]["path"] = "output/checkpoint-5"
    with pytest.raises(EventError, match="absolute output_dir"):
        sent("simpletuner", document)


@pytest.mark.parametrize("stage", ["training_abort", "checkpoint_save", "init_load_base_model"])
def test_other_stages_of_simpletuner_go_by(stage: str) -> None:
    around = Around()
    around.remember("job-7", "/mnt/runs/sks-dog")
    assert not sent("simpletuner", edited("simpletuner-complete", "stage", "key", to=stage), around=around)
    assert not sent("simpletuner", edited("simpletuner-complete", "stage", "status", to="running"), around=around)
    assert not sent("simpletuner", {"type": "training.status", "job_id": "job-7"}, around=around)


# --- SageMaker --------------------------------------------------------------------------------------------------------


def test_a_completed_job_of_sagemaker_is_of_its_archive() -> None:
    (event,) = sent("sagemaker", payload("sagemaker-completed"))
    assert event.checkpoint == "s3://runs/sagemaker/sks-dog-7/output/model.tar.gz"
    assert (event.run.run_id, event.run.finished_at, event.name, event.base) == ("sks-dog-7", ENDED, None, None)


def test_a_job_that_does_not_pack_is_of_its_folder() -> None:
    document = edited("sagemaker-completed", "detail", "OutputDataConfig", "CompressionType", to="NONE")
    assert sent("sagemaker", document)[0].checkpoint == "s3://runs/sagemaker/sks-dog-7/output/model"


@pytest.mark.parametrize("as_list", [False, True])
def test_the_jobs_tags_say_what_the_job_cannot(as_list: bool) -> None:
    said = {
        "adapterline:name": "sks-dog",
        "adapterline:base": "sd15",
        "adapterline:checkpoint": "s3://runs/x",
        "team": "a",
    }
    tags = [{"Key": key, "Value": value} for key, value in said.items()] if as_list else said
    (event,) = sent("sagemaker", edited("sagemaker-completed", "detail", "Tags", to=tags))
    assert (event.checkpoint, event.name, event.base) == ("s3://runs/x", "sks-dog", "sd15")


def test_what_sagemaker_sends_twice_is_one_event() -> None:
    first, again = sent("sagemaker", payload("sagemaker-completed"), edited("sagemaker-completed", "id", to="other"))
    assert first.id == again.id


@pytest.mark.parametrize("status", ["InProgress", "Failed", "Stopped"])
def test_a_job_that_is_not_completed_goes_by(status: str) -> None:
    assert not sent("sagemaker", edited("sagemaker-completed", "detail", "TrainingJobStatus", to=status))
    assert not sent("sagemaker", edited("sagemaker-completed", "detail-type", to="SageMaker Endpoint State Change"))


def test_a_job_without_an_output_is_an_error() -> None:
    with pytest.raises(EventError, match=r"OutputDataConfig\.S3OutputPath|S3OutputPath"):
        sent("sagemaker", edited("sagemaker-completed", "detail", "OutputDataConfig", to={}))


# --- S3 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["s3-notification", "s3-eventbridge"])
def test_a_marker_in_s3_is_a_run_whose_key_is_what_it_really_is(form: str) -> None:
    (event,) = sent("s3", payload(form))
    assert event.checkpoint == "s3://runs/night/sks dog+1"
    assert event.run.finished_at == ENDED


def test_what_the_run_says_of_itself_goes_along() -> None:
    said = Descriptor(name="sks-dog", base="sd15", run=TrainingRun(run_id="7", step=3))
    (event,) = sent("s3", payload("s3-eventbridge"), around=Around(**{"sks dog+1": said}))
    assert (event.name, event.base, event.run.run_id, event.run.step) == ("sks-dog", "sd15", "7", 3)
    assert event.run.finished_at == ENDED


def test_s3s_test_event_and_other_objects_go_by() -> None:
    assert not sent("s3", payload("s3-test-event"))
    document = payload("s3-notification")
    document["Records"][0]["s3"]["object"]["key"] = "night/sks/model_SUCCESS"
    assert not sent("s3", document)
    removed = payload("s3-notification")
    removed["Records"][0]["eventName"] = "ObjectRemoved:Delete"
    assert not sent("s3", removed)
    assert not sent("s3", edited("s3-eventbridge", "detail-type", to="Object Deleted"))


def test_every_record_of_a_notification_counts() -> None:
    document = payload("s3-notification")
    second = copy.deepcopy(document["Records"][0])
    second["s3"]["object"]["key"] = "_SUCCESS"
    second["eventName"] = "s3:ObjectCreated:CompleteMultipartUpload"  # as Ceph and MinIO write it
    document["Records"].append(second)
    assert [event.checkpoint for event in sent("s3", document)] == ["s3://runs/night/sks dog+1", "s3://runs"]


# --- Kubernetes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("form", ["kubernetes-job", "kubernetes-event"])
def test_a_complete_job_of_kubernetes_is_what_its_annotations_say(form: str, wrapped: bool) -> None:
    document = payload(form)
    if wrapped and form == "kubernetes-job":
        document = {"type": "UPDATE", "body": document, "group": "batch", "version": "v1", "resource": "jobs"}
    (event,) = sent("kubernetes", document)
    assert (event.checkpoint, event.name, event.base) == ("s3://runs/sks-dog", "sks-dog", "sd15")
    assert (event.run.run_id, event.run.dataset) == ("0a1b2c3d-0000-4000-8000-000000000007", "s3://data/dogs@3")
    assert event.run.finished_at == ENDED


def test_both_forms_of_a_jobs_end_are_one_event() -> None:
    assert len({event.id for event in sent("kubernetes", payload("kubernetes-job"), payload("kubernetes-event"))}) == 1


def test_a_job_that_runs_or_failed_or_is_not_ours_goes_by() -> None:
    failed = [{"type": "Failed", "status": "True"}, {"type": "Complete", "status": "False"}]
    assert not sent("kubernetes", edited("kubernetes-job", "status", "conditions", to=failed))
    assert not sent("kubernetes", edited("kubernetes-job", "status", to={"active": 1}))
    assert not sent("kubernetes", edited("kubernetes-job", "metadata", "annotations", to={"other/checkpoint": "x"}))
    assert not sent("kubernetes", edited("kubernetes-event", "reason", to="SuccessfulCreate"))
    assert not sent("kubernetes", edited("kubernetes-event", "involvedObject", "kind", to="Pod"))


def test_a_job_of_ours_that_does_not_say_what_it_left_is_an_error() -> None:
    with pytest.raises(EventError, match="an annotation adapterline/checkpoint"):
        sent("kubernetes", edited("kubernetes-job", "metadata", "annotations", to={"adapterline/name": "a"}))


# --- any other --------------------------------------------------------------------------------------------------------

ACME = {
    "state": "finished",
    "run": {"id": 7, "steps": 9},
    "artifacts": [{"uri": "s3://a"}, {"uri": "s3://b"}],
    "at": 1791289573,
}


def acme(**more: str) -> Sender:
    fields = {"when": "state == 'finished'", "checkpoint": "artifacts[-1].uri", "run_id": "to_string(run.id)"}
    return Sender(**(fields | {"step": "run.steps", "finished_at": "at"} | more))


def test_a_sender_of_the_settings_is_read_by_its_expressions() -> None:
    (event,) = translator_of("acme", acme(name="join('-', ['sks', 'dog'])"))(ACME, Around())
    assert (event.checkpoint, event.name) == ("s3://b", "sks-dog")
    assert (event.run.run_id, event.run.step, event.run.finished_at) == ("7", 9, ENDED)


def test_what_is_not_yet_an_end_goes_by() -> None:
    assert not translator_of("acme", acme())(ACME | {"state": "running"}, Around())


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"checkpoint": "nowhere"}, "has None at nowhere"),
        ({"name": "state.x || '../up'"}, "cannot be"),
        ({"step": "state"}, "cannot be"),
        ({"run_id": "sum(state)"}, "fails on a message"),
    ],
)
def test_what_does_not_fit_is_an_error(more: dict[str, str], told: str) -> None:
    with pytest.raises(EventError, match=told):
        translator_of("acme", acme(**more))(ACME, Around())


def test_the_settings_say_what_is_wrong_with_an_expression(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "adapterline.toml").write_text('[senders.acme]\ncheckpoint = "artifacts["\n')
    with pytest.raises(UsageError, match="is no JMESPath"):
        Settings()


# --- which it is ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", sorted(PAYLOADS.glob("*.json")), ids=lambda file: file.stem)
def test_a_message_of_a_queue_says_whose_it_is(file: Path) -> None:
    message = json.loads(file.read_text())
    sender = file.stem.partition("-")[0]
    envelope = {"Type": "Notification", "TopicArn": "arn:aws:sns:x", "Message": json.dumps(message)}
    assert unwrapped(envelope) == message
    assert unwrapped(message) == message
    if sender == "simpletuner":  # never in a queue of AWS
        with pytest.raises(EventError, match="--sqs-sender"):
            recognize(message)
    else:
        assert recognize(message) == sender


@pytest.mark.parametrize("sender", TRANSLATORS)
@pytest.mark.parametrize(
    "nonsense", [None, 5, "text", [], [1], {}, {"type": 5}, {"Records": 5}, {"Records": [5]}, {"detail": 5}]
)
def test_nonsense_is_an_error_or_goes_by(sender: str, nonsense: Any) -> None:
    with contextlib.suppress(EventError):
        assert TRANSLATORS[sender](nonsense, Around()) == ()


def test_times_are_read_as_platforms_write_them() -> None:
    for told in (1791289573, 1791289573000, "1791289573000", "2026-10-06T12:26:13Z", "2026-10-06T12:26:13"):
        assert moment(told) == ENDED, told
    for told in (None, "", "yesterday", True, [], float("inf")):
        assert moment(told) is None
