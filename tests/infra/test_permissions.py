"""The IAM policies allow what exports do, and nothing besides: the requests to a real S3 server say what that is."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import botocore.client
import pytest

from adapterline.audits import examine_place, examine_version, places_of
from adapterline.checkpoints import load_checkpoint
from adapterline.destinations.s3 import S3Destination
from adapterline.families.base import read_base
from adapterline.lineage.records import every_record, open_records
from adapterline.package.verification import Trust
from adapterline.retention import Rules, collect, promote, prune
from adapterline.sweeps.runs import find_runs
from adapterline.values import ExportOptions, LineageRecord, Package, Publication
from tests.conftest import Trained
from tests.packages import make_package, order_of

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

PERMISSIONS = json.loads((Path(__file__).parents[2] / "infra/s3-permissions.json").read_text())
#: Operation -> the action that it needs, as Amazon's Service Authorization Reference has it.
NEEDS = {
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
    "CompleteMultipartUpload": "s3:PutObject",
    "CreateMultipartUpload": "s3:PutObject",
    "DeleteObject": "s3:DeleteObject",
    "DeleteObjects": "s3:DeleteObject",
    "GetObject": "s3:GetObject",
    "HeadObject": "s3:GetObject",
    "ListMultipartUploads": "s3:ListBucketMultipartUploads",
    "ListObjectsV2": "s3:ListBucket",
    "PutObject": "s3:PutObject",
    "UploadPart": "s3:PutObject",
}


Actions = dict[str, set[str]]


def needed(operation: str, given: dict[str, Any]) -> tuple[str, set[str]]:
    """What a request acts on, the bucket or its objects, and the actions of it."""
    if "Key" not in given and operation != "DeleteObjects":
        return "bucket", {NEEDS[operation]}
    return "objects", {NEEDS[operation], *(["s3:PutObjectTagging"] if given.get("Tagging") else [])}


def needs_of(act: Callable[[], None]) -> dict[str, Actions]:
    """What the requests need that any client makes meanwhile: of the training runs, and of everything else."""
    seen: dict[str, Actions] = defaultdict(lambda: defaultdict(set))
    call = botocore.client.BaseClient._make_api_call  # type: ignore[attr-defined]

    def recorded(client: Any, operation: str, given: dict[str, Any]) -> Any:
        of, actions = needed(operation, given)
        below = given.get("Key", given.get("Prefix", ""))
        seen["checkpoints" if below.startswith("runs") else "published"][of] |= actions
        return call(client, operation, given)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(botocore.client.BaseClient, "_make_api_call", recorded)
        act()
    return seen


@pytest.fixture
def runs(s3: S3Client, bucket: str, trained: Trained) -> str:
    """A root of training runs with one in it."""
    for file in trained.checkpoint.rglob("*"):
        if file.is_file():
            s3.upload_file(str(file), bucket, f"runs/sks/{file.relative_to(trained.checkpoint)}")
    return f"s3://{bucket}/runs"


def record_of(package: Package, publication: Publication, checkpoint: str) -> LineageRecord:
    now = datetime(2026, 5, 1, tzinfo=UTC)
    return LineageRecord(
        id=package.sha12,
        key="0" * 64,
        outcome="exported",
        started_at=now,
        ended_at=now,
        checkpoint=checkpoint,
        name="tiny",
        to=(),
        options=ExportOptions(),
        manifest=package.manifest,
        publications=(publication,),
    )


def package_on(base: Path, folder: Path, seed: int) -> Package:
    """A package that says it was proven on this base, which an audit then opens."""
    made = make_package(folder / str(seed), seed, size=2 << 20)
    architecture = read_base(base).architecture
    manifest = made.manifest.model_copy(
        update={"base": made.manifest.base.model_copy(update={"architecture": architecture})}
    )
    return Package(manifest, manifest.to_bytes(), made.folder, made.files)


def export(bucket: str, runs: str, base: Path, folder: Path) -> None:
    """What exporters do with S3: from the root of training runs to a version that anybody sees."""
    (run,) = find_runs(runs)
    load_checkpoint(run.uri, ExportOptions(), folder / "fetched")
    records = open_records(f"s3://{bucket}/records")
    place = S3Destination(f"s3://{bucket}/loras", "tiny", multipart=5 << 20)
    for seed in range(3):
        place.check()
        package = package_on(base, folder, seed)
        publication = place.release(package, place.stage(package), order_of(seed + 1))
        records.append(record_of(package, publication, run.uri))
    promote("tiny", package.sha12, "production", [place.uri])


def tidy(bucket: str) -> None:
    """What retention does: old versions go, and the parts of an upload that nobody completed."""
    place = f"s3://{bucket}/loras"
    assert prune("tiny", [place], Rules(keep_last=1), yes=True).destinations[0].versions
    assert collect("tiny", [place], timedelta(0), yes=True).destinations[0].orphans


def permissions_of(identity: str) -> Actions:
    return {of: set(actions) for of, actions in PERMISSIONS[identity].items()}


def test_an_exporter_may_do_what_exporting_and_retention_do_and_nothing_else(
    s3: S3Client, bucket: str, runs: str, trained: Trained, tmp_path: Path
) -> None:
    s3.create_multipart_upload(Bucket=bucket, Key="loras/tiny/0123456789ab/left.safetensors")

    def work() -> None:
        export(bucket, runs, trained.base, tmp_path)
        tidy(bucket)

    needs = needs_of(work)
    assert needs["published"] == permissions_of("exporter")
    assert needs["checkpoints"] == permissions_of("checkpoints")


@pytest.mark.slow
def test_an_auditor_may_read_what_is_published_and_recorded_and_nothing_else(
    bucket: str, runs: str, trained: Trained, tmp_path: Path
) -> None:
    export(bucket, runs, trained.base, tmp_path)

    def audit() -> None:
        (place,) = places_of(every_record(open_records(f"s3://{bucket}/records")), (), ())
        shelf, _ = examine_place(place)
        assert shelf is not None
        for number, version in enumerate(shelf.versions):
            examine_version(shelf, version, str(trained.base), Trust(), tmp_path / f"audited-{number}")

    needs = needs_of(audit)
    assert needs["published"] == permissions_of("auditor")
    assert needs["checkpoints"] == permissions_of("checkpoints")
