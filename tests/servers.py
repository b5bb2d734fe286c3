"""Real servers from Debian's packages, each in a folder of its own: PostgreSQL and Redis."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_PATIENCE = 60  # seconds


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def postgresql() -> Iterator[str]:
    """`user@host:port/database` of an empty database. The test is skipped if no PostgreSQL is installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    initdb = str(found[-1]) if found else shutil.which("initdb")
    if initdb is None:
        pytest.skip("no PostgreSQL is installed: initdb is neither in PATH nor below /usr/lib/postgresql")
    # The server refuses to run as root, and pytest's folders are closed to others.
    user = "postgres" if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="adapterline-postgres-"))
    if user:
        shutil.chown(folder, user)
    port, programs = free_port(), Path(initdb).resolve().parent
    control = [str(programs / "pg_ctl"), "-D", str(folder / "data"), "-w"]
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off -c max_connections=300"
    try:
        made = [initdb, "-D", str(folder / "data"), "-U", "tests", "-A", "trust", "--locale", "C.UTF-8", "-N"]
        subprocess.run(made, user=user, cwd=folder, check=True, capture_output=True)
        start = [*control, "-l", str(folder / "log"), "-o", options, "start"]
        subprocess.run(start, user=user, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        yield f"tests@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], user=user, cwd=folder, capture_output=True)
        shutil.rmtree(folder)


@contextmanager
def redis() -> Iterator[int]:
    """The port of a Redis that keeps nothing. The test is skipped if none is installed."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("no Redis is installed: redis-server is not in PATH")
    port = free_port()
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                with socket.create_connection(("127.0.0.1", port), 1):
                    break
            except OSError:
                assert server.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield port
    finally:
        server.terminate()
        server.wait(_PATIENCE)
