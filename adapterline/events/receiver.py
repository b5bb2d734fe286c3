"""`adapterline listen` over HTTP: what a platform posts to `/events/{sender}` becomes the event that starts an export.

The answer is 202 with the ids of the events, or with none for a message that only goes by; 422 for one that should
name a run and does not; 401 without the secret; 503 while Prefect, or what a message refers to, cannot be reached: a
platform sends again.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

from adapterline.errors import AdapterlineError, EventError, UsageError
from adapterline.events.sender import Sender
from adapterline.events.training_completed import TrainingCompleted
from adapterline.events.translators import TRANSLATORS, Surroundings, Translator, translator_of, unwrapped

if TYPE_CHECKING:
    from fastapi import FastAPI, Request

#: Messages are a few KB; SimpleTuner's of validation images, which end no run, are megabytes, and not read.
MAX_BODY: Final = 1 << 20  # bytes
log = logging.getLogger("adapterline.listen")


class Told(Surroundings, Protocol):
    """Prefect, as a receiver sees it."""

    def complete(self, event: TrainingCompleted) -> str:
        """Tells of a run that ended; the event's id. MachineError, transient, if nobody is there to be told."""

    def refused(self, sender: str, error: AdapterlineError, message: str) -> None:
        """Tells of a message that could not be understood; `message` is its id, the same when it comes again."""


@dataclass(frozen=True)
class Way:
    """How a sender's messages are read, and how it shows who it is."""

    name: str
    translate: Translator
    secret: bytes = field(repr=False)
    signature_header: str | None = None

    def admits(self, headers: Mapping[str, str], body: bytes) -> bool:
        """Does the request have the secret, as Bearer, as X-API-Key or as Basic's password, or the body's HMAC?"""
        if self.signature_header:
            given = headers.get(self.signature_header, "").removeprefix("sha256=")
            return _same(given, hmac.new(self.secret, body, hashlib.sha256).hexdigest())
        kind, _, credentials = headers.get("authorization", "").partition(" ")
        given = headers.get("x-api-key", "")
        if kind.lower() == "bearer":
            given = credentials.strip()
        elif kind.lower() == "basic":
            given = _password(credentials)
        return _same(given, self.secret.decode())


def ways_of(senders: Mapping[str, Sender], secret: str | None, environment: Mapping[str, str]) -> dict[str, Way]:
    """Every known sender and those of the settings; UsageError for one without a secret or with a taken name."""
    ways = {}
    for name, translate in TRANSLATORS.items():
        if name in senders:
            raise UsageError(
                f"senders.{name} is the name of a platform that is known.",
                expected=f"another name than {', '.join(TRANSLATORS)}",
                remedy="Rename it in adapterline.toml.",
            )
        if secret:
            ways[name] = Way(name, translate, secret.encode())
    for name, sender in senders.items():
        own = environment.get(sender.secret_env, "") if sender.secret_env else secret
        if not own:
            raise UsageError(
                f"The sender {name} has no secret.",
                expected=f"{sender.secret_env or 'ADAPTERLINE_LISTEN_SECRET'} in the environment",
                remedy="Set it: whoever can post to the receiver starts exports.",
            )
        ways[name] = Way(name, translator_of(name, sender), own.encode(), sender.signature_header)
    if not ways:
        raise UsageError(
            "The receiver has no secret.",
            expected="ADAPTERLINE_LISTEN_SECRET in the environment",
            remedy="Set it, and give the senders the same: whoever can post to the receiver starts exports.",
        )
    return ways


def handle(way: Way, payload: Any, told: Told, message: str) -> tuple[str, ...]:
    """The ids of the events that a message becomes. EventError, told before it is raised, if it cannot be understood.

    Other errors, which another try may end, pass: MachineError, and CheckpointError of a descriptor.
    """
    try:
        events = _translated(way, payload, told)
    except AdapterlineError as error:
        if not error.transient:
            told.refused(way.name, error, message)
        raise
    ids = tuple(told.complete(event) for event in events)
    for event, id_ in zip(events, ids, strict=True):
        log.info("%s: %s ended, event %s", way.name, event.checkpoint, id_)
    return ids


def _translated(way: Way, payload: Any, told: Told) -> tuple[TrainingCompleted, ...]:
    try:
        return way.translate(unwrapped(payload), told)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise EventError(
            f"A message of {way.name} has another shape than its platform sends ({type(error).__name__}: {error}).",
            expected="what the platform's documentation shows",
            remedy="Look at what the sender really sends.",
        ) from error


def make_app(ways: Mapping[str, Way], told: Told) -> FastAPI:
    """The receiver, an ASGI application."""
    from fastapi import FastAPI, Request
    from fastapi.concurrency import run_in_threadpool
    from fastapi.responses import JSONResponse

    app = FastAPI(title="adapterline", docs_url=None, redoc_url=None, openapi_url=None)

    def answer(code: int, /, **content: Any) -> JSONResponse:
        return JSONResponse(content, code, {"Retry-After": "30"} if code == 503 else None)

    @app.get("/healthz")
    async def healthz() -> JSONResponse:
        return answer(200, status="ok", senders=sorted(ways))

    async def events(sender: str, request: Request) -> JSONResponse:
        body = await _body(request)
        way = ways.get(sender)
        # An unknown sender looks as one without the secret does: the names of senders are nobody's business.
        if way is None or body is None or not way.admits(request.headers, body):
            if way is not None and body is None:
                return answer(413, error=f"a message has at most {MAX_BODY} bytes")
            return answer(401, error="no such sender, or not its secret")
        try:
            payload = json.loads(body)
        except (ValueError, RecursionError):
            return answer(400, error="the body is no JSON")
        message = hashlib.sha256(body).hexdigest()
        try:
            ids = await run_in_threadpool(handle, way, payload, told, message)
        except AdapterlineError as error:
            log.warning("%s: %s", sender, error)
            return answer(503 if error.transient else 422, error=type(error).__name__, message=str(error))
        return answer(202, events=list(ids))

    # FastAPI resolves annotations among the module's names, where Request is only while types are checked.
    events.__annotations__["request"] = Request
    app.post("/events/{sender}")(events)
    return app


async def _body(request: Request) -> bytes | None:
    """The body; None if it is longer than a message may be, whatever its header says."""
    read = bytearray()
    async for chunk in request.stream():
        read += chunk
        if len(read) > MAX_BODY:
            return None
    return bytes(read)


def _same(given: str, expected: str) -> bool:
    return bool(given) and hmac.compare_digest(given.encode(), expected.encode())


def _password(credentials: str) -> str:
    try:
        return base64.b64decode(credentials, validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        return ""
