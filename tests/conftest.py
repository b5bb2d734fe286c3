"""Fixtures that more than one folder uses."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before any of these libraries is imported: they read it once.
os.environ |= {
    "HF_HUB_OFFLINE": "0",
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
}

pytest_plugins = ["tests.bases", "tests.s3_fixtures"]


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A record store and a scratch folder of the test's own, and retries without pauses."""
    monkeypatch.setenv("ADAPTERLINE_RECORDS", str(tmp_path / "records"))
    monkeypatch.setenv("ADAPTERLINE_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.setenv("ADAPTERLINE_RETRY_SECONDS", "0")
    return tmp_path / "records"


@pytest.fixture(scope="session")
def prefect_api() -> Iterator[str]:
    """A real Prefect server with an empty database; gives the URL of its API."""
    from prefect.settings import PREFECT_API_URL
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield str(PREFECT_API_URL.value())
