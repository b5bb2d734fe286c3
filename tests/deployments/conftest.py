"""One deployment for the tests of a file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.deployed import Deployed, deploying


@pytest.fixture(scope="module")
def deployed(prefect_api: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    with deploying(prefect_api, tmp_path_factory.mktemp("deployed")) as found:
        yield found
