"""Who may ask, by which name, with which methods, and what every answer says to a browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from adapterline.dashboard.access import COOKIE, SESSION_S, Access, access_at, is_loopback
from adapterline.errors import UsageError
from adapterline.lineage import Index
from tests.dashboard.conftest import TOKEN
from tests.dashboard.seeded import Seeded, every_page
from tests.dashboard.served import served

_POLICY = {
    "default-src 'none'",
    "style-src 'self'",
    "script-src 'self'",
    "img-src 'self'",
    "connect-src 'self'",
    "form-action 'self'",
    "frame-ancestors 'none'",
    "base-uri 'none'",
}


@pytest.fixture
def stranger(guarded: str) -> Iterator[httpx.Client]:
    """Somebody who has not shown the token."""
    with httpx.Client(base_url=guarded) as client:
        yield client


def signed_in(client: httpx.Client, next: str = "/adapters") -> httpx.Response:
    answer = client.post("/login", data={"token": TOKEN, "next": next})
    assert answer.status_code == 303
    return answer


# --- what every answer says -------------------------------------------------------------------------------------------


def test_every_answer_has_the_policy_and_no_page_has_what_it_forbids(client: httpx.Client, seeded: Seeded) -> None:
    paths = [*every_page(seeded).values(), "/", "/api/v1/counts", "/api/openapi.json", "/healthz", "/adapters?page=0"]
    style = re.search(r"/static/[^\"]+css", client.get("/adapters").text)
    assert style
    for path in [*paths, style[0], "/static/0/x.css"]:
        answer = client.get(path)
        assert set(answer.headers["Content-Security-Policy"].split("; ")) == _POLICY, path
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert "server" not in answer.headers
        if answer.headers.get("Content-Type", "").startswith("text/html"):
            assert not re.search(r"<style|\sstyle=|\son[a-z]+=|<script(?![^>]*\ssrc=)|javascript:", answer.text), path


def test_what_nobody_foresaw_is_a_page_with_the_same_headers_and_no_traceback(tmp_path: Path) -> None:
    class Broken(Index):
        def counts(self) -> Any:
            raise RuntimeError("s3cret")

    with served(Broken(f"sqlite:///{tmp_path}/i.sqlite"), Access()) as url:
        page, document = httpx.get(f"{url}/health"), httpx.get(f"{url}/api/v1/counts")
    assert page.status_code == document.status_code == 500
    for answer in (page, document):
        assert set(answer.headers["Content-Security-Policy"].split("; ")) == _POLICY
        assert "s3cret" not in answer.text
        assert "Traceback" not in answer.text
    assert "Internal Server Error" in page.text
    assert document.json()["error"] == "InternalError"


def test_an_index_that_does_not_answer_is_unavailable_and_its_password_is_not_told() -> None:
    index = Index("postgresql://adapterline:s3cret@127.0.0.1:1/lineage")
    with served(index, Access()) as url:
        page, document, alive = (httpx.get(f"{url}{path}") for path in ("/adapters", "/api/v1/counts", "/healthz"))
    for answer in (page, document, alive):
        assert answer.status_code == 503
        assert answer.headers["Retry-After"] == "30"
        assert "s3cret" not in answer.text
    assert document.json()["error"] == "MachineError"


# --- methods and names ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_it_is_only_read(client: httpx.Client, seeded: Seeded, method: str) -> None:
    for path in ("/adapters", seeded.path, "/runs", "/api/v1/versions", "/which"):
        assert client.request(method, path).status_code == 405, path


def test_the_head_of_a_page_is_its_answer_without_the_body(client: httpx.Client, seeded: Seeded) -> None:
    for path in (seeded.path, "/api/v1/counts"):
        head, whole = client.head(path), client.get(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["Content-Length"] == str(len(whole.content))


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "[::2]:80", "", "a:b:c"])
def test_another_name_is_refused_whoever_points_it_here(client: httpx.Client, host: str) -> None:
    for path in ("/adapters", "/api/v1/counts", "/login"):
        answer = client.get(path, headers={"Host": host})
        assert answer.status_code in (400, 421), path
        assert "studio-portrait" not in answer.text


@pytest.mark.parametrize("host", ["127.0.0.1:1", "localhost", "LOCALHOST:8788", "[::1]:8788"])
def test_its_own_names_are_taken(client: httpx.Client, host: str) -> None:
    assert client.get("/adapters", headers={"Host": host}).status_code == 200


def test_more_names_can_be_allowed_and_a_probe_needs_none(seeded: Seeded) -> None:
    access = access_at("127.0.0.1", None, ("adapters.example", "10.0.0.7:8788"), no_token=False)
    with served(seeded.index, access) as url:
        status = {
            host: httpx.get(f"{url}/runs", headers={"Host": host}).status_code
            for host in ("adapters.example", "adapters.example:443", "10.0.0.7", "other.example")
        }
        assert httpx.get(f"{url}/healthz", headers={"Host": "10.1.2.3:8788"}).json() == {"status": "ok"}
    assert list(status.values()) == [200, 200, 200, 421]


def test_an_address_that_others_reach_needs_a_token_or_somebody_who_answers_for_it() -> None:
    for host in ("0.0.0.0", "::", "192.168.1.2", "adapters.example"):
        with pytest.raises(UsageError, match="ADAPTERLINE_DASHBOARD_TOKEN"):
            access_at(host, None, (), no_token=False)
        assert access_at(host, TOKEN, (), no_token=False) == Access(TOKEN, None)
        assert access_at(host, None, (), no_token=True) == Access(None, None)
        assert access_at(host, TOKEN, (), no_token=True).token is None
    for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"):
        assert is_loopback(host)
        assert access_at(host, None, (), no_token=False).hosts is not None


# --- the token --------------------------------------------------------------------------------------------------------


def test_without_the_token_nothing_is_told(stranger: httpx.Client, seeded: Seeded) -> None:
    image = f"{seeded.path}/{seeded.shown.images[0].path}"
    for path in [*every_page(seeded).values(), image, "/", "/nowhere"]:
        answer = stranger.get(path)
        assert (answer.status_code, answer.content) == (303, b""), path
        assert answer.headers["location"].startswith("/login?next=%2F")
    for path in ("/api/v1/versions", "/api/openapi.json", "/api/v1/nowhere", "/metrics"):
        answer = stranger.get(path)
        assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer"), path
        assert "studio" not in answer.text
    part = stranger.get("/adapters?search=a", headers={"HX-Request": "true"})
    assert (part.status_code, part.content) == (401, b"")
    assert part.headers["HX-Redirect"] == "/login?next=%2Fadapters%3Fsearch%3Da"


@pytest.mark.parametrize("path", ["/api/v1/counts", "/adapters"])
def test_a_program_shows_the_token_as_bearer(stranger: httpx.Client, path: str) -> None:
    def status(authorization: str) -> int:
        return stranger.get(path, headers={"Authorization": authorization}).status_code

    assert status(f"Bearer {TOKEN}") == status(f"bearer {TOKEN}") == 200
    for wrong in ("", TOKEN, f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "Bearer", f"Basic {TOKEN}"):
        assert status(wrong) in (303, 401), wrong


def test_a_browser_signs_in_once_and_its_cookie_does_not_hold_the_token(stranger: httpx.Client) -> None:
    answer = signed_in(stranger, "/runs?outcome=failed")
    assert answer.headers["location"] == "/runs?outcome=failed"
    cookie = answer.headers["set-cookie"]
    assert TOKEN not in cookie
    for attribute in ("HttpOnly", "SameSite=strict", "Path=/", f"Max-Age={SESSION_S}"):
        assert attribute in cookie
    page = stranger.get("/adapters")
    assert page.status_code == 200
    assert page.headers["Cache-Control"] == "no-store"
    assert "Sign out" in page.text
    assert stranger.post("/logout").status_code == 303
    assert stranger.get("/adapters").status_code == 303


def test_behind_tls_the_cookie_goes_over_nothing_else(stranger: httpx.Client) -> None:
    answer = stranger.post("/login", data={"token": TOKEN}, headers={"X-Forwarded-Proto": "https"})
    assert "Secure" in answer.headers["set-cookie"]


@pytest.mark.parametrize("token", ["", "wrong", TOKEN[:-1], f"{TOKEN} ", "ü" * 20, "x" * 9000])
def test_another_token_gives_no_session(stranger: httpx.Client, token: str) -> None:
    answer = stranger.post("/login", data={"token": token, "next": "/runs"})
    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers
    assert "This is not the token." in answer.text


def test_a_session_ends_and_can_be_neither_made_nor_prolonged_without_the_token() -> None:
    access, now = Access(TOKEN), 1_000_000.0
    session = access.session(now)
    until, signature = session.split(".")
    assert access.has_session(session, now)
    assert access.has_session(session, now + SESSION_S - 1)
    assert not access.has_session(session, now + SESSION_S)
    for forged in (
        f"{int(until) + 1}.{signature}",
        f"{until}.{signature[:-1]}",
        f"{until}.{'0' * 64}",
        f"{until}.",
        until,
        "",
        f" {session}",
        f"{'9' * 13}.{signature}",
    ):
        assert not access.has_session(forged, now), forged
    assert not Access("another token of theirs").has_session(session, now)
    assert not Access(None).has_session(Access(None).session(now), now)


@pytest.mark.parametrize("next", ["//evil.example", "/\\evil.example", "https://evil.example", "runs", "/a\r\nb"])
def test_who_signs_in_stays_here(stranger: httpx.Client, next: str) -> None:
    assert signed_in(stranger, next).headers["location"] == "/"


def test_who_comes_from_another_site_goes_on_to_the_page_with_the_session(stranger: httpx.Client) -> None:
    """A link in Prefect: the first request comes without the cookie, and what it gets makes the second."""
    first = stranger.get("/runs?outcome=failed", headers={"Sec-Fetch-Site": "cross-site"})
    assert first.status_code == 200
    assert '<meta http-equiv="refresh" content="0;url=/runs?outcome=failed">' in first.text
    second = stranger.get("/runs?outcome=failed", headers={"Sec-Fetch-Site": "same-origin"})
    assert second.headers["location"] == "/login?next=%2Fruns%3Foutcome%3Dfailed"


def test_a_cookie_of_that_name_alone_opens_nothing(stranger: httpx.Client) -> None:
    stranger.cookies.set(COOKIE, "9999999999.0")
    assert stranger.get("/adapters").status_code == 303
