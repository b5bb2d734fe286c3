"""The project deployed on a real server, with a real process worker that takes its runs."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import httpx

from adapterline.values import LineageRecord
from tests.conftest import Trained

ROOT = Path(__file__).parents[1]
PATIENCE = 120  # seconds
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
T = TypeVar("T")


def eventually(look: Callable[[], T | None], what: str, patience: float = PATIENCE) -> T:
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.2)
    raise AssertionError(f"no {what} in {patience} s")


@dataclass
class Deployed:
    """The deployment on the session's server, with a worker that takes its runs."""

    api: str
    home: Path
    environment: dict[str, str]
    alerts: list[dict[str, Any]] = field(default_factory=list)  # what people were told
    worker: subprocess.Popen[bytes] | None = None

    @property
    def out(self) -> Path:
        return self.home / "published"

    @property
    def runs_root(self) -> Path:
        return self.home / "runs"

    def deploy(self, *more: str) -> None:
        places = ["--to", str(self.out), "--root", str(self.runs_root), "--name", "team-a-*"]
        command = [sys.executable, "-m", "deployments.deploy", *places, *more]
        subprocess.run(command, cwd=ROOT, env=self.environment, check=True)

    def start_worker(self) -> None:
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "adapterline", "--type", "process"]
        with (self.home / "worker.log").open("ab") as log:
            self.worker = subprocess.Popen(command, cwd=self.home, env=self.environment, stdout=log, stderr=log)

    def stop_worker(self) -> None:
        if self.worker is None:
            return
        self.worker.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.worker.wait(30)
        self.worker.kill()  # it may wait for a run that nobody waits for any more
        self.worker.wait()
        self.worker = None

    def post(self, path: str, body: Any) -> Any:
        answer = httpx.post(f"{self.api}{path}", json=body, timeout=60).raise_for_status()
        return answer.json() if answer.content else None

    def get(self, path: str) -> Any:
        return httpx.get(f"{self.api}{path}", timeout=60).raise_for_status().json()

    def runs(self, checkpoint: str) -> list[dict[str, Any]]:
        """The runs of this checkpoint, the oldest first."""
        found = self.post("/flow_runs/filter", {"sort": "START_TIME_ASC", "limit": 200})
        return [run for run in found if run["parameters"].get("checkpoint") == checkpoint]

    def ended(self, checkpoint: str, count: int = 1) -> list[dict[str, Any]]:
        def look() -> list[dict[str, Any]] | None:
            runs = [run for run in self.runs(checkpoint) if run["state_type"] in ENDED]
            return runs if len(runs) >= count else None

        return eventually(look, f"{count} ended runs of {checkpoint}")

    def records(self, checkpoint: str) -> list[LineageRecord]:
        files = sorted((self.home / "records").rglob("*.json"), key=lambda file: file.name)
        found = [LineageRecord.model_validate_json(file.read_bytes()) for file in files]
        return [record for record in found if record.checkpoint == checkpoint]

    def versions(self, name: str) -> list[Path]:
        """What is published under a name."""
        return sorted((self.out / name).glob("*/manifest.json"))

    def events(self, name: str) -> list[dict[str, Any]]:
        since = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
        body = {"filter": {"event": {"name": [name]}, "occurred": {"since": since}}, "limit": 50}
        return list(self.post("/events/filter", body)["events"])


@contextmanager
def deploying(prefect_api: str, home: Path, **settings: str) -> Iterator[Deployed]:
    """A worker, everything deployed (twice: the second time changes nothing), and somebody who is told of troubles."""
    from prefect.blocks.core import Block
    from prefect.blocks.notifications import CustomWebhookNotificationBlock
    from prefect.blocks.system import Secret

    (home / "runs").mkdir()
    environment = {
        **os.environ,
        "ADAPTERLINE_RECORDS": str(home / "records"),
        "ADAPTERLINE_INDEX": f"sqlite:///{home / 'index.sqlite'}",
        "ADAPTERLINE_OPENLINEAGE": str(home / "openlineage.jsonl"),
        "ADAPTERLINE_SCRATCH": str(home / "scratch"),
        "ADAPTERLINE_INCOMPLETE_SECONDS": "1",
        "ADAPTERLINE_INCOMPLETE_TRIES": "30",
        "ADAPTERLINE_CRASH_SECONDS": "0.5",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PYTHONPATH": str(ROOT),
        **settings,
    }
    deployed = Deployed(prefect_api, home, environment)
    with _hearing(deployed.alerts) as url:
        blocks: dict[str, Block] = {
            "alerts": CustomWebhookNotificationBlock(
                name="alerts", url=url, json_data={"subject": "{{subject}}", "body": "{{body}}"}
            ),
            "page-token": Secret(value="a secret of the block"),
        }
        for name, block in blocks.items():
            block.save(name, overwrite=True)  # type: ignore[unused-coroutine]
        for _ in range(2):
            deployed.deploy("--notify", "custom-webhook/alerts", "--secret", "PAGE_TOKEN=page-token", "--env", "A=b")
        deployed.start_worker()
        try:
            yield deployed
        finally:
            deployed.stop_worker()


@contextmanager
def _hearing(told: list[dict[str, Any]]) -> Iterator[str]:
    """Somebody's chat: what is posted to the URL is kept."""

    class Chat(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # noqa: N802  (the library's name)
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Chat) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join()


def copied(deployed: Deployed, trained: Trained, name: str) -> Path:
    return Path(shutil.copytree(trained.checkpoint, deployed.runs_root / name))
