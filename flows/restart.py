"""Starting a run again that crashed: its worker died, or its machine, or a server took it for dead."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.states import Scheduled

from adapterline.errors import MachineError
from adapterline.settings import Settings
from tasks.policy import say


@flow(name="restart-crashed", persist_result=False)
def restart_crashed(flow_run_id: UUID) -> None:
    """Schedules the same run again, each time after twice the pause, `ADAPTERLINE_CRASHES` times at most.

    A run that is not crashed any more is left alone. MachineError for one that crashed too often.
    """
    settings = Settings()
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(flow_run_id)
        if run.state is None or not run.state.is_crashed():
            say(f"{run.name} is {run.state.name if run.state else 'in no state'}: left alone")
            return
        crashed = sum(state.is_crashed() for state in client.read_flow_run_states(flow_run_id))
        if crashed > settings.crashes:
            raise MachineError(
                f"The run {run.name} crashed {crashed} times.",
                expected=f"at most {settings.crashes} crashes (ADAPTERLINE_CRASHES)",
                remedy="Look at its worker: memory, disk, the image. Then retry the run by hand.",
            )
        at = datetime.now(UTC) + timedelta(seconds=settings.crash_seconds * 2 ** (crashed - 1))
        # The state that the page's button for a retry sets, which is the one that a finished run may leave for.
        state: State[None] = Scheduled(scheduled_time=at, name="AwaitingRetry", message=f"It crashed {crashed} times.")
        client.set_flow_run_state(flow_run_id, state, force=False)
    say(f"{run.name} crashed {crashed} times; it starts again at {at:%H:%M:%S}")
