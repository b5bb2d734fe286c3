"""What the tasks share: when they are retried, how what they pass is kept out of Prefect's stores, how they speak."""

from __future__ import annotations

from typing import Any

from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.tasks import exponential_backoff
from prefect.utilities.urls import url_for

from adapterline.errors import AdapterlineError
from adapterline.settings import Settings
from adapterline.values import FlowRun

#: For every task that takes or gives tensors or local files. Prefect's default policy would hash 500 MB of arguments.
IN_PROCESS: dict[str, Any] = {"cache_policy": NO_CACHE, "persist_result": False}
TAGS = ["adapterline"]
#: The mark of a log record that is a step of the line; the command line shows these and no other.
STEP = "adapterline_step"


def say(message: str) -> None:
    """Tells a person, in the run's log, what a step did."""
    get_run_logger().info(message, extra={STEP: True})


def this_run() -> FlowRun | None:
    """The flow run that this is in, with its page where Prefect has one: a server of its own has none that stays."""
    if flow_run.id is None:
        return None
    return FlowRun(id=flow_run.id, name=flow_run.name or "", url=url_for("flow-run", obj_id=flow_run.id))


def is_transient(task: Any, run: Any, state: Any) -> bool:
    """Retry only what another try may change: a refusal stays a refusal."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, AdapterlineError) and error.transient


def retrying(settings: Settings) -> dict[str, Any]:
    """Options for a task that talks to something: backoff with jitter, on transient faults alone."""
    return {
        "retries": settings.retries,
        "retry_delay_seconds": exponential_backoff(settings.retry_seconds),
        "retry_jitter_factor": 0.5,
        "retry_condition_fn": is_transient,
    }
