"""Waiting for a checkpoint to be whole, without holding a worker: the deployment runs once more, later."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.deployments import run_deployment
from prefect.runtime import deployment, flow_run

from adapterline.settings import Settings
from tasks.policy import say

#: The tag of such a run: how often it has waited.
_WAITED = re.compile(r"waited:(\d+)")


def run_again_later(settings: Settings) -> bool:
    """Schedules the deployment of this flow run once more, with its parameters. False if it may not, or has none."""
    if deployment.id is None:
        return False
    waited = max((int(found[1]) for tag in flow_run.tags if (found := _WAITED.fullmatch(tag))), default=0)
    if waited >= settings.incomplete_tries:
        return False
    with get_client(sync_client=True) as client:
        this = client.read_flow_run(UUID(flow_run.id))
    at = datetime.now(UTC) + timedelta(seconds=settings.incomplete_seconds)
    run_deployment(
        UUID(deployment.id),
        parameters=this.parameters,
        scheduled_time=at,
        timeout=0,
        tags=[*(tag for tag in flow_run.tags if not _WAITED.fullmatch(tag)), f"waited:{waited + 1}"],
        idempotency_key=f"{flow_run.id}-waits",  # a retry of this very run schedules no second one
        work_queue_name=this.work_queue_name,
        as_subflow=False,
    )
    say(f"the checkpoint is not whole; waiting for it, {waited + 1} of {settings.incomplete_tries}, until {at:%H:%M}")
    return True
