"""What was published and changed since is found; what is whole is left in peace."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from safetensors.torch import load_file, save_file

import adapterline
from adapterline.audits import AuditReport
from adapterline.digests import sha256_of_file
from adapterline.errors import AuditFailedError
from adapterline.values import LineageRecord, TrainingRun
from tests.conftest import Trained

pytestmark = pytest.mark.usefixtures("prefect_api")
Export = Callable[..., LineageRecord]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def export(records: Path, trained: Trained, out: Path) -> Export:
    """Exports the trained checkpoint, or another, to a folder."""

    def run(name: str = "sks-dog", checkpoint: Path | None = None, **more: Any) -> LineageRecord:
        given = {"base": str(trained.base), "to": (str(out),)} | more
        return adapterline.export(str(checkpoint or trained.checkpoint), name=name, **given)

    return run


def audited(trained: Trained, *names: str, **more: Any) -> AuditReport:
    try:
        return adapterline.audit(names, base=str(trained.base), **more)
    except AuditFailedError as error:
        return error.report


def folder_of(out: Path, record: LineageRecord) -> Path:
    assert record.manifest is not None
    return out / record.manifest.name / record.manifest.digest[:12]


def another(trained: Trained, folder: Path, times: float = 0.5) -> Path:
    """The same adapter, trained a little differently."""
    shutil.copytree(trained.checkpoint, folder)
    for file in folder.rglob("*.safetensors"):
        save_file({key: tensor * times for key, tensor in load_file(file).items()}, file)
    return folder


def test_what_is_as_it_was_published_is_whole_and_has_its_effect(export: Export, trained: Trained) -> None:
    record = export()
    report = adapterline.audit(base=str(trained.base))
    (version,) = report.versions
    assert record.manifest is not None
    assert (version.digest, version.state, version.proof) == (record.manifest.digest, "whole", "effect")
    assert version.aliases == ("latest",)
    assert "effect" not in version.not_run


@pytest.mark.slow
def test_once_the_checkpoint_is_gone_the_file_is_proven_to_load(
    export: Export, trained: Trained, tmp_path: Path
) -> None:
    checkpoint = another(trained, tmp_path / "run")
    export(checkpoint=checkpoint)
    shutil.rmtree(checkpoint)
    (version,) = audited(trained).versions
    assert (version.state, version.proof) == ("whole", "structure")
    assert "cannot be read any more" in version.not_run["effect"]


@pytest.mark.slow
def test_without_the_base_the_bytes_are_what_is_compared(export: Export) -> None:
    export()
    (version,) = adapterline.audit().versions
    assert (version.state, version.proof) == ("whole", "none")
    assert version.not_run["proof"]


def change_weights(folder: Path) -> None:
    file = folder / "pytorch_lora_weights.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def change_weights_and_manifest(folder: Path) -> None:
    """Somebody who knows how: a file that is another one, and a manifest that says so."""
    from adapterline.values import Bundle, Manifest, canonical_json

    file = folder / "pytorch_lora_weights.safetensors"
    tensors = load_file(file)
    save_file({key: tensor * 2 for key, tensor in tensors.items()}, file)
    manifest = Manifest.model_validate_json((folder / "manifest.json").read_bytes())
    files = tuple(
        each.model_copy(update={"sha256": sha256_of_file(file), "size": file.stat().st_size})
        if each.path == file.name
        else each
        for each in manifest.files
    )
    edited = manifest.model_copy(update={"files": files, "digest": Bundle.digest_of(files)})
    (folder / "manifest.json").write_bytes(canonical_json(edited.model_dump(mode="json")))


def change_manifest(folder: Path) -> None:
    document = json.loads((folder / "manifest.json").read_text())
    document["base"]["model"] = "acme/other"
    (folder / "manifest.json").write_text(json.dumps(document))


def unlink_weights(folder: Path) -> None:
    (folder / "pytorch_lora_weights.safetensors").unlink()


def empty_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("{}")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (change_weights, "has other bytes"),
        pytest.param(change_manifest, "its manifest is another than that of run", marks=pytest.mark.slow),
        pytest.param(change_weights_and_manifest, "no record tells of it", marks=pytest.mark.slow),
        pytest.param(unlink_weights, "is not there any more", marks=pytest.mark.slow),
        pytest.param(shutil.rmtree, "and it is not there", marks=pytest.mark.slow),
        pytest.param(empty_manifest, "is not a manifest", marks=pytest.mark.slow),
    ],
)
def test_what_was_changed_has_drifted(
    export: Export, trained: Trained, out: Path, change: Callable[[Path], Any], told: str
) -> None:
    record = export(name="drifting")
    change(folder_of(out, record))
    with pytest.raises(AuditFailedError, match=told) as caught:
        adapterline.audit(base=str(trained.base))
    assert caught.value.exit_code == 4
    assert {version.state for version in caught.value.report.versions} <= {"drifted", "unreadable"}


def test_prefect_is_told_of_what_drifted(export: Export, trained: Trained, out: Path, prefect_api: str) -> None:
    record = export(name="told")
    change_weights(folder_of(out, record))
    (version,) = audited(trained).versions
    since = (datetime.now(UTC) - timedelta(minutes=5)).isoformat()
    body = {"filter": {"event": {"name": ["adapter.drifted"]}, "occurred": {"since": since}}, "limit": 50}

    def payloads() -> list[Any]:
        found = httpx.post(f"{prefect_api}/events/filter", json=body, timeout=60).raise_for_status().json()
        return [event["payload"] for event in found["events"]]

    deadline = time.monotonic() + 60
    while version.model_dump(mode="json") not in payloads():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.slow
def test_what_a_prune_removed_is_gone_and_no_drift(export: Export, trained: Trained, out: Path, tmp_path: Path) -> None:
    export(checkpoint=another(trained, tmp_path / "run"), run=TrainingRun(finished_at=datetime(2026, 1, 1, tzinfo=UTC)))
    export(run=TrainingRun(finished_at=datetime(2026, 1, 2, tzinfo=UTC)))
    adapterline.prune("sks-dog", [str(out)], keep_last=1, yes=True)
    report = adapterline.audit(base=str(trained.base))
    assert report.counts == {"drifted": 0, "unreadable": 0, "whole": 1, "gone": 1}


@pytest.mark.slow
def test_a_sample_reads_what_aliases_point_to_and_so_many_more(
    export: Export, trained: Trained, out: Path, tmp_path: Path
) -> None:
    for day in (1, 2):
        run = TrainingRun(finished_at=datetime(2026, 1, day, tzinfo=UTC))
        export(checkpoint=another(trained, tmp_path / f"run-{day}", 2.0**day), run=run)
    last = export(run=TrainingRun(finished_at=datetime(2026, 1, 9, tzinfo=UTC)))
    assert last.manifest is not None
    report = audited(trained, sample=0)
    assert ([version.digest for version in report.versions], report.skipped) == ([last.manifest.digest], 2)
    assert audited(trained, sample=1).skipped == 1
    assert not audited(trained, "other-*").versions
    assert not audited(trained, to=("elsewhere",)).versions


@pytest.mark.slow
def test_a_place_that_cannot_be_reached_fails_the_audit_and_has_not_drifted(
    export: Export, trained: Trained, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(to=(f"s3://{bucket}/loras",))
    (version,) = audited(trained).versions
    assert (version.state, version.proof) == ("whole", "effect")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    monkeypatch.setenv("ADAPTERLINE_RETRIES", "0")
    (version,) = audited(trained).versions
    assert version.state == "unreadable"


@pytest.mark.slow
def test_the_command_prints_what_it_found(export: Export, trained: Trained, out: Path) -> None:
    import subprocess
    import sys

    record = export()
    change_weights(folder_of(out, record))
    command = [sys.executable, "-m", "adapterline.cli", "audit", "sks-*", "--base", str(trained.base)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 4, done.stderr
    assert done.stdout.startswith("1 drifted, 0 unreadable, 0 whole, 0 gone\n  drifted    sks-dog ")
    assert "error: 1 drifted" in done.stderr
