"""What goes wrong is told to people; an event that names nothing leaves a run that says so."""

from __future__ import annotations

import sys
import uuid
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from safetensors.torch import load_file, save_file

import adapterline
from adapterline.values import TrainingRun
from deployments.automations import ALERTS
from tests.conftest import Trained
from tests.deployed import Deployed, copied, eventually

pytestmark = pytest.mark.slow


@pytest.fixture
def deployed(sturdy_deployed: Deployed) -> Deployed:
    return sturdy_deployed


def told(deployed: Deployed, subject: str, text: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        return next((a for a in deployed.alerts if subject in a["subject"] and text in a["body"]), None)

    return eventually(look, f"alert of {text}")


def send(deployed: Deployed, payload: dict[str, Any]) -> None:
    """An event of a sender that does not know better."""
    event = {
        "id": str(uuid.uuid4()),
        "event": "training.run.completed",
        "occurred": datetime.now(UTC).isoformat(),
        "resource": {"prefect.resource.id": "adapterline.training-run.x"},
        "payload": payload,
    }
    httpx.post(f"{deployed.api}/events", json=[event], timeout=60).raise_for_status()


@pytest.mark.parametrize("payload", [{}, {"name": "team-a-x"}, {"checkpoint": ""}, {"checkpoint": None}])
def test_an_event_without_a_checkpoint_leaves_a_refusal(deployed: Deployed, payload: dict[str, Any]) -> None:
    before = len(deployed.events("prefect.flow-run.Failed"))
    send(deployed, payload)
    eventually(lambda: len(deployed.events("prefect.flow-run.Failed")) > before, "failed run")


def test_people_are_told_of_an_event_that_names_nothing(deployed: Deployed) -> None:
    send(deployed, {"run": {"run_id": "forgetful"}})
    told(deployed, "a run failed", "No checkpoint was named")
    (record, *_) = deployed.records("")
    assert (record.outcome, record.error_type) == ("refused", "UsageError")


@pytest.mark.parametrize(
    "payload",
    [{"checkpoint": {"a": 1}}, {"checkpoint": "x", "name": ["team-a"]}, {"checkpoint": "x", "run": {"step": "many"}}],
)
def test_people_are_told_of_an_event_of_the_wrong_kind(deployed: Deployed, payload: dict[str, Any]) -> None:
    before = len(deployed.alerts)
    send(deployed, payload)
    eventually(lambda: len(deployed.alerts) > before, "alert")
    assert "a run failed" in deployed.alerts[-1]["subject"]


def test_people_are_told_of_a_refusal_and_prefect_of_what_became_of_an_export(
    deployed: Deployed, trained: Trained
) -> None:
    checkpoint = copied(deployed, trained, "told")
    adapterline.notify(str(checkpoint), base=str(trained.base), name="team-b-told", run=TrainingRun(run_id="told"))
    told(deployed, "a run failed", "may not be published from here")
    adapterline.notify(str(checkpoint), base=str(trained.base), name="team-a-told", run=TrainingRun(run_id="told"))

    def outcomes() -> bool:
        names = ("adapter.refused", "adapter.exported")
        payloads = [event["payload"] for name in names for event in deployed.events(name)]
        found = {(each["outcome"], each["name"], each["run_id"]) for each in payloads}
        return found >= {("refused", "team-b-told", "told"), ("exported", "team-a-told", "told")}

    eventually(outcomes, "events of both outcomes")


def test_people_are_told_of_an_export_that_is_far_from_the_one_before_it(deployed: Deployed, trained: Trained) -> None:
    for number, factor in enumerate((1.0, -1.0)):
        checkpoint = copied(deployed, trained, f"far-{number}")
        [file] = (checkpoint / "unet").glob("*.safetensors")
        save_file({key: t * factor if "lora_B" in key else t for key, t in load_file(file).items()}, file)
        run = TrainingRun(run_id=f"far-{number}", finished_at=datetime(2026, 5, 1 + number, tzinfo=UTC))
        adapterline.notify(str(checkpoint), base=str(trained.base), name="team-a-far", run=run)

        def exported(checkpoint: str = str(checkpoint)) -> bool:
            return checkpoint in [event["payload"]["checkpoint"] for event in deployed.events("adapter.exported")]

        eventually(exported, f"export {number}")
    told(deployed, "far from the one before it", "unet: cosine -1.000, expected 0.1 or more")


def test_deploying_without_somebody_to_tell_tells_nobody(deployed: Deployed) -> None:
    def ours() -> set[str]:
        found = deployed.post("/automations/filter", {"limit": 200})
        return {each["name"] for each in found if each["name"].startswith("adapterline: ")}

    assert len(ours()) == 2 + len(ALERTS)
    deployed.deploy()
    assert ours() == {
        "adapterline: a run without a sign of life has crashed",
        "adapterline: a run that never began has crashed",
    }


def test_a_secret_of_a_block_reaches_the_run_and_not_the_deployment(deployed: Deployed) -> None:
    deployed.deploy("--secret", "PAGE_TOKEN=page-token", "--env", "ADAPTERLINE_RETRIES=0")
    (found,) = deployed.post("/deployments/filter", {"deployments": {"name": {"any_": ["on-completion"]}}})
    assert found["job_variables"]["env"]["PAGE_TOKEN"] == "{{ prefect.blocks.secret.page-token }}"
    assert "a secret of the block" not in str(found)
    # `command` is a job variable of processes: what runs says what it was given.
    heard = deployed.home / "heard"
    asked = {
        "parameters": {"checkpoint": "nowhere"},
        "job_variables": {
            "command": f"{sys.executable} -c \"import os; open('{heard}', 'w').write(os.environ['PAGE_TOKEN'])\""
        },
    }
    deployed.post(f"/deployments/{found['id']}/create_flow_run", asked)
    eventually(heard.exists, "run")
    eventually(lambda: heard.read_text() == "a secret of the block", "secret")
