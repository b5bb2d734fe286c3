"""A process that publishes one small package, and that dies where it is told to: by SIGKILL, between any two requests,
after one that the server has done, in the middle of one, or at any change of a folder.

It is forked from a process that has imported everything, so that a fault costs no second of imports.
"""

from __future__ import annotations

import http.client
import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from adapterline.destinations.base import Destination
from adapterline.errors import AdapterlineError
from adapterline.values import Order, ReadBack

Moment = Literal["before", "after", "half"]


@dataclass(frozen=True)
class Job:
    """What is published, and where; `day` orders the exports of the name."""

    uri: str
    name: str = "tiny"
    seed: int = 0
    tool: str = "1"
    size: int = 64
    day: int = 1
    multipart: int = 0
    """Bytes of a part, where files go to S3 in several; 0: they go in one."""
    read_back: ReadBack = "checksum"
    """What proves an upload to S3."""
    environment: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Death:
    """Before, in the middle of, or after the nth request (or change of a folder), from 1."""

    moment: Moment
    nth: int

    def __str__(self) -> str:
        return f"killed {self.moment} step {self.nth}"


@dataclass(frozen=True)
class Outcome:
    """What the exporter said before it ended; `steps` is how many requests or changes there were."""

    exit_code: int
    said: str
    steps: int


def run(job: Job, death: Death | None, answer: Any) -> None:
    """The whole life of the process; `answer` takes the outcome, if it lives that long."""
    os.environ.update(job.environment or {})
    steps = _Steps(death)
    with tempfile.TemporaryDirectory() as folder:
        outcome = _publish(job, steps, Path(folder))
    answer.send(outcome)
    answer.close()


def collect(job: Job, answer: Any) -> None:
    """A process that collects what killed ones left, whatever its age, and sends what it took."""
    from adapterline.retention import collect

    os.environ.update(job.environment or {})
    found = collect(job.name, [job.uri], timedelta(0), yes=True)
    answer.send(found.model_dump(mode="json"))
    answer.close()


def _publish(job: Job, steps: _Steps, folder: Path) -> Outcome:
    from tests.packages import make_package

    package = make_package(folder, job.seed, name=job.name, tool=job.tool, size=job.size)
    order = Order(finished_at=datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=job.day), run_id=job.tool)
    try:
        destination = _open(job, steps)
        destination.check()
        receipt = destination.stage(package)
        publication = destination.release(package, receipt, order)
    except AdapterlineError as error:
        return Outcome(error.exit_code, f"{type(error).__name__}: {error}", steps.count)
    return Outcome(0, "already published" if receipt.published else f"latest {publication.latest}", steps.count)


def _open(job: Job, steps: _Steps) -> Destination:
    scheme = job.uri.partition("://")[0]
    if scheme == "s3":
        from adapterline.destinations.s3 import S3Destination
        from adapterline.s3 import make_client

        client = make_client()
        client.meta.events.register("before-send.s3", steps.at_request_of_s3)
        parts = {"multipart": job.multipart} if job.multipart else {}
        return S3Destination(job.uri, job.name, client=client, read_back=job.read_back, **parts)
    if scheme == "hf":
        from adapterline.destinations import open_destination

        steps.watch_the_hub()
        return open_destination(job.uri, job.name)
    from adapterline.destinations.folder import FolderDestination

    steps.watch_the_folder(job.uri)
    return FolderDestination(job.uri, job.name)


class _Steps:
    """Counts, and kills."""

    def __init__(self, death: Death | None) -> None:
        self.count = 0
        self._death = death

    def next(self) -> Moment | None:
        self.count += 1
        return self._death.moment if self._death and self.count == self._death.nth else None

    def at_request_of_s3(self, request: Any, **_: Any) -> None:
        moment = self.next()
        if moment == "before":
            die()
        if moment in ("after", "half"):
            _send(request.method, request.url, request.headers, _bytes(request.body), half=moment == "half")
            die()

    def watch_the_hub(self) -> None:
        import httpx2
        from huggingface_hub import close_session, set_client_factory

        steps = self

        class Transport(httpx2.BaseTransport):
            def __init__(self) -> None:
                self._network = httpx2.HTTPTransport()

            def handle_request(self, request: httpx2.Request) -> httpx2.Response:
                moment = steps.next()
                if moment == "before":
                    die()
                if moment == "half":
                    _send(request.method, str(request.url), request.headers, request.read(), half=True)
                    die()
                answer = self._network.handle_request(request)
                if moment == "after":
                    die()
                return answer

        close_session()
        set_client_factory(lambda: httpx2.Client(transport=Transport(), follow_redirects=True, timeout=None))

    def watch_the_folder(self, root: str) -> None:
        """At each change that Python announces (PEP 578): a file opened to be written, renamed, linked, removed."""
        changes = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.truncate", "shutil.rmtree"}

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            written = event == "open" and isinstance(arguments[1], str) and arguments[1][:1] in "wxa"
            if (event in changes or written) and str(arguments[0]).startswith(root) and self.next():
                die()

        sys.addaudithook(hook)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _bytes(body: Any) -> bytes:
    if body is None or isinstance(body, bytes | bytearray):
        return bytes(body or b"")
    data: bytes = body.read()
    return data


def _send(method: str, url: str, headers: Mapping[str, Any], body: bytes, *, half: bool) -> None:
    """The request, or its headers and the first half of what they announce."""
    place = urlsplit(url)
    assert place.hostname
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=60)
    connection.putrequest(method, f"{place.path}?{place.query}" if place.query else place.path, skip_host=True)
    told = {name.lower(): value.decode() if isinstance(value, bytes) else str(value) for name, value in headers.items()}
    told.pop("expect", None)
    told.setdefault("host", place.netloc)
    if body:
        told["content-length"] = str(len(body))
        told.pop("transfer-encoding", None)
    for name, value in told.items():
        connection.putheader(name, value)
    connection.endheaders(body[: len(body) // 2] if half else body or None)
    if not half:
        connection.getresponse().read()
