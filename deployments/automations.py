"""The automations that no deployment has: who notices a run that nobody runs any more, and who is told."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

from prefect.automations import AutomationCore
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState, SendNotification
from prefect.events.schemas.automations import EventTrigger, Posture

#: Of every automation of ours, so that one that is wanted no more is found.
PREFIX = "adapterline: "
#: Seconds between two signs of life of a run; it is taken for dead after three that did not come.
HEARTBEAT = 30
_RUNS = {"prefect.resource.id": "prefect.flow-run.*"}
_OURS = {"prefect.resource.role": "tag", "prefect.resource.id": "prefect.tag.adapterline"}
_TAGS = ("adapterline", "adapterline-restart")
_TRIGGERS = ["on-completion*", "restart-crashed*"]  # as Prefect names the automations of prefect.yaml
_ENDS = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed", "Cancelling")}
_WHAT = "{{ event.resource.name or event.resource.id }}"
#: What people are told of: title, events, resources, related resources, text.
ALERTS: tuple[tuple[str, set[str], dict[str, Any], dict[str, Any], str], ...] = (
    (
        "a run failed, was refused or crashed",
        {"prefect.flow-run.Failed", "prefect.flow-run.Crashed"},
        _RUNS,
        {
            "prefect.resource.role": "tag",
            "prefect.resource.id": ["prefect.tag.adapterline", "prefect.tag.adapterline-restart"],
        },
        f"{_WHAT}: {{{{ event.resource['prefect.state-name'] }}}}. {{{{ event.resource['prefect.state-message'] }}}}",
    ),
    (
        "a message of a platform was not understood",
        {"training.run.not-understood"},
        {"prefect.resource.id": "adapterline.listener.*"},
        {},
        "{{ event.payload.sender }}: {{ event.payload.message }}",
    ),
    (
        "a published version has drifted",
        {"adapter.drifted"},
        {"prefect.resource.id": "adapterline.adapter.*"},
        {},
        f"{_WHAT} at {{{{ event.payload.destination }}}}: {{{{ event.payload.found | join('; ') }}}}",
    ),
    (
        "an export is far from the one before it",
        {"adapter.effect-drifted"},
        {"prefect.resource.id": "adapterline.adapter.*"},
        {},
        f"{_WHAT}: {{{{ event.payload.drift.beyond | join('; ') }}}}",
    ),
    (
        "an event started nothing",
        {"prefect.automation.action.failed"},
        {
            "prefect.resource.id": "prefect.automation.*",
            "prefect.resource.name": ["on-completion*", "restart-crashed*"],
        },
        {},
        f"{_WHAT}: {{{{ event.payload.reason }}}}",
    ),
)


def automations(notify: UUID | None, heartbeat: int = HEARTBEAT) -> list[AutomationCore]:
    """All that are wanted; those that tell people only with a notification block to tell them by."""
    wanted = [
        AutomationCore(
            name=f"{PREFIX}a run without a sign of life has crashed",
            description="docs.prefect.io/v3/advanced/detect-zombie-runs: worker and run died together.",
            trigger=EventTrigger(
                after={"prefect.flow-run.heartbeat"},
                expect={"prefect.flow-run.heartbeat", *_ENDS},
                match=_RUNS,
                match_related=_OURS,
                for_each={"prefect.resource.id"},
                posture=Posture.Proactive,
                threshold=1,
                within=timedelta(seconds=3 * heartbeat),
            ),
            actions=[_crashed(f"No sign of life for {3 * heartbeat} s.")],
        ),
        AutomationCore(
            name=f"{PREFIX}a run that never began has crashed",
            description="Its worker took it, and died before it started a process, a container or a pod.",
            trigger=EventTrigger(
                after={"prefect.flow-run.Pending"},
                expect={"prefect.flow-run.Running", *_ENDS},
                match=_RUNS,
                match_related=_OURS,
                for_each={"prefect.resource.id"},
                posture=Posture.Proactive,
                threshold=1,
                within=timedelta(minutes=30),  # an image of CUDA takes a while to come
            ),
            actions=[_crashed("It was taken by a worker, and had not begun after 30 minutes.")],
        ),
    ]
    if notify is not None:
        wanted += [
            AutomationCore(
                name=f"{PREFIX}tell that {title}",
                trigger=EventTrigger(
                    expect=events,
                    match=match,
                    match_related=related,
                    for_each={"prefect.resource.id"},
                    posture=Posture.Reactive,
                    threshold=1,
                ),
                actions=[SendNotification(block_document_id=notify, subject=f"adapterline: {title}", body=body)],
            )
            for title, events, match, related, body in ALERTS
        ]
    return wanted


def apply(client: SyncPrefectClient, wanted: list[AutomationCore]) -> None:
    """Creates and updates them by their names, and deletes those of ours that are wanted no more."""
    there = {each.name: each.id for each in client.read_automations() if each.name.startswith(PREFIX)}
    for automation in wanted:
        if automation.name in there:
            client.update_automation(there[automation.name], automation)
        else:
            client.create_automation(automation)
    for name in there.keys() - {automation.name for automation in wanted}:
        client.delete_automation(there[name])


def _crashed(message: str) -> ChangeFlowRunState:
    return ChangeFlowRunState(state=StateType.CRASHED, message=message)
