"""`adapterline listen --sqs`: messages of an Amazon SQS queue, which EventBridge, S3 or SNS put there.

A message goes from the queue once it is told of. One that cannot be understood stays, for the queue's redrive policy to
move it away; so does one that comes while Prefect cannot be reached.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

from adapterline.errors import AdapterlineError, EventError, MachineError
from adapterline.events.receiver import Told, Way, handle
from adapterline.events.translators import TRANSLATORS, recognize, unwrapped

log = logging.getLogger("adapterline.listen")
_WAIT = 20  # seconds that a request stays open for a message: the most that SQS allows
_PAUSE = 10  # seconds after the queue could not be reached


def consume(url: str, sender: str | None, ways: Mapping[str, Way], told: Told, stop: threading.Event) -> None:
    """Takes messages until `stop`. `sender` names the way of all of them; without it each message says its own.

    MachineError if the queue is not there or forbidden; while it cannot be reached it is tried again.
    """
    client = _client(url)
    while not stop.is_set():
        for message in _receive(client, url, stop):
            if _is_done(message, sender, ways, told):
                _delete(client, url, message)


def _is_done(message: Mapping[str, Any], sender: str | None, ways: Mapping[str, Way], told: Told) -> bool:
    try:
        try:
            payload = unwrapped(json.loads(message["Body"]))
        except (ValueError, RecursionError) as error:
            raise EventError("A message of the queue is no JSON.", expected="JSON") from error
        name = sender or recognize(payload)
        way = ways.get(name) or Way(name, TRANSLATORS[name], b"")  # who may send is the queue's own policy
    except EventError as error:
        told.refused("sqs", error, message["MessageId"])
        log.warning("sqs: %s", error)
        return False
    try:
        handle(way, payload, told, message["MessageId"])
    except AdapterlineError as error:
        log.warning("%s: %s", name, error)
        return False
    return True


def _client(url: str) -> Any:
    import boto3
    from botocore.config import Config

    return boto3.session.Session().client(
        "sqs", config=Config(connect_timeout=5, read_timeout=_WAIT + 10, retries={"mode": "standard"})
    )


def _receive(client: Any, url: str, stop: threading.Event) -> list[Mapping[str, Any]]:
    answer = _asked(client.receive_message, stop, QueueUrl=url, MaxNumberOfMessages=10, WaitTimeSeconds=_WAIT)
    return list(answer.get("Messages", ()))


def _delete(client: Any, url: str, message: Mapping[str, Any]) -> None:
    """If that fails the message comes again, and is the same event."""
    _asked(client.delete_message, threading.Event(), QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])


def _asked(ask: Callable[..., dict[str, Any]], stop: threading.Event, **arguments: Any) -> dict[str, Any]:
    from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError

    try:
        return ask(**arguments)
    except HTTPClientError as error:
        log.warning("sqs: %s; trying again in %d s", str(error).splitlines()[0], _PAUSE)
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] < 500 and not _is_throttled(error):
            raise MachineError(
                f"The queue {arguments['QueueUrl']} cannot be used: {str(error)[:200]}.",
                expected="a queue that may be read, and messages that may be deleted",
                remedy="Check its URL, AWS_* and the queue's policy.",
            ) from error
        log.warning("sqs: %s; trying again in %d s", str(error)[:200], _PAUSE)
    except BotoCoreError as error:
        raise MachineError(
            f"The queue {arguments['QueueUrl']} cannot be used: {str(error)[:200]}.",
            expected="credentials and a region",
            remedy="Check AWS_*.",
        ) from error
    stop.wait(_PAUSE)
    return {}


def _is_throttled(error: Any) -> bool:
    return "Throttl" in str(error.response.get("Error", {}).get("Code", ""))
