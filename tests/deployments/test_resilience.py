"""A run whose process, worker or machine dies is noticed, started again, and publishes once.

On PostgreSQL and Redis: a server with SQLite waits a minute for a lock now and then, where so many runs begin and end.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import adapterline
from adapterline.values import TrainingRun
from tests.conftest import Trained
from tests.deployed import ROOT, Deployed, copied, deploying, eventually

pytestmark = pytest.mark.slow
KILLING = Path(__file__).parent / "killing"
TASKS = (
    "load-checkpoint",
    "open-base",
    "find-export",
    "extract",
    "convert",
    "serialize",
    "validate",
    "package",
    "upload",
    "measure-drift",
    "release",
    "record",
)
_LONG = 400  # seconds, for many runs on few processors


@pytest.fixture(scope="module")
def deployed(sturdy_prefect_api: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    home = tmp_path_factory.mktemp("deployed")
    (home / "killed").mkdir()
    path = f"{KILLING}{os.pathsep}{ROOT}"
    with deploying(sturdy_prefect_api, home, KILLED=str(home / "killed"), PYTHONPATH=path) as found:
        yield found


def notified(deployed: Deployed, trained: Trained, name: str) -> Path:
    checkpoint = copied(deployed, trained, name)
    adapterline.notify(str(checkpoint), base=str(trained.base), name=name, run=TrainingRun(run_id=name))
    return checkpoint


def completed(deployed: Deployed, checkpoint: Path) -> dict[str, Any] | None:
    return next((run for run in deployed.runs(str(checkpoint)) if run["state_type"] == "COMPLETED"), None)


@pytest.mark.timeout(900)
def test_a_run_that_is_killed_in_any_task_is_started_again_and_publishes_once(
    deployed: Deployed, trained: Trained
) -> None:
    names = {f"team-a-kill-{task}": task for task in TASKS}
    checkpoints = {name: notified(deployed, trained, name) for name in names}
    for name, checkpoint in checkpoints.items():
        run = eventually(lambda checkpoint=checkpoint: completed(deployed, checkpoint), f"end of {name}", _LONG)
        assert (deployed.home / "killed" / name).exists(), f"{name} was not killed"
        states = deployed.get(f"/flow_run_states/?flow_run_id={run['id']}")
        assert sum(state["type"] == "CRASHED" for state in states) == 1
        assert len(deployed.runs(str(checkpoint))) == 1  # the same run, not a second one
        assert len(deployed.versions(name)) == 1
        outcomes = [record.outcome for record in deployed.records(str(checkpoint))]
        # Killed after its record, it finds its own work done.
        assert outcomes == (["exported", "already-exported"] if names[name] == "record" else ["exported"])
        assert (deployed.out / name / "latest.json").is_file()


@pytest.mark.timeout(900)
def test_a_run_that_dies_together_with_its_worker_is_started_again_by_the_next(
    deployed: Deployed, trained: Trained
) -> None:
    checkpoint = notified(deployed, trained, "team-a-killall-upload")
    worker = deployed.worker
    assert worker is not None
    eventually(lambda: worker.poll() is not None, "death of the worker")
    assert worker.returncode == -signal.SIGKILL
    (run,) = deployed.runs(str(checkpoint))
    assert run["state_type"] == "RUNNING"  # nobody is left to say otherwise
    deployed.start_worker()
    eventually(lambda: completed(deployed, checkpoint), "end", _LONG)
    assert len(deployed.versions("team-a-killall-upload")) == 1
    messages = [alert["body"] for alert in deployed.alerts]
    assert any("No sign of life for 90 s" in message for message in messages), messages


def test_a_run_that_crashes_too_often_stays_crashed_and_people_are_told(deployed: Deployed, trained: Trained) -> None:
    """Its process cannot even start: what its deployment asks for is not there."""
    (found,) = deployed.post("/deployments/filter", {"deployments": {"name": {"any_": ["on-completion"]}}})
    asked = {
        "name": "hopeless",
        "parameters": {"checkpoint": "nowhere"},
        "job_variables": {"command": "false", "env": {}},
    }
    run = deployed.post(f"/deployments/{found['id']}/create_flow_run", asked)

    def gave_up() -> bool:
        return any("The run hopeless crashed 4 times" in alert["body"] for alert in deployed.alerts)

    eventually(gave_up, "alert", _LONG)
    states = deployed.get(f"/flow_run_states/?flow_run_id={run['id']}")
    assert sum(state["type"] == "CRASHED" for state in states) == 4
    assert deployed.get(f"/flow_runs/{run['id']}")["state_type"] == "CRASHED"


@pytest.mark.parametrize("task", ["validate", "upload"])
def test_a_cancelled_run_leaves_nothing_to_be_seen(deployed: Deployed, trained: Trained, task: str) -> None:
    name = f"team-a-hang-{task}"
    checkpoint = notified(deployed, trained, name)
    eventually(lambda: (deployed.home / "killed" / name).exists(), f"{task} of it")
    (run,) = deployed.runs(str(checkpoint))
    state = {"state": {"type": "CANCELLING", "name": "Cancelling"}, "force": False}
    httpx.post(f"{deployed.api}/flow_runs/{run['id']}/set_state", json=state, timeout=60).raise_for_status()
    eventually(lambda: deployed.get(f"/flow_runs/{run['id']}")["state_type"] == "CANCELLED", "end of it")
    assert not deployed.versions(name)
    assert not list((deployed.out / name).glob("*.json"))
    assert not list((deployed.home / "scratch").glob("run-*"))
    # What it staged is no version, and a run of the same checkpoint takes it up.
    again = TrainingRun(run_id=f"{name}-again")
    adapterline.notify(str(checkpoint), base=str(trained.base), name=name, run=again)
    eventually(lambda: (deployed.out / name / "latest.json").is_file(), "export after all")
    assert len(deployed.versions(name)) == 1
