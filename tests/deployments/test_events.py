"""A training run ends, its event starts an export on a real worker, and an event can decide nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest

import adapterline
from adapterline.values import LineageRecord, TrainingRun, slug
from tests.conftest import Trained

ROOT = Path(__file__).parents[2]
_PATIENCE = 120  # seconds
T = TypeVar("T")


def eventually(look: Callable[[], T | None], what: str) -> T:
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.2)
    raise AssertionError(f"no {what} in {_PATIENCE} s")


@dataclass(frozen=True)
class Deployed:
    """The deployment on the session's server, with a worker that takes its runs."""

    api: str
    home: Path

    @property
    def out(self) -> Path:
        return self.home / "published"

    @property
    def runs_root(self) -> Path:
        return self.home / "runs"

    def post(self, path: str, body: Any) -> Any:
        answer = httpx.post(f"{self.api}{path}", json=body, timeout=60).raise_for_status()
        return answer.json() if answer.content else None

    def runs(self, checkpoint: str) -> list[dict[str, Any]]:
        """The runs of this checkpoint, the oldest first."""
        found = self.post("/flow_runs/filter", {"sort": "START_TIME_ASC", "limit": 200})
        return [run for run in found if run["parameters"].get("checkpoint") == checkpoint]

    def ended(self, checkpoint: str, count: int = 1) -> list[dict[str, Any]]:
        def look() -> list[dict[str, Any]] | None:
            runs = [r for r in self.runs(checkpoint) if r["state_type"] in ("COMPLETED", "FAILED", "CRASHED")]
            return runs if len(runs) >= count else None

        return eventually(look, f"{count} ended runs of {checkpoint}")

    def records(self, checkpoint: str) -> list[LineageRecord]:
        files = sorted((self.home / "records").rglob("*.json"), key=lambda file: file.name)
        found = [LineageRecord.model_validate_json(file.read_bytes()) for file in files]
        return [record for record in found if record.checkpoint == checkpoint]


@pytest.fixture(scope="module")
def deployed(prefect_api: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    home = tmp_path_factory.mktemp("deployed")
    (home / "runs").mkdir()
    ours = {
        "ADAPTERLINE_RECORDS": str(home / "records"),
        "ADAPTERLINE_INDEX": f"sqlite:///{home / 'index.sqlite'}",
        "ADAPTERLINE_SCRATCH": str(home / "scratch"),
        "ADAPTERLINE_INCOMPLETE_SECONDS": "1",
        "ADAPTERLINE_INCOMPLETE_TRIES": "30",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PYTHONPATH": str(ROOT),
    }
    environment = os.environ | ours
    places = ["--to", str(home / "published"), "--root", str(home / "runs"), "--name", "team-a-*"]
    for _ in range(2):  # the second one changes nothing
        subprocess.run([sys.executable, "-m", "deployments.deploy", *places], cwd=ROOT, env=environment, check=True)
    with (home / "worker.log").open("wb") as log:
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "adapterline", "--type", "process"]
        worker = subprocess.Popen(command, cwd=home, env=environment, stdout=log, stderr=log)
        try:
            yield Deployed(prefect_api, home)
        finally:
            worker.terminate()
            worker.wait(60)


def copied(deployed: Deployed, trained: Trained, name: str) -> Path:
    return Path(shutil.copytree(trained.checkpoint, deployed.runs_root / name))


def test_deploying_again_leaves_one_automation_and_one_pool(deployed: Deployed) -> None:
    automations = deployed.post("/automations/filter", {"limit": 200})
    assert [each["name"] for each in automations if "on-completion" in each["name"]] == ["on-completion__automation_1"]
    queues = deployed.post("/work_pools/adapterline/queues/filter", {})
    assert {queue["name"] for queue in queues} >= {"exports", "renders", "sweeps"}


def test_the_sweep_is_scheduled_once_a_night_and_never_twice_at_once(deployed: Deployed) -> None:
    (nightly,) = deployed.post("/deployments/filter", {"deployments": {"name": {"any_": ["nightly"]}}})
    assert [(each["schedule"]["cron"], each["active"]) for each in nightly["schedules"]] == [("0 3 * * *", True)]
    assert nightly["parameters"]["roots"] == [str(deployed.runs_root)]
    assert nightly["global_concurrency_limit"]["limit"] == 1
    assert nightly["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"


@pytest.mark.slow
def test_a_sweep_fans_out_to_the_deployment(deployed: Deployed, trained: Trained) -> None:
    root = deployed.runs_root / "swept"
    for name in ("team-a-one", "team-b-two"):
        shutil.copytree(trained.checkpoint, root / name)
        (root / name / "_SUCCESS").touch()
    (nightly,) = deployed.post("/deployments/filter", {"deployments": {"name": {"any_": ["nightly"]}}})
    asked = {"parameters": {"roots": [str(root)], "base": str(trained.base)}}
    run = deployed.post(f"/deployments/{nightly['id']}/create_flow_run", asked)

    def ended() -> str | None:
        found = httpx.get(f"{deployed.api}/flow_runs/{run['id']}", timeout=60).json()
        return str(found["state_type"]) if found["state_type"] in ("COMPLETED", "FAILED", "CRASHED") else None

    assert eventually(ended, "end of the sweep") == "COMPLETED"
    body = {"artifacts": {"flow_run_id": {"any_": [run["id"]]}, "key": {"any_": ["adapterline-sweep"]}}}
    (summary,) = deployed.post("/artifacts/filter", body)
    assert summary["description"] == "0 failed, 1 refused, 1 exported, 0 unfinished, 0 skipped"
    assert "may not be published from here" in summary["data"]
    assert (deployed.out / "team-a-one" / "latest.json").is_file()


def test_an_event_becomes_a_published_adapter_with_its_artifacts(deployed: Deployed, trained: Trained) -> None:
    checkpoint = copied(deployed, trained, "run-7")
    run = TrainingRun(run_id="run-7", step=4, dataset='sks "dog" <1>')
    sent = adapterline.notify(str(checkpoint), base=str(trained.base), name="team-a-dog", run=run)
    assert sent == adapterline.notify(str(checkpoint), base=str(trained.base), name="team-a-dog", run=run)
    (done,) = deployed.ended(str(checkpoint))
    assert done["state_type"] == "COMPLETED"
    (record,) = deployed.records(str(checkpoint))
    assert (record.outcome, record.name, record.to) == ("exported", "team-a-dog", (str(deployed.out),))
    assert record.run is not None
    assert (record.run.run_id, record.run.step, record.run.dataset) == ("run-7", 4, 'sks "dog" <1>')
    assert (deployed.out / "team-a-dog" / "latest.json").is_file()
    keys = {"artifacts": {"key": {"any_": [f"{slug('team-a-dog')}-{what}" for what in ("record", "checks", "places")]}}}
    artifacts = deployed.post("/artifacts/filter", keys)
    assert len(artifacts) == 3
    assert {artifact["flow_run_id"] for artifact in artifacts} == {done["id"]}


@pytest.mark.slow
def test_text_of_an_event_becomes_no_other_parameter(deployed: Deployed, trained: Trained) -> None:
    hostile = f'{deployed.runs_root}/a", "to": ["s3://evil"], "x": "{{{{ 7 * 7 }}}}'
    adapterline.notify(hostile, base=str(trained.base), name="team-a-evil", run=TrainingRun(run_id='"}}, {"to": []'))
    run = eventually(lambda: deployed.runs(hostile), "run")[0]
    assert run["parameters"]["to"] == [str(deployed.out)]
    assert set(run["parameters"]) == {"checkpoint", "base", "name", "run", "to"}
    assert run["parameters"]["run"]["run_id"] == '"}}, {"to": []'


@pytest.mark.slow
@pytest.mark.parametrize(
    ("inside", "name", "told"),
    [(False, "team-a-dog", "lies outside of what may be exported"), (True, "team-b-dog", "may not be published")],
)
def test_what_the_deployment_does_not_allow_is_refused(
    deployed: Deployed, trained: Trained, inside: bool, name: str, told: str
) -> None:
    checkpoint = deployed.runs_root / f"for-{name}"
    if inside:
        copied(deployed, trained, checkpoint.name)
    else:
        checkpoint.symlink_to(trained.checkpoint)  # within the root by its name alone
    adapterline.notify(str(checkpoint), base=str(trained.base), name=name)
    (done,) = deployed.ended(str(checkpoint))
    assert done["state_type"] == "FAILED"
    (record,) = deployed.records(str(checkpoint))
    assert record.outcome == "refused"
    assert told in str(record.error)
    assert not (deployed.out / "team-b-dog").exists()


@pytest.mark.slow
def test_fifty_events_of_one_run_publish_once(deployed: Deployed, trained: Trained) -> None:
    checkpoint = copied(deployed, trained, "run-50")
    run = TrainingRun(run_id="run-50")
    ids = {adapterline.notify(str(checkpoint), base=str(trained.base), name="team-a-fifty", run=run) for _ in range(50)}
    assert len(ids) == 1
    deployed.ended(str(checkpoint))
    assert len(deployed.runs(str(checkpoint))) == 1
    assert len(list((deployed.out / "team-a-fifty").glob("*/manifest.json"))) == 1


@pytest.mark.slow
def test_an_event_that_comes_before_its_checkpoint_waits_for_it(deployed: Deployed, trained: Trained) -> None:
    checkpoint = deployed.runs_root / "run-late"
    adapterline.notify(str(checkpoint), base=str(trained.base), name="team-a-late", run=TrainingRun(run_id="late"))
    (waited, *_) = deployed.ended(str(checkpoint))
    assert waited["state_type"] == "COMPLETED"
    assert deployed.records(str(checkpoint))[0].outcome == "waiting"
    copied(deployed, trained, "run-late")
    eventually(lambda: (deployed.out / "team-a-late" / "latest.json").exists(), "publication")
    outcomes = [record.outcome for record in deployed.records(str(checkpoint))]
    assert set(outcomes[:-1]) == {"waiting"}
    tags = {tag for run in deployed.runs(str(checkpoint)) for tag in run["tags"]}
    assert "waited:1" in tags
