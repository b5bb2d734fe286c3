from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.retention.readers import FolderPlace, HubPlace, Place, S3Place

KINDS = ("folder", "s3", "hub")


@pytest.fixture
def on_s3(s3: Any, bucket: str, monkeypatch: pytest.MonkeyPatch) -> S3Place:
    """An empty one. All destinations share a client: making one takes longer than what most of these tests do."""
    monkeypatch.setattr("adapterline.destinations.s3.make_client", lambda: s3)
    return S3Place(s3, bucket)


@pytest.fixture
def place_of(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], Place]:
    """An empty destination of a kind. The servers start when they are asked for."""

    def make(kind: str) -> Place:
        if kind == "folder":
            return FolderPlace(tmp_path / "published")
        if kind == "s3":
            found: Place = request.getfixturevalue("on_s3")
            return found
        return HubPlace(request.getfixturevalue("hub"))

    return make


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, place_of: Callable[[str], Place]) -> Place:
    return place_of(request.param)
