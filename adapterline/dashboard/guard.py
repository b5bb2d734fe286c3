"""What stands before every route: the host's name, the token, and what an answer says to a browser.

It also turns what nobody caught into a page: the frameworks' own would have none of these headers.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final
from urllib.parse import quote

from fastapi import Request
from fastapi.responses import JSONResponse, RedirectResponse, Response
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapterline.dashboard.access import COOKIE, Access
from adapterline.dashboard.rendering import page

log = logging.getLogger("adapterline.dashboard")

_POLICY = {
    "default-src": "'none'",
    "style-src": "'self'",
    "script-src": "'self'",
    "img-src": "'self'",
    "connect-src": "'self'",
    "form-action": "'self'",
    "frame-ancestors": "'none'",
    "base-uri": "'none'",
}
HEADERS: Final = {
    "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in _POLICY.items()),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
#: What has nothing to tell: whoever signs in needs it before.
ALIVE: Final = "/healthz"
_OPEN = ("/login", ALIVE)
_OPEN_BELOW = "/static/"

Problem = Callable[[Request, int, Exception | None], Response]


class Guard:
    """An ASGI application around another one. `problem` makes the answer for what was not foreseen."""

    def __init__(self, app: ASGIApp, *, access: Access, problem: Problem) -> None:
        self._app = app
        self._access = access
        self._problem = problem

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request, answer = Request(scope), _Answer(scope, send, "no-store" if self._access.token else "no-cache")
        if scope["method"] == "HEAD":  # routes know of GET
            scope = {**scope, "method": "GET"}
        if (refusal := self._refusal(request)) is not None:
            await refusal(scope, receive, answer)
            return
        try:
            await self._app(scope, receive, answer)
        except Exception as error:
            if answer.has_begun:
                raise
            log.exception("%s %s", request.method, request.url.path)
            await self._problem(request, 500, error)(scope, receive, answer)

    def _refusal(self, request: Request) -> Response | None:
        path = request.url.path
        if path != ALIVE and not self._access.is_called(request.headers.get("host", "")):
            return self._problem(request, 421, None)
        if path in _OPEN or path.startswith(_OPEN_BELOW):
            return None
        cookie = request.cookies.get(COOKIE, "")
        if self._access.admits(request.headers.get("authorization", ""), cookie, time.time()):
            return None
        return _sign_in(request)


def _sign_in(request: Request) -> Response:
    if request.url.path.startswith(("/api/", "/metrics")):
        error = {"error": "Unauthorized", "message": "Expected the token, as Authorization: Bearer."}
        return JSONResponse(error, 401, {"WWW-Authenticate": "Bearer"})
    here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    login = f"/login?next={quote(here, safe='')}"
    if "hx-request" in request.headers:
        return Response(status_code=401, headers={"HX-Redirect": login})
    if request.headers.get("sec-fetch-site") == "cross-site":
        # A SameSite=Strict cookie does not come along from another site's link, but from this page on it does.
        return page(request, "onward.html", 200, here=here)
    return RedirectResponse(login, 303)


class _Answer:
    """Sends with the headers of every answer; of one to HEAD no body."""

    def __init__(self, scope: Scope, send: Send, caching: str) -> None:
        self._send = send
        self._caching = caching
        self._has_body = scope["method"] != "HEAD"
        self.has_begun = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.has_begun = True
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
            headers.setdefault("Cache-Control", self._caching)
        elif message["type"] == "http.response.body" and not self._has_body:
            message = {**message, "body": b""}
        await self._send(message)
