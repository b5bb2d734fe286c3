"""From the end of a training run to its published adapter: how long until a run starts, and where its time goes.

A real server with SQLite, everything deployed, a process worker, and events one after the other. The tiny checkpoint of
the demo, so that what is measured is the way and not the work.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import adapterline
from adapterline.demo.base import build_base
from adapterline.demo.train import train
from adapterline.values import TrainingRun
from tests.conftest import Trained
from tests.deployed import Deployed, copied, deploying, eventually
from tests.prefect_fixtures import serving

ROUNDS = 3
#: How often the worker asks for runs, in seconds: Prefect's default, and one for who is in a hurry.
QUERIES = (10, 1)


def main() -> None:
    """Prints medians in seconds."""
    print(f"latency: medians of {ROUNDS} events, in seconds")
    with tempfile.TemporaryDirectory(prefix="adapterline-bench-") as name:
        work = Path(name)
        trained = Trained(work / "base", work / "checkpoint")
        build_base(trained.base)
        train(trained.base, trained.checkpoint)
        for query in QUERIES:
            print(f"\nPREFECT_WORKER_QUERY_SECONDS={query}")
            _print(_rounds(work / str(query), trained, query))
        print("\nof a cold start")
        _print_imports()


def _rounds(home: Path, trained: Trained, query: int) -> list[dict[str, float]]:
    (home / "server").mkdir(parents=True)
    (home / "home").mkdir()
    with (
        serving(home / "server", {}) as api,
        deploying(api, home / "home", PREFECT_WORKER_QUERY_SECONDS=str(query)) as deployed,
    ):
        return [_round(deployed, trained, f"team-a-{number}") for number in range(ROUNDS)]


def _round(deployed: Deployed, trained: Trained, name: str) -> dict[str, float]:
    checkpoint = copied(deployed, trained, name)
    sent = datetime.now(UTC)
    adapterline.notify(str(checkpoint), base=str(trained.base), name=name, run=TrainingRun(run_id=name))
    eventually(lambda: (deployed.out / name / "latest.json").exists(), "publication")
    published = datetime.now(UTC)
    (run,) = deployed.ended(str(checkpoint))
    states = {state["type"]: _time(state["timestamp"]) for state in _states(deployed, run)}
    wanted = {"flow_runs": {"id": {"any_": [run["id"]]}}, "sort": "EXPECTED_START_TIME_ASC"}
    rows = deployed.post("/task_runs/filter", wanted)
    first = min(_time(row["start_time"]) for row in rows if row["start_time"])
    laps = {
        "event -> run exists": (states["SCHEDULED"] - sent).total_seconds(),
        "run exists -> taken by the worker": (states["PENDING"] - states["SCHEDULED"]).total_seconds(),
        "taken -> flow runs: process, imports of Prefect and the flow": (
            states["RUNNING"] - states["PENDING"]
        ).total_seconds(),
        "flow runs -> first task": (first - states["RUNNING"]).total_seconds(),
    }
    for row in rows:
        if row["start_time"] and row["total_run_time"] > 0.05:
            laps[f"  task {row['name'].partition('-/')[0]}"] = row["total_run_time"]
    laps["event -> run starts"] = (states["RUNNING"] - sent).total_seconds()
    laps["run starts -> published"] = (published - states["RUNNING"]).total_seconds()
    laps["event -> published"] = (published - sent).total_seconds()
    return laps


def _states(deployed: Deployed, run: dict[str, Any]) -> list[dict[str, Any]]:
    return list(deployed.get(f"/flow_run_states/?flow_run_id={run['id']}"))


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _print(rounds: list[dict[str, float]]) -> None:
    for lap in rounds[0]:
        found = [laps[lap] for laps in rounds if lap in laps]
        print(f"  {lap:62}{statistics.median(found):8.2f}")


def _print_imports() -> None:
    """Each import in a process that has those before it: the differences are what each adds."""
    steps = [
        "pass",
        "import prefect.flow_engine",
        "import flows.export",
        "import torch",
        "import peft, transformers",
        "from diffusers import StableDiffusionPipeline",
    ]
    seconds = []
    for count in range(1, len(steps) + 1):
        script = "; ".join(steps[:count])
        laps = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", script], check=True, stderr=subprocess.DEVNULL)
            laps.append(time.perf_counter() - start)
        seconds.append(statistics.median(laps))
    print(f"  {'python':62}{seconds[0]:8.2f}")
    for step, (before, after) in zip(steps[1:], pairwise(seconds), strict=True):
        print(f"  {step.removeprefix('import ').removeprefix('from diffusers '):62}{after - before:8.2f}")


if __name__ == "__main__":
    main()
