"""Addresses: of the dashboard's own pages, for whoever links to them, and of others that a page may link to."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

if TYPE_CHECKING:
    from adapterline.settings import Settings

_USERINFO = re.compile(r"(?<=://)[^\s/?#]*@")
_QUERY = re.compile(r"(://[^\s?#\"'<>]*)\?[^\s#\"'<>)]+")


def version_path(name: str, digest: str) -> str:
    """The page of a version, by the whole digest or its first 12 digits."""
    return f"/adapters/{quote(name, safe='')}/{digest[:12]}"


def run_path(record_id: str) -> str:
    """The page of a run, by the id of its record."""
    return f"/runs/{quote(record_id, safe='')}"


def version_url(settings: Settings, name: str, digest: str) -> str | None:
    """The address of a version's page; None where `ADAPTERLINE_DASHBOARD_URL` is not set."""
    return _absolute(settings, version_path(name, digest))


def run_url(settings: Settings, record_id: str) -> str | None:
    """The address of a run's page; None where `ADAPTERLINE_DASHBOARD_URL` is not set."""
    return _absolute(settings, run_path(record_id))


def _absolute(settings: Settings, path: str) -> str | None:
    return f"{settings.dashboard_url.rstrip('/')}{path}" if settings.dashboard_url else None


def without_secrets(text: str) -> str:
    """A text in which no URL has a user, a password or a query: a signature or a token may be in it."""
    return _QUERY.sub(r"\1?…", _USERINFO.sub("…@", text)) if "://" in text else text


def href(url: str | None) -> str | None:
    """The URL, if it may be the target of a link: of the web, and nothing in it that `without_secrets` takes out."""
    if not url or without_secrets(url) != url or re.search(r"[\s\\\x00-\x1f]", url):
        return None
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    return url if parts.scheme in ("http", "https") and parts.hostname else None


def hub_url(location: str) -> str | None:
    """The page of what lies at `hf://org/repository@revision`; None for other places."""
    if not location.startswith("hf://"):
        return None
    repository, _, revision = location.removeprefix("hf://").partition("@")
    endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    return f"{endpoint}/{quote(repository)}/tree/{quote(revision or 'main', safe='')}"
