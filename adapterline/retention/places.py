"""The destinations of one call."""

from __future__ import annotations

from collections.abc import Sequence

from adapterline.destinations import open_destination
from adapterline.destinations.base import Destination
from adapterline.errors import UsageError
from adapterline.values import check_name


def open_all(to: Sequence[str], name: str) -> list[Destination]:
    """Every destination once, in the given order. UsageError if there is none, or one that cannot be."""
    check_name(name)
    if not to or not all(uri.strip() for uri in to):
        raise UsageError(
            "There is no destination.", expected="a folder, s3://bucket/prefix or hf://org", remedy="Pass --to."
        )
    return [open_destination(uri, name) for uri in dict.fromkeys(to)]
