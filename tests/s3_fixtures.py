"""A real S3 server for the tests, and small packages to publish there."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from adapterline.seaweedfs import Identity, SeaweedFS, run_seaweedfs

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

ADMIN = Identity("admin")
READER = Identity("reader", actions=("Read", "List"))


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFS]:
    with run_seaweedfs(tmp_path_factory.mktemp("seaweedfs"), (ADMIN, READER)) as server:
        yield server


@pytest.fixture
def s3(seaweedfs: SeaweedFS, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Client]:
    """A client of the server; the AWS_* variables are set so that any other one finds it too."""
    from adapterline.s3 import make_client

    for variable in [each for each in os.environ if each.startswith("AWS_")]:
        monkeypatch.delenv(variable)
    for variable, value in (seaweedfs.environment() | {"AWS_CONFIG_FILE": os.devnull}).items():
        monkeypatch.setenv(variable, value)
    client = make_client()
    yield client
    client.close()


@pytest.fixture
def bucket(s3: S3Client) -> Iterator[str]:
    """A fresh bucket."""
    name = f"bucket-{uuid.uuid4().hex}"
    s3.create_bucket(Bucket=name)
    yield name
    s3.delete_bucket(Bucket=name)  # SeaweedFS deletes what is in it, too
