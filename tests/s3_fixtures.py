"""A real S3 server for the tests, and small packages to publish there."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.numpy import save

from adapterline.seaweedfs import Identity, SeaweedFS, run_seaweedfs
from adapterline.values import (
    WEIGHT_NAME,
    BaseSummary,
    Bundle,
    Check,
    ComponentSummary,
    ExportedFile,
    LoadCall,
    Manifest,
    Order,
    Package,
    PackagedFile,
    SourceSummary,
    ValidationReport,
)

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


def make_package(folder: Path, *, seed: int = 0, tool: str = "1", name: str = "tiny", size: int = 64) -> Package:
    """A package in `folder`. Another `seed` gives another bundle, another `tool` another manifest and card of the same.

    `size` is the number of float32 in the larger of two tensors.
    """
    folder.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed)
    tensors = {
        "unet.mid.lora_A.weight": values.standard_normal((4, size // 4), dtype=np.float32),
        "unet.mid.lora_B.weight": values.standard_normal((8, 4), dtype=np.float32),
    }
    data = save(tensors)
    payload = data[8 + int.from_bytes(data[:8], "little") :]
    weights = ExportedFile(
        role="weights",
        layout="diffusers",
        path=WEIGHT_NAME,
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        tensors_sha256=hashlib.sha256(payload).hexdigest(),
    )
    manifest = make_manifest(name, weights, tool)
    card = f"# {name}\n\nMade by tool {tool}.\n".encode()
    (folder / WEIGHT_NAME).write_bytes(data)
    (folder / "README.md").write_bytes(card)
    return Package(
        manifest=manifest,
        manifest_bytes=manifest.to_bytes(),
        folder=folder,
        files=(
            PackagedFile(path=WEIGHT_NAME, size=len(data), sha256=weights.sha256),
            PackagedFile(path="README.md", size=len(card), sha256=hashlib.sha256(card).hexdigest()),
        ),
    )


def make_manifest(name: str, weights: ExportedFile, tool: str) -> Manifest:
    digest = Bundle.digest_of((weights,))
    architecture = hashlib.sha256(b"architecture").hexdigest()
    load = LoadCall(pipeline="StableDiffusionPipeline", method="load_lora_weights", weight_name=weights.path)
    check = Check(name="effect", component="unet", observed=0.0, limit=5e-4, passed=True)
    return Manifest(
        name=name,
        digest=digest,
        family="sd15",
        source=SourceSummary(
            name="checkpoint-7", digest=hashlib.sha256(b"source").hexdigest(), container="safetensors", dialect="peft"
        ),
        training_run=None,
        base=BaseSummary(architecture=architecture, pipeline="StableDiffusionPipeline"),
        files=(weights,),
        components={
            "unet": ComponentSummary(rank=4, alpha=4, modules=1, adapter_type="lora", dtype="F32", parameters=96)
        },
        transforms=(),
        left_out=(),
        validation=ValidationReport(bundle_digest=digest, checks=(check,)),
        loads=(load,),
        consumers={weights.path: ("diffusers",)},
        tools={"adapterline": tool},
    )


def order_of(day: int) -> Order:
    """The order of a training run that finished on that day of a month."""
    return Order(finished_at=datetime(2026, 5, day, tzinfo=UTC))
