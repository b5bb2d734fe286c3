"""`adapterline listen` as it runs: a real process, real HTTP, a queue with SQS's protocol, a real Prefect server."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import boto3
import httpx
import pytest
from moto.server import ThreadedMotoServer

from tests.servers import free_port

PAYLOADS = Path(__file__).parent / "payloads"
SECRET, OWN = "the-secret-of-all", "the-secret-of-acme"
_PATIENCE = 60  # seconds
T = TypeVar("T")
SETTINGS = """
[senders.acme]
when = "state == 'finished'"
checkpoint = "uri"
run_id = "id"
secret_env = "ACME_SECRET"
signature_header = "X-Acme-Signature"
"""


def eventually(look: Callable[[], T | None], what: str) -> T:
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.1)
    raise AssertionError(f"no {what} in {_PATIENCE} s")


@dataclass(frozen=True)
class Listening:
    url: str
    api: str
    queue: str
    sqs: Any

    def post(self, sender: str, content: bytes | str, **headers: str) -> httpx.Response:
        given = {name.replace("_", "-"): value for name, value in headers.items()} or {"x-api-key": SECRET}
        return httpx.post(f"{self.url}/events/{sender}", content=content, headers=given, timeout=60)

    def events(self, name: str, /, **wanted: Any) -> list[dict[str, Any]]:
        """What Prefect was told, by fields of the payload."""
        since = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
        body = {"filter": {"event": {"name": [name]}, "occurred": {"since": since}}, "limit": 50}
        found = httpx.post(f"{self.api}/events/filter", json=body, timeout=60).raise_for_status().json()["events"]
        return [each for each in found if wanted.items() <= each["payload"].items()]


@pytest.fixture(scope="module")
def listening(prefect_api: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Listening]:
    home = tmp_path_factory.mktemp("listening")
    (home / "adapterline.toml").write_text(SETTINGS)
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    aws = {
        "AWS_ENDPOINT_URL_SQS": "http://{}:{}".format(*moto.get_host_and_port()),
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        # S3 is not there: what a marker's run says of itself is asked for in vain.
        "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{free_port()}",
        "AWS_MAX_ATTEMPTS": "1",
    }
    sqs = boto3.client(
        "sqs",
        endpoint_url=aws["AWS_ENDPOINT_URL_SQS"],
        region_name="us-east-1",
        aws_access_key_id="key",
        aws_secret_access_key="secret",
    )
    queue = sqs.create_queue(QueueName="ended", Attributes={"VisibilityTimeout": "1"})["QueueUrl"]
    port = free_port()
    command = [sys.executable, "-m", "adapterline.cli", "listen", "--port", str(port), "--sqs", queue]
    environment = os.environ | aws | {"ADAPTERLINE_LISTEN_SECRET": SECRET, "ACME_SECRET": OWN}
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=home, env=environment, stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"

        def healthy() -> bool | None:
            assert process.poll() is None, (home / "log").read_text()
            with contextlib.suppress(httpx.TransportError):
                return httpx.get(f"{url}/healthz").status_code == 200
            return None

        eventually(healthy, "answer")
        yield Listening(url, prefect_api, queue, sqs)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) in (0, -signal.SIGTERM), (home / "log").read_text()
        assert SECRET not in (home / "log").read_text()
    finally:
        process.kill()
        process.wait()
        moto.stop()


def read(name: str) -> str:
    return (PAYLOADS / f"{name}.json").read_text()


def test_a_platforms_message_becomes_the_event_that_starts_an_export(listening: Listening) -> None:
    (id_,) = listening.post("kubernetes", read("kubernetes-job")).json()["events"]
    again = listening.post("kubernetes", read("kubernetes-event"))
    assert (again.status_code, again.json()) == (202, {"events": [id_]})

    def told() -> list[dict[str, Any]]:
        return [event for event in listening.events("training.run.completed") if event["id"] == id_]

    (event,) = eventually(told, "event")
    assert event["payload"]["checkpoint"] == "s3://runs/sks-dog"


def test_a_job_of_simpletuner_is_remembered_between_its_messages(listening: Listening) -> None:
    for name in ("simpletuner-checkpoint", "simpletuner-model-save"):
        answer = listening.post("simpletuner", read(name), x_api_key=SECRET)  # as its auth_token is sent
        assert (answer.status_code, answer.json()) == (202, {"events": []})
    assert len(listening.post("simpletuner", read("simpletuner-complete")).json()["events"]) == 1
    checkpoint = "/mnt/runs/sks-dog"
    eventually(lambda: listening.events("training.run.completed", checkpoint=checkpoint), "event")
    variables = httpx.post(f"{listening.api}/variables/filter", json={}, timeout=60).json()
    assert [v["value"] for v in variables if v["name"].startswith("adapterline-job-")] == [
        {"job": "job-7", "checkpoint": checkpoint}
    ]


def test_without_its_secret_a_message_is_not_read(listening: Listening) -> None:
    body = json.dumps({"state": "finished", "uri": "s3://runs/forged", "id": "forged"}).encode()
    right = hmac.new(OWN.encode(), body, hashlib.sha256).hexdigest()
    basic = base64.b64encode(f"anybody:{SECRET}".encode()).decode()
    refused = [
        listening.post("kubernetes", read("kubernetes-job"), x_nothing=""),
        listening.post("kubernetes", read("kubernetes-job"), authorization="Bearer another"),
        listening.post("kubernetes", read("kubernetes-job"), authorization=f"Basic {basic[:-4]}"),
        listening.post("acme", body, authorization=f"Bearer {SECRET}"),
        listening.post("acme", body, authorization=f"Bearer {OWN}"),
        listening.post("acme", body + b" ", x_acme_signature=right),
        listening.post("nobody", body),
    ]
    assert [answer.status_code for answer in refused] == [401] * len(refused)
    assert len({answer.text for answer in refused}) == 1
    taken = [
        listening.post("kubernetes", read("kubernetes-job"), authorization=f"Bearer {SECRET}"),
        listening.post("kubernetes", read("kubernetes-job"), authorization=f"Basic {basic}"),
        listening.post("acme", body, x_acme_signature=right),
        listening.post("acme", body, x_acme_signature=f"sha256={right}"),
    ]
    assert [answer.status_code for answer in taken] == [202] * len(taken)


def test_what_cannot_be_understood_is_refused_and_alerted(listening: Listening) -> None:
    document = json.loads(read("simpletuner-complete")) | {"job_id": "unknown"}
    answer = listening.post("simpletuner", json.dumps(document))
    assert (answer.status_code, answer.json()["error"]) == (422, "EventError")
    alerts = eventually(lambda: listening.events("training.run.not-understood", sender="simpletuner"), "alert")
    assert "none of its checkpoints was told of" in alerts[0]["payload"]["message"]
    complete = [{"type": "Complete", "status": "True"}]
    odd = {"kind": "Job", "metadata": {"annotations": [1]}, "status": {"conditions": complete}}
    answer = listening.post("kubernetes", json.dumps(odd))
    assert (answer.status_code, "another shape" in answer.json()["message"]) == (422, True)
    assert listening.post("simpletuner", "{").status_code == 400
    assert listening.post("simpletuner", "[" * 100_000).status_code == 400


@pytest.mark.slow
def test_a_message_that_is_too_long_is_not_kept_in_memory(listening: Listening) -> None:
    assert listening.post("simpletuner", b"x" * (1 << 20)).status_code == 400  # read, and no JSON
    assert listening.post("simpletuner", b"x" * ((1 << 20) + 1)).status_code == 413


@pytest.mark.slow
def test_while_what_a_message_refers_to_is_not_reached_the_platform_sends_again(listening: Listening) -> None:
    answer = listening.post("s3", read("s3-notification"))  # no S3 here to ask for the run's descriptor
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "30")


def test_messages_of_a_queue_become_events_and_leave_it(listening: Listening) -> None:
    envelope = {"Type": "Notification", "TopicArn": "arn:aws:sns:x", "Message": read("sagemaker-completed")}
    for body in (read("sagemaker-completed"), json.dumps(envelope), read("s3-test-event")):
        listening.sqs.send_message(QueueUrl=listening.queue, MessageBody=body)
    checkpoint = "s3://runs/sagemaker/sks-dog-7/output/model.tar.gz"
    eventually(lambda: listening.events("training.run.completed", checkpoint=checkpoint), "event")
    eventually(lambda: in_queue(listening) == 0, "empty queue")


@pytest.mark.slow
def test_a_message_of_a_queue_that_cannot_be_understood_stays_and_is_alerted_once(listening: Listening) -> None:
    listening.sqs.send_message(QueueUrl=listening.queue, MessageBody='{"of": "nobody"}')
    eventually(lambda: listening.events("training.run.not-understood", sender="sqs"), "alert")
    message = eventually(lambda: received_often(listening), "second delivery")
    assert in_queue(listening) == 1
    listening.sqs.delete_message(QueueUrl=listening.queue, ReceiptHandle=message["ReceiptHandle"])
    assert len(listening.events("training.run.not-understood", sender="sqs")) == 1


def received_often(listening: Listening) -> dict[str, Any] | None:
    """The message, once it was delivered to the receiver and came back."""
    answer = listening.sqs.receive_message(QueueUrl=listening.queue, AttributeNames=["ApproximateReceiveCount"])
    for message in answer.get("Messages", ()):
        if int(message["Attributes"]["ApproximateReceiveCount"]) > 2:
            return dict(message)
    return None


def in_queue(listening: Listening) -> int:
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    found = listening.sqs.get_queue_attributes(QueueUrl=listening.queue, AttributeNames=names)["Attributes"]
    return sum(int(found[name]) for name in names)


# --- what it does not start with --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "arguments", "status", "told"),
    [
        ("", (), 2, "ADAPTERLINE_LISTEN_SECRET"),
        ('[senders.acme]\ncheckpoint = "uri"\n', (), 2, "The sender acme has no secret"),
        ('[senders.s3]\ncheckpoint = "uri"\n', (), 2, "the name of a platform that is known"),
        ("", ("--sqs", "http://127.0.0.1:9/queue", "--sqs-sender", "nobody"), 2, "There is no sender 'nobody'"),
        ('listen_secret = "x"\n', ("--port", "taken"), 6, "cannot be listened at"),
    ],
)
def test_it_does_not_start_with_what_cannot_be(
    tmp_path: Path, settings: str, arguments: tuple[str, ...], status: int, told: str
) -> None:
    (tmp_path / "adapterline.toml").write_text(settings)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        given = [str(taken.getsockname()[1]) if each == "taken" else each for each in arguments]
        command = [sys.executable, "-m", "adapterline.cli", "listen", *given]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == status, done.stderr
    assert told in done.stderr
