"""convert: what is to be written, in each layout."""

from __future__ import annotations

from prefect import task

from adapterline import layouts
from adapterline.families.base import Base
from adapterline.package.header import apply_header_policy
from adapterline.values import Adapter, ExportOptions, Plan, Source, TrainingRun
from tasks.policy import IN_PROCESS, TAGS, say


@task(name="convert", task_run_name="convert", timeout_seconds=3600, tags=TAGS, **IN_PROCESS)
def convert(
    adapter: Adapter, source: Source, base: Base, options: ExportOptions, name: str, run: TrainingRun | None
) -> Plan:
    """See `adapterline.layouts.convert` and `adapterline.package.header.apply_header_policy`."""
    plan = layouts.convert(adapter, base, options, name, run.finished_at if run else None)
    plan = apply_header_policy(plan, source, options)
    done = (
        "; ".join(f"{transform.component}: {transform.detail}" for transform in plan.transforms) or "nothing to change"
    )
    say(f"convert: {', '.join(file.layout for file in plan.files)} ({done})")
    return plan
