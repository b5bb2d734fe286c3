"""A sweep over what trainers left in a night: it exports what is new, tells what is refused once, and goes on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

from adapterline.errors import CheckpointError, SweepFailedError, UsageError
from adapterline.lineage import Index
from adapterline.lineage.records import every_record, open_records
from adapterline.settings import Settings
from adapterline.sweeps import SweepSummary, summary_markdown
from adapterline.values import SweepRecord
from tests.conftest import Trained
from tests.lineage.recorded import index_file

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

pytestmark = pytest.mark.usefixtures("prefect_api")
Sweep = Callable[..., SweepSummary]
KEY = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture
def sweep(records: Path, trained: Trained, tmp_path: Path) -> Sweep:
    """Sweeps `tmp_path/runs` into `tmp_path/out`."""
    from flows.nightly import export_nightly

    def run(*roots: str, **more: Any) -> SweepSummary:
        arguments = {"to": (str(tmp_path / "out"),), "base": str(trained.base)} | more
        return export_nightly(roots=roots or (str(tmp_path / "runs"),), **arguments)

    return run


def lora(path: Path, seed: int = 0, age: float = 3600) -> Path:
    """A small adapter as diffusers writes it, last written `age` seconds ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    width = 16
    save_file(
        {
            f"{KEY}.lora_A.weight": torch.randn(2, width, generator=generator),
            f"{KEY}.lora_B.weight": torch.randn(width, 2, generator=generator),
        },
        path,
    )
    return aged(path, age)


def aged(path: Path, age: float) -> Path:
    then = time.time() - age
    os.utime(path, (then, then))
    return path


def by_outcome(summary: SweepSummary) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for item in summary.items:
        found.setdefault(item.outcome, set()).add(Path(item.checkpoint).name)
    return found


def swept() -> tuple[SweepRecord, ...]:
    """What the index has of sweeps, the newest first; the record store has the same."""
    store, index = open_records(Settings().records), Index()
    kept = tuple(store.read_sweep(name) for name in reversed(store.sweep_names()))
    assert index.sweeps().sweeps == kept
    index.reindex()
    assert index.sweeps().sweeps == kept
    return index.sweeps().sweeps


def published(root: Path) -> set[str]:
    return {file.parents[1].name for file in root.rglob("manifest.json")}


@pytest.mark.slow
def test_thirty_runs_have_exactly_their_summary(sweep: Sweep, tmp_path: Path, trained: Trained) -> None:
    from flows.export import export_adapter

    runs = tmp_path / "runs"
    for number in range(24):
        lora(runs / f"good-{number:02}" / "pytorch_lora_weights.safetensors", number)
    for number in range(2):  # still being written: too new, and too short
        lora(runs / f"young-{number}" / "pytorch_lora_weights.safetensors", number, age=5)
    cut = lora(runs / "cut-0" / "pytorch_lora_weights.safetensors", 99)
    cut.write_bytes(cut.read_bytes()[:-100])
    aged(cut, 3600)
    for number in range(3):
        save_file({"nothing.known": torch.ones(2)}, runs / f"strange-{number}.safetensors")
        aged(runs / f"strange-{number}.safetensors", 3600)
    for number in range(2):
        export_adapter(
            str(runs / f"good-{number:02}"),
            base=str(trained.base),
            name=f"good-{number:02}",
            to=(str(tmp_path / "out"),),
        )
    first = sweep()
    assert first.counts == {"exported": 22, "skipped": 2, "unfinished": 3, "refused": 3, "failed": 0}
    assert by_outcome(first)["skipped"] == {"good-00", "good-01"}
    assert by_outcome(first)["unfinished"] == {"young-0", "young-1", "cut-0"}
    assert published(tmp_path / "out") == {f"good-{number:02}" for number in range(24)}
    second = sweep()
    assert second.counts == {"exported": 0, "skipped": 24, "unfinished": 3, "refused": 3, "failed": 0}
    assert all(item.told for item in second.items if item.outcome == "refused")
    assert "strange" not in summary_markdown(second)


def test_what_is_new_is_exported_and_the_rest_is_skipped_or_told_once(
    sweep: Sweep, tmp_path: Path, records: Path
) -> None:
    runs = tmp_path / "runs"
    lora(runs / "one" / "pytorch_lora_weights.safetensors", 1)
    lora(runs / "young" / "pytorch_lora_weights.safetensors", 2, age=5)
    save_file({"nothing.known": torch.ones(2)}, runs / "strange.safetensors")
    aged(runs / "strange.safetensors", 3600)
    assert by_outcome(sweep()) == {"exported": {"one"}, "unfinished": {"young"}, "refused": {"strange.safetensors"}}
    kept = len(open_records(str(records)).names())
    (runs / "young" / "_SUCCESS").touch()
    again = sweep()
    assert by_outcome(again) == {"skipped": {"one"}, "exported": {"young"}, "refused": {"strange.safetensors"}}
    assert [item.told for item in again.items if item.outcome == "refused"] == [True]
    assert len(open_records(str(records)).names()) == kept + 1, "nothing that is known was tried again"
    counts = [(each.found, each.exported, each.skipped, each.unfinished, each.refused, each.told) for each in swept()]
    assert counts == [(3, 1, 1, 0, 1, 1), (3, 1, 0, 1, 1, 0)]
    # Other bytes under the same name are another checkpoint.
    lora(runs / "one" / "pytorch_lora_weights.safetensors", 3)
    assert by_outcome(sweep())["exported"] == {"one"}
    assert len(list((tmp_path / "out/one").glob("*/manifest.json"))) == 2


def test_a_failure_stops_nothing_fails_the_sweep_and_is_tried_again(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adapterline.destinations.folder import FolderDestination

    whole = FolderDestination.stage

    def failing(self: FolderDestination, package: Any) -> Any:
        if package.name == "two":
            raise RuntimeError("a bug")
        return whole(self, package)

    for number, name in enumerate(("one", "two", "three")):
        lora(tmp_path / "runs" / name / "pytorch_lora_weights.safetensors", number)
    with monkeypatch.context() as broken:
        broken.setattr(FolderDestination, "stage", failing)
        with pytest.raises(SweepFailedError, match="1 failed") as caught:
            sweep()
    assert by_outcome(caught.value.summary) == {"exported": {"one", "three"}, "failed": {"two"}}
    assert caught.value.exit_code == 1
    assert [(each.exported, each.failed, each.is_whole) for each in swept()] == [(2, 1, True)]
    assert by_outcome(sweep()) == {"skipped": {"one", "three"}, "exported": {"two"}}


def test_a_sweep_that_breaks_off_leaves_what_it_met(sweep: Sweep, tmp_path: Path) -> None:
    lora(tmp_path / "runs" / "young" / "pytorch_lora_weights.safetensors", age=5)
    roots = (str(tmp_path / "runs"), str(tmp_path / "nowhere"))
    with pytest.raises(CheckpointError, match="nowhere"):
        sweep(*roots)
    [left] = swept()
    assert (left.is_whole, left.error_type, left.roots) == (False, "CheckpointError", roots)
    assert (left.found, left.unfinished) == (1, 1)
    assert left.flow_run is not None
    assert left.started_at < left.ended_at


def test_an_index_that_cannot_be_written_fails_no_sweep(sweep: Sweep, tmp_path: Path, records: Path) -> None:
    lora(tmp_path / "runs" / "young" / "pytorch_lora_weights.safetensors", age=5)
    index_file(records).write_bytes(b"no database" * 1000)
    assert sweep().counts["unfinished"] == 1
    Index().reindex()
    assert len(swept()) == 1


@pytest.mark.slow
def test_steps_are_exported_as_asked_for(sweep: Sweep, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "dog"
    for step in (100, 200, 300):
        lora(folder / f"checkpoint-{step}" / "pytorch_lora_weights.safetensors", step)
    lora(folder / "pytorch_lora_weights.safetensors", 400)

    def steps(asked: str) -> list[int | None]:
        return [item.step for item in sweep(steps=asked).items if item.outcome == "exported"]

    assert steps("final") == [None]
    assert steps("every:200") == [200]
    assert steps("all") == [100, 300]
    with pytest.raises(UsageError, match="every:0"):
        sweep(steps="every:0")


def test_a_run_says_its_name_and_its_run(sweep: Sweep, tmp_path: Path, records: Path) -> None:
    lora(tmp_path / "runs/x/pytorch_lora_weights.safetensors")
    described = tmp_path / "runs/x/training-run.json"
    described.write_text('{"name": "sks-dog", "run": {"run_id": "7", "finished_at": "2026-01-02T03:04:05Z"}}')
    aged(described, 3600)
    (item,) = sweep().items
    assert (item.outcome, item.name) == ("exported", "sks-dog")
    (record,) = every_record(open_records(str(records)))
    assert record.run is not None
    assert record.run.run_id == "7"


@pytest.mark.slow
def test_a_bucket_is_swept_and_known_by_its_etags(
    sweep: Sweep, tmp_path: Path, s3: S3Client, bucket: str, records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAPTERLINE_QUIET_SECONDS", "0")
    s3.upload_file(str(lora(tmp_path / "a")), bucket, "runs/dog/pytorch_lora_weights.safetensors")
    s3.put_object(Bucket=bucket, Key="runs/dog/_SUCCESS", Body=b"")
    s3.put_object(Bucket=bucket, Key="runs/broken/pytorch_lora_weights.safetensors", Body=b"{}")
    assert by_outcome(sweep(f"s3://{bucket}/runs")) == {"exported": {"dog"}, "unfinished": {"broken"}}
    kept = len(open_records(str(records)).names())
    assert by_outcome(sweep(f"s3://{bucket}/runs")) == {"skipped": {"dog"}, "unfinished": {"broken"}}
    assert len(open_records(str(records)).names()) == kept + 1, "the unfinished one alone was read again"


def test_the_summary_is_an_artifact(sweep: Sweep, tmp_path: Path, prefect_api: str) -> None:
    import httpx

    lora(tmp_path / "runs/portrait.safetensors")
    summary = sweep()
    body = {"artifacts": {"key": {"any_": ["adapterline-sweep"]}}, "sort": "CREATED_DESC"}
    newest = httpx.post(f"{prefect_api}/artifacts/filter", json=body, timeout=60).json()[0]
    assert newest["data"] == summary_markdown(summary)
    assert "| exported |" in newest["data"]
    assert newest["description"] == summary.line()


@pytest.mark.slow
def test_the_command_line_prints_counts_and_ends_with_1_where_something_failed(
    records: Path, trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from adapterline.cli import app
    from adapterline.destinations.folder import FolderDestination

    lora(tmp_path / "runs/dog.safetensors")
    arguments = ["sweep", str(tmp_path / "runs"), "--base", str(trained.base), "--to", str(tmp_path / "out")]

    def broken(self: FolderDestination, package: Any) -> Any:
        raise RuntimeError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(FolderDestination, "stage", broken)
        with pytest.raises(SystemExit) as stopped:
            app(arguments, result_action="return_value")
    assert stopped.value.code == 1
    assert capsys.readouterr().out.startswith("1 failed, 0 refused, 0 exported")
    app(arguments, result_action="return_value")
    assert capsys.readouterr().out.startswith("0 failed, 0 refused, 1 exported")
