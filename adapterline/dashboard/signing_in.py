"""How a browser shows the token: once, in a form; from then on its session."""

from __future__ import annotations

import time
from typing import Annotated
from urllib.parse import parse_qs

from fastapi import APIRouter, Query, Request
from fastapi.responses import RedirectResponse, Response

from adapterline.dashboard.access import COOKIE, SESSION_S, Access
from adapterline.dashboard.rendering import page

router = APIRouter(include_in_schema=False)
_MOST_BYTES = 8192


@router.get("/login")
def form(request: Request, next: Annotated[str, Query(max_length=4000)] = "/") -> Response:
    """Asks for the token."""
    access: Access = request.app.state.access
    if access.token is None:
        return RedirectResponse("/", 303)
    return page(request, "login.html", next=_own(next), wrong=False)


@router.post("/login")
async def sign_in(request: Request) -> Response:
    """Gives a session for the token."""
    access: Access = request.app.state.access
    told = await _form(request)
    onward = _own(told.get("next", "/"))
    if not access.has_token(told.get("token", "")):
        return page(request, "login.html", 401, next=onward, wrong=True)
    answer = RedirectResponse(onward, 303)
    answer.set_cookie(
        COOKIE,
        access.session(time.time()),
        max_age=SESSION_S,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return answer


@router.post("/logout")
async def sign_out() -> Response:
    """Takes the session from the browser."""
    answer = RedirectResponse("/login", 303)
    answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return answer


def _own(address: str) -> str:
    """An address of this server; of any other, the first page. A browser takes // and /\\ for another host."""
    is_own = address.startswith("/") and not address.startswith(("//", "/\\"))
    return address if is_own and address.isprintable() else "/"


async def _form(request: Request) -> dict[str, str]:
    """The fields of a form, without a library for forms; nothing of one that is too long."""
    read = bytearray()
    async for chunk in request.stream():
        read += chunk
        if len(read) > _MOST_BYTES:
            return {}
    fields = parse_qs(read.decode(errors="replace"), keep_blank_values=True, max_num_fields=10)
    return {name: values[-1] for name, values in fields.items()}
