"""The flow under a real Prefect server, from a trained checkpoint to a folder and a real S3 API."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from prefect.settings import PREFECT_API_URL
from safetensors.torch import load_file

from adapterline.destinations.folder import FolderDestination
from adapterline.errors import CheckpointError, PublishError, UsageError
from adapterline.lineage.records import open_records
from adapterline.values import (
    WEIGHT_NAME,
    ExportOptions,
    LineageRecord,
    Manifest,
    Order,
    Package,
    Publication,
    Receipt,
    TrainingRun,
    provenance_name,
    slug,
)
from tests.conftest import Trained

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

pytestmark = pytest.mark.usefixtures("prefect_api")


@pytest.fixture
def export(records: Path, trained: Trained) -> Callable[..., LineageRecord]:
    """Runs the flow on the trained checkpoint."""
    from flows.export import export_adapter

    def run(*to: Path | str, checkpoint: Path = trained.checkpoint, **more: Any) -> LineageRecord:
        arguments = {"base": str(trained.base), "name": "sks-dog", "to": tuple(map(str, to))} | more
        return export_adapter(str(checkpoint), **arguments)

    return run


def stored(records: Path) -> list[LineageRecord]:
    files = sorted(records.rglob("*.json"), key=lambda path: path.name)
    return [LineageRecord.model_validate_json(path.read_bytes()) for path in files]


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def objects(s3: S3Client, bucket: str) -> dict[str, bytes]:
    keys = [item["Key"] for item in s3.list_objects_v2(Bucket=bucket).get("Contents", [])]
    return {key: s3.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}


def api(path: str, body: dict[str, Any]) -> Any:
    import httpx
    from prefect.settings import PREFECT_API_URL

    answer = httpx.post(f"{PREFECT_API_URL.value()}{path}", json=body, timeout=60)
    answer.raise_for_status()
    return answer.json()


def steps(record: LineageRecord) -> set[str]:
    """The tasks that its run had."""
    assert record.flow_run is not None
    runs = api("/task_runs/filter", {"task_runs": {"flow_run_id": {"any_": [record.flow_run.id]}}, "limit": 50})
    assert all("adapterline" in run["tags"] for run in runs)
    return {run["task_key"].rpartition(".")[2].split("-")[0] for run in runs}


def test_publishes_the_same_bytes_to_a_folder_and_to_s3(
    export: Callable[..., LineageRecord], tmp_path: Path, s3: S3Client, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("tasks.upload.say", said.append)
    record = export(tmp_path / "out", f"s3://{bucket}/loras")
    assert record.outcome == "exported"
    assert sorted(said) == [
        f"upload: staged at {receipt.location}, proven by its {proof}"
        for proof, receipt in zip(("bytes", "checksum"), (each.receipt for each in record.publications), strict=True)
    ]
    in_folder, in_s3 = tree(tmp_path / "out"), objects(s3, bucket)
    assert {f"loras/{key}": value for key, value in in_folder.items()} == in_s3
    sha12 = record.manifest.digest[:12] if record.manifest else ""
    manifest = hashlib.sha256(in_folder[f"sks-dog/{sha12}/manifest.json"]).hexdigest()
    assert set(in_folder) == {
        "sks-dog/latest.json",
        f"sks-dog/{sha12}/manifest.json",
        f"sks-dog/{sha12}/README.md",
        f"sks-dog/{sha12}/{provenance_name(manifest)}",
        f"sks-dog/{sha12}/{WEIGHT_NAME}",
    }
    assert Manifest.model_validate_json(in_folder[f"sks-dog/{sha12}/manifest.json"]) == record.manifest


def test_what_is_published_does_what_was_trained(
    export: Callable[..., LineageRecord], trained: Trained, tmp_path: Path
) -> None:
    import torch
    from diffusers import StableDiffusionPipeline
    from peft import PeftModel

    from tests.bases import _no_news, forward

    record = export(tmp_path / "out")
    pipeline = StableDiffusionPipeline.from_pretrained(trained.base, safety_checker=None)
    pipeline.load_lora_weights(record.publications[0].load)
    fresh = StableDiffusionPipeline.from_pretrained(trained.base, safety_checker=None)
    for name in ("unet", "text_encoder"):
        before = forward(getattr(fresh, name))
        with _no_news():
            PeftModel.from_pretrained(getattr(fresh, name), trained.checkpoint / name)
        wanted, found = forward(getattr(fresh, name)), forward(getattr(pipeline, name))
        effect = float((wanted - before).abs().max())
        assert effect > 1e-3
        assert float((found - wanted).abs().max()) < 1e-4 * effect + 1e-6
        assert torch.isfinite(found).all()


def test_the_same_again_changes_nothing_says_so_and_reads_no_tensor(
    export: Callable[..., LineageRecord], tmp_path: Path, s3: S3Client, bucket: str
) -> None:
    to = (tmp_path / "out", f"s3://{bucket}/loras")
    first = export(*to)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    versions = {item["Key"]: item["LastModified"] for item in s3.list_objects_v2(Bucket=bucket)["Contents"]}
    second = export(*to)
    assert steps(second) == {"load_checkpoint", "open_base", "find_export", "record"}
    assert (second.outcome, second.earlier) == ("already-exported", first.id)
    assert second.manifest == first.manifest
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == times
    assert {item["Key"]: item["LastModified"] for item in s3.list_objects_v2(Bucket=bucket)["Contents"]} == versions


def test_without_a_memory_the_same_again_gives_the_same_bytes_and_one_publication(
    export: Callable[..., LineageRecord], records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = export(tmp_path / "out")
    before = tree(tmp_path / "out")
    monkeypatch.setenv("ADAPTERLINE_RECORDS", str(tmp_path / "other-records"))
    monkeypatch.setenv("ADAPTERLINE_SCRATCH", str(tmp_path / "other-scratch"))
    second = export(tmp_path / "out")
    assert second.outcome == "exported"
    assert second.publications[0].receipt.published
    assert tree(tmp_path / "out") == before
    assert first.manifest == second.manifest


def test_a_publication_that_was_damaged_is_noticed(export: Callable[..., LineageRecord], tmp_path: Path) -> None:
    record = export(tmp_path / "out")
    (Path(record.publications[0].load) / WEIGHT_NAME).unlink()
    with pytest.raises(PublishError):
        export(tmp_path / "out")


def test_every_exported_adapter_has_its_three_artifacts(
    export: Callable[..., LineageRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAPTERLINE_DASHBOARD_URL", "https://lineage.example/loras/")
    record = export(tmp_path / "out", name="with-artifacts")
    key = slug("with-artifacts")
    found = {
        artifact["key"]: artifact
        for artifact in api("/artifacts/latest/filter", {"artifacts": {"key": {"like_": f"{key}-%"}}})
    }
    assert {name: artifact["type"] for name, artifact in found.items()} == {
        f"{key}-record": "markdown",
        f"{key}-checks": "table",
        f"{key}-places": "markdown",
    }
    assert record.manifest is not None
    assert record.manifest.digest in found[f"{key}-record"]["data"]
    rows = json.loads(found[f"{key}-checks"]["data"])
    report = record.report or record.manifest.validation
    assert len(rows) == len(report.checks) + len(report.not_run) >= len(record.manifest.validation.checks)
    assert all(row["passed"] for row in rows)
    assert record.publications[0].url in found[f"{key}-places"]["data"]
    page = f"(https://lineage.example/loras/adapters/with-artifacts/{record.manifest.digest[:12]})"
    assert all(page in found[f"{key}-{kind}"]["data"] for kind in ("record", "places"))


def test_the_steps_are_tasks_by_their_names(export: Callable[..., LineageRecord], tmp_path: Path) -> None:
    record = export(tmp_path / "out")
    assert record.flow_run is not None
    assert record.flow_run.name == "export-sks-dog"
    ui = str(PREFECT_API_URL.value()).removesuffix("/api")
    assert record.flow_run.url == f"{ui}/runs/flow-run/{record.flow_run.id}"
    names = {"load_checkpoint", "open_base", "find_export", "extract", "convert", "serialize", "validate"}
    assert steps(record) == names | {"package", "upload", "measure_drift", "release", "record"}


def test_a_dry_run_publishes_nothing_and_its_proof_is_remembered(
    export: Callable[..., LineageRecord], records: Path
) -> None:
    options = ExportOptions(scale="header")  # no other test's
    first, second = export(options=options), export(options=options)
    assert [first.outcome, second.outcome] == ["validated", "validated"]
    assert first.manifest == second.manifest
    states = {}
    for record in (first, second):
        assert record.flow_run is not None
        filters = {"flow_run_id": {"any_": [record.flow_run.id]}, "name": {"any_": ["validate"]}}
        (run,) = api("/task_runs/filter", {"task_runs": filters})
        states[record.id] = run["state_name"]
    assert states == {first.id: "Completed", second.id: "Cached"}


def test_a_remembered_proof_does_not_count_for_other_bytes(
    export: Callable[..., LineageRecord], trained: Trained, tmp_path: Path
) -> None:
    from adapterline.scratch import Scratch
    from tasks.validate import _cache_key
    from tests.line import run_line

    made = run_line(trained.checkpoint, trained.base, tmp_path)
    scratch = Scratch(tmp_path / "scratch", 10**9, 1e6)
    given = {
        "bundle": made.bundle,
        "source": made.source,
        "base": made.base,
        "options": made.options,
        "scratch": scratch,
    }
    key = _cache_key(None, given)
    assert key == _cache_key(None, given)
    file = made.folder / WEIGHT_NAME
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert _cache_key(None, given) not in (key, None)
    file.unlink()
    assert _cache_key(None, given) is None


def test_if_one_destination_cannot_take_it_nothing_is_visible_anywhere(
    export: Callable[..., LineageRecord], records: Path, tmp_path: Path, s3: S3Client
) -> None:
    with pytest.raises(PublishError) as caught:
        export(tmp_path / "out", "s3://no-such-bucket-here/loras")
    assert caught.value.exit_code == 5
    assert not (tmp_path / "out").exists()
    (record,) = stored(records)
    assert (record.outcome, record.error_type, record.exit_code) == ("failed", "PublishError", 5)


def test_if_one_upload_fails_late_nothing_is_visible_and_the_next_run_completes_it(
    export: Callable[..., LineageRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = FolderDestination.stage

    def failing(self: FolderDestination, package: Package) -> Receipt:
        if "second" in self.uri:
            raise PublishError("The second folder is gone.")
        return real(self, package)

    monkeypatch.setattr(FolderDestination, "stage", failing)
    with pytest.raises(PublishError, match="second folder is gone"):
        export(tmp_path / "first", tmp_path / "second")
    assert not (tmp_path / "first" / "sks-dog").exists()
    monkeypatch.setattr(FolderDestination, "stage", real)
    record = export(tmp_path / "first", tmp_path / "second")
    assert tree(tmp_path / "first") == tree(tmp_path / "second")
    assert len(record.publications) == 2


def test_what_was_released_before_a_failure_is_in_the_record_and_the_next_run_completes_it(
    export: Callable[..., LineageRecord], records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = FolderDestination.release

    def failing(self: FolderDestination, package: Package, receipt: Receipt, order: Order) -> Publication:
        if "second" in self.uri:
            raise PublishError("The second folder is gone.")
        return real(self, package, receipt, order)

    monkeypatch.setattr(FolderDestination, "release", failing)
    with pytest.raises(PublishError):
        export(tmp_path / "first", tmp_path / "second")
    (failed,) = stored(records)
    assert failed.outcome == "failed"
    assert [publication.receipt.destination for publication in failed.publications] == [str(tmp_path / "first")]
    monkeypatch.setattr(FolderDestination, "release", real)
    assert export(tmp_path / "first", tmp_path / "second").outcome == "exported"
    assert tree(tmp_path / "first") == tree(tmp_path / "second")


def test_a_transient_fault_is_retried_and_a_lasting_one_is_not(
    export: Callable[..., LineageRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, tries = FolderDestination.stage, []

    def flaky(self: FolderDestination, package: Package) -> Receipt:
        tries.append(len(tries))
        if len(tries) < 3:
            raise PublishError("The disk hiccups.", transient=True)
        return real(self, package)

    monkeypatch.setattr(FolderDestination, "stage", flaky)
    assert export(tmp_path / "out").outcome == "exported"
    assert len(tries) == 3

    def broken(self: FolderDestination, package: Package) -> Receipt:
        tries.append(len(tries))
        raise PublishError("Forbidden.")

    monkeypatch.setattr(FolderDestination, "stage", broken)
    tries.clear()
    with pytest.raises(PublishError, match="Forbidden"):
        export(tmp_path / "other")
    assert len(tries) == 1


def test_a_refusal_publishes_nothing_and_leaves_a_record(
    export: Callable[..., LineageRecord], records: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="is empty"):
        export(tmp_path / "out", checkpoint=tmp_path / "empty")
    assert not (tmp_path / "out").exists()
    (record,) = stored(records)
    assert (record.outcome, record.exit_code) == ("refused", 3)
    assert record.error
    assert "is empty" in record.error


def test_a_bad_name_and_a_bad_destination_are_usage_errors(
    export: Callable[..., LineageRecord], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="cannot be used"):
        export(tmp_path / "out", name="../evil")
    with pytest.raises(UsageError, match="no known scheme"):
        export("ftp://somewhere/out")


def test_an_older_run_does_not_move_latest(export: Callable[..., LineageRecord], tmp_path: Path) -> None:
    newer = TrainingRun(run_id="a", finished_at=datetime(2026, 5, 2, tzinfo=UTC))
    older = TrainingRun(run_id="b", finished_at=datetime(2026, 5, 1, tzinfo=UTC))
    export(tmp_path / "out", run=newer)
    latest = (tmp_path / "out" / "sks-dog" / "latest.json").read_bytes()
    record = export(tmp_path / "out", run=older, options=ExportOptions(dtype="float16"))
    assert record.publications[0].latest == "kept"
    assert (tmp_path / "out" / "sks-dog" / "latest.json").read_bytes() == latest
    assert len(list((tmp_path / "out" / "sks-dog").glob("*/manifest.json"))) == 2


def test_dtype_is_kept_unless_another_one_is_asked_for(export: Callable[..., LineageRecord], tmp_path: Path) -> None:
    kept = export(tmp_path / "out")
    cast = export(tmp_path / "out", options=ExportOptions(dtype="bfloat16"))
    dtypes = [
        {str(tensor.dtype) for tensor in load_file(Path(record.publications[0].load) / WEIGHT_NAME).values()}
        for record in (kept, cast)
    ]
    assert dtypes == [{"torch.float32"}, {"torch.bfloat16"}]


def test_no_private_path_is_published(export: Callable[..., LineageRecord], trained: Trained, tmp_path: Path) -> None:
    record = export(tmp_path / "out")
    for content in tree(Path(record.publications[0].load)).values():
        assert str(tmp_path).encode() not in content
        assert str(trained.base.parent).encode() not in content


@pytest.mark.parametrize(
    "step",
    [pytest.param("package", marks=pytest.mark.slow), "upload", pytest.param("release", marks=pytest.mark.slow)],
)
def test_a_run_that_is_killed_is_completed_by_the_next_one(
    export: Callable[..., LineageRecord], trained: Trained, records: Path, tmp_path: Path, step: str
) -> None:
    child = textwrap.dedent(
        f"""
        import os, signal
        import flows.export as line

        def die(*args, **kwargs):
            os.kill(os.getpid(), signal.SIGKILL)

        if {step!r} == "package":
            line.package = die
        else:
            # Half way: the first of two destinations is done.
            from adapterline.destinations.folder import FolderDestination
            name = {{"upload": "stage", "release": "release"}}[{step!r}]
            real = getattr(FolderDestination, name)
            setattr(FolderDestination, name, lambda self, *a: die() if "second" in self.uri else real(self, *a))
        line.export_adapter({str(trained.checkpoint)!r}, base={str(trained.base)!r}, name="sks-dog",
                            to=({str(tmp_path / "first")!r}, {str(tmp_path / "second")!r}))
        """
    )
    result = subprocess.run(
        [sys.executable, "-c", child],
        cwd=Path(__file__).parents[2],
        env=dict(os.environ),
        check=False,
        capture_output=True,
    )
    assert result.returncode == -signal.SIGKILL, result.stderr.decode()[-2000:]
    assert not (tmp_path / "second" / "sks-dog").exists()
    assert (tmp_path / "first" / "sks-dog").exists() == (step == "release")
    record = export(tmp_path / "first", tmp_path / "second")
    assert record.outcome == "exported"
    assert tree(tmp_path / "first") == tree(tmp_path / "second")
    assert not list((tmp_path / "scratch" / "temporary").iterdir())


def test_records_lie_in_s3_if_they_are_to(
    export: Callable[..., LineageRecord], tmp_path: Path, s3: S3Client, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAPTERLINE_RECORDS", f"s3://{bucket}/records")
    first = export(tmp_path / "out")
    second = export(tmp_path / "out")
    assert second.earlier == first.id
    kept = [LineageRecord.model_validate_json(data) for data in objects(s3, bucket).values()]
    assert {record.outcome for record in kept} == {"exported", "already-exported"}
    assert open_records(f"s3://{bucket}/records").find(first.key) == first


def test_a_checkpoint_is_read_from_s3(
    export: Callable[..., LineageRecord], trained: Trained, tmp_path: Path, s3: S3Client, bucket: str
) -> None:
    for file in trained.checkpoint.rglob("*"):
        if file.is_file():
            s3.upload_file(str(file), bucket, f"runs/7/{file.relative_to(trained.checkpoint)}")
    from_s3 = export(tmp_path / "out", checkpoint=f"s3://{bucket}/runs/7")  # type: ignore[arg-type]
    from_disk = export(tmp_path / "out")
    assert from_s3.manifest is not None
    assert from_disk.manifest is not None
    assert from_s3.manifest.digest == from_disk.manifest.digest
    assert from_s3.manifest.source.digest == from_disk.manifest.source.digest
    assert not list((tmp_path / "scratch" / "temporary").iterdir())
