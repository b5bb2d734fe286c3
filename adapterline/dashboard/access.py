"""Who may ask: the token, the session of a browser that showed it, and the names by which the server may be called.

A session is a time and its HMAC under a key that follows from the token: it holds no token, needs no store, is good for
every process that has the same token, and ends with the token.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from adapterline.errors import UsageError

COOKIE: Final = "adapterline-session"
SESSION_S: Final = 12 * 3600
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Access:
    """`token` None: everybody may ask. `hosts` None: by any name."""

    token: str | None = field(default=None, repr=False)
    hosts: frozenset[str] | None = None

    def is_called(self, host: str) -> bool:
        """Is this `Host` header one of the server's names? Another one is somebody's who points his name to it."""
        return self.hosts is None or _name_of(host) in self.hosts

    def has_token(self, given: str) -> bool:
        """Is it the token? Takes as long for any other."""
        return self.token is not None and hmac.compare_digest(_sum(given), _sum(self.token))

    def session(self, now: float) -> str:
        """The value of a cookie that is good from now on for `SESSION_S` seconds."""
        until = str(int(now) + SESSION_S)
        return f"{until}.{self._signature(until)}"

    def has_session(self, cookie: str, now: float) -> bool:
        """Is it a session that has not ended?"""
        until, _, signature = cookie.partition(".")
        if self.token is None or not re.fullmatch(r"[0-9]{1,12}", until):
            return False
        return hmac.compare_digest(_sum(signature), _sum(self._signature(until))) and now < int(until)

    def admits(self, authorization: str, cookie: str, now: float) -> bool:
        """Does a request with these headers show the token, as Bearer, or a session?"""
        if self.token is None:
            return True
        kind, _, credentials = authorization.partition(" ")
        if kind.lower() == "bearer" and self.has_token(credentials.strip()):
            return True
        return self.has_session(cookie, now)

    def _signature(self, until: str) -> str:
        key = hmac.digest((self.token or "").encode(), b"adapterline dashboard session", "sha256")
        return hmac.new(key, until.encode(), hashlib.sha256).hexdigest()


def access_at(host: str, token: str | None, allowed_hosts: Sequence[str], no_token: bool) -> Access:
    """Who may ask a server that is bound to `host`.

    UsageError for an address that others reach, without a token and without `no_token`, by which the user says that
    something before the server lets in whom it should.
    """
    if no_token:
        token = None
    elif token is None and not is_loopback(host):
        raise UsageError(
            f"The dashboard would be open to everybody who reaches {host}.",
            expected="ADAPTERLINE_DASHBOARD_TOKEN, or an address of this machine alone (127.0.0.1)",
            remedy="Set the token; or pass --no-token, if a proxy before it signs people in.",
        )
    named = {_name_of(each) for each in allowed_hosts}
    if not named and not is_loopback(host):
        return Access(token, None)
    return Access(token, frozenset({*_LOOPBACK, _name_of(host), *named}))


def is_loopback(host: str) -> bool:
    """Is it an address that this machine alone reaches?"""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _name_of(host: str) -> str:
    """A `Host` header without its port; an IPv6 address without its brackets."""
    match = re.fullmatch(r"\[([0-9a-fA-F:.]+)\](:\d+)?|([^:]*)(:\d+)?|([0-9a-fA-F:]+)", host)
    return (match[1] or match[3] or match[5] or "").lower().rstrip(".") if match else ""


def _sum(text: str) -> bytes:
    # What is compared has one length, whatever was given.
    return hashlib.sha256(text.encode(errors="replace")).digest()
