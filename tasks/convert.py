"""convert: what is to be written, in each layout."""

from __future__ import annotations

from prefect import task

from adapterline import layouts
from adapterline.families.base import Base
from adapterline.values import Adapter, ExportOptions, Plan, TrainingRun
from tasks.policy import IN_PROCESS, TAGS, say


@task(name="convert", task_run_name="convert", timeout_seconds=3600, tags=TAGS, **IN_PROCESS)
def convert(adapter: Adapter, base: Base, options: ExportOptions, name: str, run: TrainingRun | None) -> Plan:
    """See `adapterline.layouts.convert`."""
    plan = layouts.convert(adapter, base, options, name, run.finished_at if run else None)
    done = (
        "; ".join(f"{transform.component}: {transform.detail}" for transform in plan.transforms) or "nothing to change"
    )
    say(f"convert: {', '.join(file.layout for file in plan.files)} ({done})")
    return plan
