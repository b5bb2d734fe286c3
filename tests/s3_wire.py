"""Between a client of S3 and its server: what goes over, what gets lost, what is answered instead."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.exceptions import ConnectionClosedError
from botocore.httpsession import URLLib3Session

from adapterline.s3 import make_client


class CrashError(Exception):
    """The process died. No library takes it for a fault of the network."""


class Wire:
    """What goes from one client to the server: every request is kept as (method, path); `act` may interfere."""

    def __init__(self, client: Any) -> None:
        self.requests: list[tuple[str, str]] = []
        self.act: Callable[[int, AWSPreparedRequest], None] = lambda number, request: None
        self._lock = threading.Lock()
        self._events = client.meta.events
        self._events.register("before-send.s3", self._before_send)

    def _before_send(self, request: AWSPreparedRequest, **_: Any) -> None:
        with self._lock:
            self.requests.append((request.method, urlsplit(request.url).path))
            number = len(self.requests)
        self.act(number, request)

    def restart(self, act: Callable[[int, AWSPreparedRequest], None]) -> None:
        self.requests.clear()
        self.act = act

    @property
    def writes(self) -> list[tuple[str, str]]:
        return [each for each in self.requests if each[0] not in ("GET", "HEAD")]


def deliver(request: AWSPreparedRequest) -> None:
    session = URLLib3Session()
    session.send(request)
    session.close()


def crash_at(nth: int, *, delivered: bool) -> Callable[[int, AWSPreparedRequest], None]:
    def act(number: int, request: AWSPreparedRequest) -> None:
        if number == nth and delivered:
            deliver(request)
        if number >= nth:  # the dead do not tidy up
            raise CrashError

    return act


def lose_answer_of(nth: int) -> Callable[[int, AWSPreparedRequest], None]:
    def act(number: int, request: AWSPreparedRequest) -> None:
        if number == nth:
            deliver(request)
            raise ConnectionClosedError(endpoint_url=request.url)

    return act


@contextmanager
def wired() -> Iterator[tuple[Any, Wire]]:
    client = make_client()
    try:
        yield client, Wire(client)
    finally:
        client.close()


def objects(s3: Any, bucket: str, prefix: str = "") -> dict[str, bytes]:
    rows = s3.list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", ())
    return {row["Key"]: s3.get_object(Bucket=bucket, Key=row["Key"])["Body"].read() for row in rows}


def open_uploads(s3: Any, bucket: str) -> list[Any]:
    return list(s3.list_multipart_uploads(Bucket=bucket).get("Uploads", ()))


# --- what is answered instead of the server ---------------------------------------------------------------------------


class _Raw(io.BytesIO):
    def stream(self, **_: Any) -> Iterator[bytes]:
        yield self.getvalue()


def answer(request: AWSPreparedRequest, status: int, body: str = "", **headers: str) -> AWSResponse:
    """In place of the server's."""
    return AWSResponse(request.url, status, headers, _Raw(body.encode()))


def refusal(request: AWSPreparedRequest, status: int, code: str) -> AWSResponse:
    return answer(request, status, f"<Error><Code>{code}</Code><Message>no</Message></Error>")


@contextmanager
def answering(act: Callable[[AWSPreparedRequest], AWSResponse | None]) -> Iterator[Any]:
    """A client some of whose requests `act` answers; the others go to the server."""
    client = make_client()
    client.meta.events.register("before-send.s3", lambda request, **_: act(request))
    try:
        yield client
    finally:
        client.close()


@contextmanager
def accepting() -> Iterator[tuple[Any, list[AWSPreparedRequest]]]:
    """A client all of whose requests are answered with yes, and what it asked for."""
    requests: list[AWSPreparedRequest] = []
    bodies: dict[str, str] = {
        "POST uploads": "<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>",
        "POST uploadId": "<CompleteMultipartUploadResult><ETag>e</ETag></CompleteMultipartUploadResult>",
    }

    def act(request: AWSPreparedRequest) -> AWSResponse:
        requests.append(request)
        name = f"{request.method} {urlsplit(request.url).query.partition('=')[0]}"
        return answer(request, 200, bodies.get(name, ""), ETag='"e"')

    with answering(act) as client:
        yield client, requests


def part_of(url: str) -> str:
    """`partNumber=7` of an upload's part; "" of anything else."""
    return next((each for each in urlsplit(url).query.split("&") if each.startswith("partNumber")), "")


def text_of(header: str | bytes) -> str:
    return header.decode() if isinstance(header, bytes) else header
