"""Templates, and how values look in them.

Whatever a template prints passes `_shown`: names, errors and URLs come from checkpoints, events and records.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from typing import Any, Final

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from adapterline.dashboard.links import href, hub_url, run_path, version_path, without_secrets

_TYPES = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8", "svg": "image/svg+xml"}
#: Control characters, and those that turn the direction of what follows.
_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_UNITS = ("bytes", "kB", "MB", "GB", "TB")


@cache
def static_files() -> Mapping[str, tuple[bytes, str, str]]:
    """Name -> bytes, content type, and the digits of its digest that are in its address."""
    found = {}
    for each in files("adapterline.dashboard").joinpath("static").iterdir():
        if kind := _TYPES.get(each.name.rpartition(".")[2]):
            data = each.read_bytes()
            found[each.name] = data, kind, hashlib.sha256(data).hexdigest()[:16]
    return found


def static_path(name: str) -> str:
    """Where a static file is. Its address changes with its bytes, so that it may be kept for ever."""
    return f"/static/{static_files()[name][2]}/{name}"


def when(moment: datetime | str | None) -> Markup:
    """A time to the minute, in UTC."""
    if moment is None:
        return Markup('<span class="none">–</span>')
    moment = datetime.fromisoformat(moment) if isinstance(moment, str) else moment
    moment = moment.astimezone(UTC)
    return Markup('<time datetime="{}">{}</time>').format(
        moment.isoformat(timespec="seconds"), f"{moment:%Y-%m-%d %H:%M}"
    )


def size(number: int) -> str:
    """Bytes in the unit that leaves three digits, of 1000."""
    value = float(number)
    for unit in _UNITS:
        if abs(value) < 1000 or unit == _UNITS[-1]:
            return f"{number} {unit}" if unit == "bytes" else f"{value:.3g} {unit}"
        value /= 1000
    raise AssertionError


def duration(seconds: float) -> str:
    """In the two largest units."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    parts = ((whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "min"), (whole % 60, "s"))
    return " ".join(f"{number} {unit}" for number, unit in [part for part in parts if part[0]][:2])


def value_text(value: Any) -> str:
    """A number as short as it is exact enough to read; a list by commas."""
    if isinstance(value, bool) or value is None:
        return "–" if value is None else str(value).lower()
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(value_text, value)) or "–"
    return str(value)


def sentence(text: str) -> str:
    """With a capital at its beginning."""
    return text[:1].upper() + text[1:]


def plain(text: str) -> str:
    """A docstring's sentence without its marks."""
    return text.replace("`", "")


def _shown(value: Any) -> Any:
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return without_secrets(_UNSEEN.sub("\N{REPLACEMENT CHARACTER}", value))


def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("adapterline.dashboard"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "when": when,
        "size": size,
        "value": value_text,
        "duration": duration,
        "sentence": sentence,
        "plain": plain,
    }
    made.globals |= {
        "static": static_path,
        "href": href,
        "hub_url": hub_url,
        "version_path": version_path,
        "run_path": run_path,
    }
    return made


TEMPLATES: Final = _environment()


def page(request: Request, template: str, status: int = 200, /, **values: Any) -> HTMLResponse:
    """A template as an answer. It knows of the request its path and whether people sign in here."""
    has_token = bool(getattr(request.scope.get("app"), "state", None) and request.app.state.access.token)
    text = TEMPLATES.get_template(template).render(path=request.url.path, has_token=has_token, **values)
    return HTMLResponse(text, status)
