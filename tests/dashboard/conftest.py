from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from adapterline.dashboard.access import access_at
from tests.dashboard.seeded import Seeded, seed
from tests.dashboard.served import served

TOKEN = "correct horse battery staple"


@pytest.fixture(scope="session")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> Seeded:
    """An index with sixty versions. Read only."""
    folder = tmp_path_factory.mktemp("dashboard")
    return seed(f"sqlite:///{folder}/index.sqlite", folder / "published")


@pytest.fixture(scope="session")
def url(seeded: Seeded) -> Iterator[str]:
    """The dashboard over it, bound to this machine, without a token."""
    with served(seeded.index, access_at("127.0.0.1", None, (), no_token=False)) as address:
        yield address


@pytest.fixture(scope="session")
def guarded(seeded: Seeded) -> Iterator[str]:
    """The same with `TOKEN`."""
    with served(seeded.index, access_at("127.0.0.1", TOKEN, (), no_token=False)) as address:
        yield address


@pytest.fixture
def client(url: str) -> Iterator[httpx.Client]:
    """Asks the one without a token, and follows no redirect."""
    with httpx.Client(base_url=url) as client:
        yield client


@pytest.fixture
def published(seeded: Seeded) -> Path:
    """The folder of the version that has images."""
    assert seeded.shown.manifest
    return seeded.root / seeded.shown.manifest.name / seeded.shown.manifest.digest[:12]
