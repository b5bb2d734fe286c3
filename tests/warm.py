"""A process that has imported everything once, and forks to run `adapterline …` and `python …` for whoever asks.

Importing torch, diffusers and Prefect takes a processor five seconds; a page of the documentation has many commands.
Arguments, working folder, environment, stdin, stdout and stderr are those of the caller, and so is the exit status.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_PATIENCE = 120  # seconds
#: What exports, validations and the scripts of the pages import.
_IMPORTED = (
    "adapterline.api",
    "adapterline.cli",
    "adapterline.destinations.folder",
    "adapterline.lineage.openlineage",
    "adapterline.package.siblings",
    "adapterline.package.verification",
    "adapterline.validation",
    "alembic.command",
    "boto3",
    "diffusers.modular_pipelines",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    "fastapi",
    "flows.export",
    "graphviz",
    "peft",
    "safetensors.torch",
)
_CLIENT = """#!{python} -IS
import json, os, socket, sys
server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
server.connect({address!r})
request = dict(program={program!r}, arguments=sys.argv[1:], folder=os.getcwd(), environment=dict(os.environ))
socket.send_fds(server, [json.dumps(request).encode()], [0, 1, 2])
answer = server.recv(1)
sys.exit(answer[0] if answer else 1)
"""


@contextmanager
def commands(folder: Path, environment: dict[str, str]) -> Iterator[Path]:
    """A folder for PATH with `adapterline` and `python`. The process imports with this environment."""
    address, bin_ = str(folder / "socket"), folder / "bin"
    bin_.mkdir(parents=True)
    for program in ("adapterline", "python"):
        client = bin_ / program
        client.write_text(_CLIENT.format(python=sys.executable, address=address, program=program))
        client.chmod(0o755)
    root = Path(__file__).parent.parent
    with (folder / "warm.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.warm", address], cwd=root, env=environment, stdout=log, stderr=log
        )
        try:
            deadline = time.monotonic() + _PATIENCE
            while not Path(address).exists():
                if server.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError((folder / "warm.log").read_text())
                time.sleep(0.05)
            yield bin_
        finally:
            server.terminate()
            server.wait(_PATIENCE)


def _serve(address: str) -> None:
    for module in _IMPORTED:
        importlib.import_module(module)
    gc.freeze()  # no child looks for garbage in it
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.bind(address)
        server.listen()
        while True:
            caller, _ = server.accept()
            message, descriptors, _, _ = socket.recv_fds(caller, 1 << 20, 3)
            if not os.fork():
                server.close()
                status = _run(json.loads(message), descriptors)
                caller.sendall(bytes([status]))
                os._exit(status)
            for descriptor in descriptors:
                os.close(descriptor)
            caller.close()


def _run(request: dict[str, Any], descriptors: list[int]) -> int:
    """In the child: its exit status."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    from prefect.context import refresh_global_settings_context

    refresh_global_settings_context()
    try:
        _main(request["program"], request["arguments"])
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def _main(program: str, arguments: list[str]) -> None:
    if program == "adapterline":
        from adapterline.cli import main

        sys.argv = ["adapterline", *arguments]
        main()
    elif arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        sys.path[0] = os.getcwd()
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    _serve(sys.argv[1])
