"""The callbacks, called by the libraries that they are made for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from adapterline.events.callbacks import accelerate_tracker, transformers_callback
from adapterline.values import TrainingRun

Sent = list[dict[str, Any]]


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    """The events, instead of sending them; that they arrive is tested with a server, in `tests/deployments`."""
    events: Sent = []
    monkeypatch.setattr("adapterline.prefect_events.send", events.append)
    return events


def test_a_trainer_tells_once_with_its_folder_run_and_step(sent: Sent, tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": self.layer(x).square().mean()}

    arguments = TrainingArguments(
        output_dir=str(tmp_path / "out"), max_steps=3, run_name="run-7", report_to=[], use_cpu=True, save_strategy="no"
    )
    callback = transformers_callback(name="sks-dog", run=TrainingRun(dataset="dogs"))
    data = [{"x": torch.ones(2)} for _ in range(8)]
    Trainer(Model(), arguments, train_dataset=data, callbacks=[callback]).train()  # type: ignore[arg-type]
    (event,) = sent
    assert event["payload"]["checkpoint"] == str(tmp_path / "out")
    assert event["payload"]["name"] == "sks-dog"
    run = event["payload"]["run"]
    assert (run["run_id"], run["step"], run["dataset"]) == ("run-7", 3, "dogs")
    assert run["finished_at"]


def test_an_accelerator_tells_when_training_has_ended(sent: Sent) -> None:
    from accelerate import Accelerator

    tracker = accelerate_tracker(checkpoint="s3://runs/7", run=TrainingRun(run_id="7"))
    accelerator = Accelerator(cpu=True, log_with=tracker)
    accelerator.init_trackers("dogs", config={"rank": 4})
    accelerator.log({"loss": 1.0}, step=1)
    accelerator.log({"loss": 0.5}, step=20)
    assert sent == []
    accelerator.end_training()
    (event,) = sent
    assert event["payload"]["checkpoint"] == "s3://runs/7"
    assert (event["payload"]["run"]["run_id"], event["payload"]["run"]["step"]) == ("7", 20)
