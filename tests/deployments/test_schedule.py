"""The pins that keep Prefect's server alive: with sqlalchemy 2.1 its scheduler makes no run, and looks healthy."""

from __future__ import annotations

import re
import time
from importlib.metadata import requires, version
from pathlib import Path

import httpx
from packaging.requirements import Requirement
from packaging.version import Version
from prefect.schedules import Cron

ROOT = Path(__file__).parents[2]
_PATIENCE = 60  # seconds


def test_a_cron_deployment_gets_scheduled_runs(prefect_api: str) -> None:
    from flows.export import export_adapter

    deployment = export_adapter.to_deployment(
        "nightly-test", schedule=Cron("0 3 * * *", timezone="Europe/Berlin"), parameters={"checkpoint": "nowhere"}
    )
    id_ = str(deployment.apply())  # type: ignore[union-attr]
    wanted = {"deployments": {"id": {"any_": [id_]}}, "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}
    deadline = time.monotonic() + _PATIENCE
    runs: list[dict[str, str]] = []
    while not runs and time.monotonic() < deadline:
        runs = httpx.post(f"{prefect_api}/flow_runs/filter", json=wanted, timeout=30).raise_for_status().json()
        time.sleep(0.1)
    assert runs, "the scheduler made no run"
    assert all(re.search(r"T0[12]:00:00", run["expected_start_time"]) for run in runs)  # 3 o'clock in Berlin


def test_the_known_good_set_is_within_the_ranges_and_names_no_registry() -> None:
    text = (ROOT / "constraints.txt").read_text()
    assert "://" not in text
    assert "index-url" not in text
    pinned = dict(line.split("==") for line in text.splitlines() if "==" in line)
    pinned = {re.sub(r"[-_.]+", "-", name).lower(): value for name, value in pinned.items()}
    for line in requires("adapterline") or []:
        requirement = Requirement(line)
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if name != "adapterline":
            assert name in pinned, f"{name} is not in constraints.txt"
            assert requirement.specifier.contains(pinned[name]), f"{name} {pinned[name]} is not {requirement.specifier}"


def test_prefects_server_has_the_libraries_that_it_works_with() -> None:
    assert Version(version("fastapi")) < Version("0.151")
    assert Version(version("sqlalchemy")) < Version("2.1")


def test_flows_and_tasks_are_this_projects() -> None:
    import flows
    import tasks

    assert [Path(str(package.__file__)).parent.parent for package in (flows, tasks)] == [ROOT, ROOT]
