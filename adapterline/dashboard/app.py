"""The application: routes, errors, and the guard before them."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from adapterline.dashboard import api, metrics, pages, signing_in
from adapterline.dashboard.access import Access
from adapterline.dashboard.guard import Guard
from adapterline.dashboard.links import without_secrets
from adapterline.dashboard.rendering import page
from adapterline.errors import AdapterlineError, MachineError, PublishError, UnknownLineageError, UsageError
from adapterline.lineage.index import Index

#: The first that fits.
_STATUS: tuple[tuple[type[AdapterlineError], int], ...] = (
    (UnknownLineageError, 404),
    (UsageError, 422),
    (PublishError, 502),
    (MachineError, 503),
)
_RETRY_S = "30"


def make_app(index: Index, access: Access) -> FastAPI:
    """The dashboard over an index, an ASGI application."""
    app = FastAPI(
        title="adapterline",
        version="1",
        summary="Where LoRA adapters come from, what was proven of them, and where they are published.",
        openapi_url="/api/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.index, app.state.access = index, access
    for router in (api.router, metrics.router, pages.router, signing_in.router):
        app.include_router(router)
    app.add_exception_handler(AdapterlineError, _of_ours)
    app.add_exception_handler(RequestValidationError, _of_a_request)
    app.add_exception_handler(HTTPException, _of_http)
    app.add_middleware(Guard, access=access, problem=_problem)
    return app


def api_document() -> dict[str, Any]:
    """The OpenAPI document of the JSON API, which hangs on no index."""
    return make_app(Index("sqlite://"), Access()).openapi()


async def _of_ours(request: Request, error: Exception) -> Response:
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
    return _problem(request, status, error)


async def _of_a_request(request: Request, error: Exception) -> Response:
    """What FastAPI says of a parameter, in our words."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    name = str(first["loc"][-1]) if first["loc"] else "the request"
    given = "" if first.get("input") is None or first["type"] == "missing" else f" {str(first['input'])[:100]!r}"
    said = str(first["msg"]).removeprefix("Value error, ").rstrip(".")
    return _problem(request, 422, UsageError(f"{name}{given}: {said}.", remedy="Correct the address."))


async def _of_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    answer = _problem(request, error.status_code, None)
    answer.headers.update(error.headers or {})
    return answer


def _problem(request: Request, status: int, error: Exception | None) -> Response:
    """A page, or for the API a document; of an error that is not ours only that there was one."""
    told = error if isinstance(error, AdapterlineError) else _plain(request, status)
    if request.url.path.startswith("/api/"):
        document = {
            "error": type(told).__name__ if status != 500 else "InternalError",
            "message": str(told),
            "found": told.found,
            "expected": told.expected,
            "remedy": told.remedy,
        }
        answer: Response = JSONResponse({key: without_secrets(text) for key, text in document.items()}, status)
    else:
        is_swap = "hx-request" in request.headers
        template = "problem_part.html" if is_swap else "problem.html"
        answer = page(request, template, status, title=_phrase(status), status=status, error=told)
    if told.transient:
        answer.headers["Retry-After"] = _RETRY_S
    return answer


def _plain(request: Request, status: int) -> AdapterlineError:
    match status:
        case 404:
            return UsageError("There is no such page.", remedy="Begin at the adapters.")
        case 405:
            return UsageError("This page is only read.", expected="GET or HEAD")
        case 421:
            return UsageError(
                f"This server is not called {request.headers.get('host', '')[:100]!r}.",
                expected="the address that it is bound to",
                remedy="Name others with adapterline dashboard --allowed-host.",
            )
        case 500:
            return AdapterlineError("Something went wrong here.", remedy="The server's log has the traceback.")
    return UsageError(f"{_phrase(status)}.")


def _phrase(status: int) -> str:
    return HTTPStatus(status).phrase
