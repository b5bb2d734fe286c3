"""A real Prefect server, with its scheduler, for the session; and one as it is run for many."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.servers import free_port, postgresql, redis

_PATIENCE = 120  # seconds


@pytest.fixture(scope="session")
def prefect_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of its API; this process and every subprocess use it. Its database is SQLite."""
    with serving(tmp_path_factory.mktemp("prefect"), {}) as url:
        yield url


@pytest.fixture(scope="module")
def sturdy_prefect_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The same with PostgreSQL and Redis, the API and the services in two processes, as infra/compose.yaml has it."""
    with postgresql() as database, redis() as port:
        variables = {
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://{database}",
            "PREFECT_SERVER_EVENTS_MESSAGING_BROKER": "prefect_redis.messaging",
            "PREFECT_SERVER_EVENTS_MESSAGING_CACHE": "prefect_redis.messaging",
            "PREFECT_SERVER_EVENTS_CAUSAL_ORDERING": "prefect_redis.ordering",
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect_redis.lease_storage",
            "PREFECT_REDIS_MESSAGING_HOST": "127.0.0.1",
            "PREFECT_REDIS_MESSAGING_PORT": str(port),
            "PREFECT_REDIS_MESSAGING_DB": "0",
            "PREFECT_SERVER_DOCKET_URL": f"redis://127.0.0.1:{port}/1",
        }
        with serving(tmp_path_factory.mktemp("prefect"), variables) as url:
            yield url


@contextmanager
def serving(home: Path, more: dict[str, str]) -> Iterator[str]:
    port = free_port()
    variables = {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "1",
        "PREFECT_LOCAL_STORAGE_PATH": str(home / "storage"),
    }
    environment = os.environ | variables | more
    start = ["server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with ExitStack() as stack:
        log = home / "server.log"
        server = stack.enter_context(_running([*start, "--no-services"] if more else start, environment, log))
        _wait(server, f"http://127.0.0.1:{port}/api/health", log)
        if more:
            stack.enter_context(_running(["server", "services", "start"], environment, home / "services.log"))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name, value in variables.items():
            patch.setenv(name, value)
        yield from _used(variables)


@contextmanager
def _running(arguments: list[str], environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as file:
        command = [sys.executable, "-m", "prefect", *arguments]
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(_PATIENCE)


def _used(variables: dict[str, str]) -> Iterator[str]:
    from prefect.logging.handlers import APILogHandler
    from prefect.settings import (
        PREFECT_API_URL,
        PREFECT_HOME,
        PREFECT_LOCAL_STORAGE_PATH,
        PREFECT_SERVER_ALLOW_EPHEMERAL_MODE,
        temporary_settings,
    )

    settings = {
        PREFECT_HOME: Path(variables["PREFECT_HOME"]),
        PREFECT_API_URL: variables["PREFECT_API_URL"],
        PREFECT_LOCAL_STORAGE_PATH: Path(variables["PREFECT_LOCAL_STORAGE_PATH"]),
        PREFECT_SERVER_ALLOW_EPHEMERAL_MODE: False,
    }
    with temporary_settings(updates=settings):
        yield variables["PREFECT_API_URL"]
        APILogHandler().flush()  # while there still is a server to send the last lines to


def _wait(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        if server.poll() is not None:
            break
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    pytest.fail(f"The Prefect server did not start:\n{log.read_text()[-3000:]}")
