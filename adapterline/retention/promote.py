"""Promote: an alias moves to a version, by compare-and-swap, at every destination."""

from __future__ import annotations

import re
from collections.abc import Sequence

from adapterline.destinations.base import Destination
from adapterline.destinations.versions import NOTHING, names, removed, require_expected
from adapterline.errors import PublishError, UsageError
from adapterline.retention.places import open_all
from adapterline.values import Move, Promotion, Version, check_alias

_DIGITS = re.compile(r"[0-9a-f]{8,64}")


def promote(name: str, version: str, alias: str, to: Sequence[str], expect: str | None = None) -> Promotion:
    """Moves `alias` of `name` to the version whose digest begins with `version`, 8 digits or more.

    Every destination is checked before the first alias moves: that it can be written to, that the version is there with
    all its digests, and, with `expect`, that the alias points where the caller thinks ("none": nowhere yet). Then they
    move one after the other; the same call completes what was interrupted. UsageError for what cannot be asked for,
    PublishError for what a destination does not have or does not do.
    """
    check_alias(alias)
    wanted, expected = _digits(version, "version"), None if expect is None else _expected(expect)
    places = open_all(to, name)
    found = [_find(place, name, wanted) for place in places]
    if len({each.digest for each in found}) > 1:
        raise _ambiguous(name, wanted, found)
    for place, each in zip(places, found, strict=True):
        _require_ready(place, each, alias, expected)
    moves = tuple(_move(place, each, alias, expected) for place, each in zip(places, found, strict=True))
    return Promotion(name=name, alias=alias, digest=found[0].digest, moves=moves)


def _find(place: Destination, name: str, digits: str) -> Version:
    found = place.versions(digits)
    if len(found) > 1:
        raise _ambiguous(name, digits, found)
    if not found:
        raise PublishError(
            f"No version of {name} whose digest begins with {digits} is published at {place.uri}.",
            expected="one that is published whole at every destination",
            remedy="Export it there first.",
        )
    return found[0]


def _require_ready(place: Destination, version: Version, alias: str, expect: str | None) -> None:
    place.check()
    current = place.aliases().get(alias)
    if not names(current, version):
        require_expected(current, expect, alias, place.uri)
    if not place.verify(version):
        raise removed(version.receipt)


def _move(place: Destination, version: Version, alias: str, expect: str | None) -> Move:
    before = place.point(alias, version, expect)
    return Move(
        destination=place.uri,
        outcome="kept" if names(before, version) else "moved",
        previous=before.sha12 if before else None,
    )


def _digits(text: str, what: str) -> str:
    if not _DIGITS.fullmatch(text):
        raise UsageError(f"The {what} {text!r} is no digest.", expected="its first 8 to 64 hexadecimal digits")
    return text


def _expected(text: str) -> str:
    return text if text == NOTHING else _digits(text, "expected version")


def _ambiguous(name: str, digits: str, found: Sequence[Version]) -> UsageError:
    digests = sorted({version.digest for version in found})
    return UsageError(
        f"{digits} may be each of {len(digests)} versions of {name}: {', '.join(digest[:16] for digest in digests)}.",
        expected="digits that name one",
        remedy="Pass more of them.",
    )
