from __future__ import annotations

import socket
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest

from adapterline import seaweedfs
from adapterline.errors import MachineError
from adapterline.seaweedfs import SeaweedFS, run_seaweedfs


def client_of(server: SeaweedFS) -> Any:
    variables = server.environment()
    return boto3.session.Session().client(
        "s3",
        endpoint_url=server.endpoint,
        region_name=variables["AWS_REGION"],
        aws_access_key_id=variables["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=variables["AWS_SECRET_ACCESS_KEY"],
    )


def listens(address: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(5)
        return probe.connect_ex((address, port)) == 0


def test_two_servers_run_at_once_and_end_with_their_contexts(tmp_path: Path) -> None:
    ports = []
    with run_seaweedfs(tmp_path / "1") as first, run_seaweedfs(tmp_path / "2") as second:
        for server in (first, second):
            port = urlsplit(server.endpoint).port
            assert port
            ports.append(port)
            assert listens("127.0.0.1", port)
            assert not listens("127.0.0.2", port)
            client = client_of(server)
            client.create_bucket(Bucket="bucket")
            client.put_object(Bucket="bucket", Key="key", Body=server.endpoint.encode())
            assert client.get_object(Bucket="bucket", Key="key")["Body"].read() == server.endpoint.encode()
            client.close()
    assert not any(listens("127.0.0.1", port) for port in ports)
    for port in ports:
        assert not list(Path("/tmp").glob(f"seaweedfs-*-{port}.sock"))
        assert not list(Path("/tmp").glob(f"seaweedfs-*-{port + 10_000}.sock"))


def test_a_second_server_in_the_same_folder_has_the_data_of_the_first(tmp_path: Path) -> None:
    for turn in range(2):
        with run_seaweedfs(tmp_path) as server:
            client = client_of(server)
            if turn == 0:
                client.create_bucket(Bucket="bucket")
                client.put_object(Bucket="bucket", Key="key", Body=b"data")
            else:
                assert client.get_object(Bucket="bucket", Key="key")["Body"].read() == b"data"
            client.close()


def test_a_server_ends_when_its_context_raises(tmp_path: Path) -> None:
    ports = []
    with pytest.raises(KeyError), run_seaweedfs(tmp_path) as server:  # noqa: PT012
        ports.append(urlsplit(server.endpoint).port or 0)
        raise KeyError
    assert not listens("127.0.0.1", ports[0])


def test_a_missing_package_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(seaweedfs, "files", missing)
    with pytest.raises(MachineError, match=r"adapterline\[demo\]"), run_seaweedfs(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_a_program_that_does_not_start_is_a_machine_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seaweedfs, "_program", lambda: Path("/bin/false"))
    with pytest.raises(MachineError, match="did not start"), run_seaweedfs(tmp_path):
        pass
