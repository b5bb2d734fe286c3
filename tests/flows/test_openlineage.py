"""A run tells OpenLineage of itself, and is exported whether or not somebody listens."""

from __future__ import annotations

import json
import logging
import socket
from pathlib import Path

import pytest

from tests.conftest import Trained

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_api")]


def test_a_run_tells_of_itself(records: Path, trained: Trained, tmp_path: Path) -> None:
    from flows.export import export_adapter

    to = (str(tmp_path / "out"),)
    first = export_adapter(str(trained.checkpoint), base=str(trained.base), name="told", to=to)
    start, end = map(json.loads, (tmp_path / "openlineage.jsonl").read_text().splitlines())
    assert (start["eventType"], end["eventType"]) == ("START", "COMPLETE")
    assert first.flow_run is not None
    assert end["run"]["facets"]["parent"]["run"]["runId"] == first.flow_run.id
    assert first.manifest is not None
    [output] = end["outputs"]
    assert output["facets"]["adapterline_adapter"]["digest"] == first.manifest.digest
    assert {test["status"] for test in end["run"]["facets"]["test"]["tests"]} <= {"pass", "skip"}


def test_a_run_is_exported_when_nobody_listens(
    records: Path, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from flows.export import export_adapter

    to = (str(tmp_path / "out"),)
    logger = logging.getLogger("prefect.task_runs")  # it does not always propagate
    monkeypatch.setattr(logger, "handlers", [*logger.handlers, caplog.handler])
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("OPENLINEAGE_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        record = export_adapter(str(trained.checkpoint), base=str(trained.base), name="told", to=to)
    assert record.outcome == "exported"
    assert "OpenLineage was not told" in caplog.text
