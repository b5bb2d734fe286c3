"""One deployment for the tests of a file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.deployed import Deployed, deploying


@pytest.fixture(scope="module")
def sturdy_deployed(sturdy_prefect_api: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """On PostgreSQL and Redis: a server with SQLite waits a minute for a lock now and then, where much goes on."""
    with deploying(sturdy_prefect_api, tmp_path_factory.mktemp("deployed")) as found:
        yield found


@pytest.fixture(scope="module")
def deployed(prefect_api: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    with deploying(prefect_api, tmp_path_factory.mktemp("deployed")) as found:
        yield found
