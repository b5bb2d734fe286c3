"""serialize: the plan's bytes, in the scratch folder, under their digest."""

from __future__ import annotations

from prefect import task

from adapterline import serialize as serialization
from adapterline.scratch import Scratch
from adapterline.values import Bundle, Plan
from tasks.policy import IN_PROCESS, TAGS, say


@task(name="serialize", task_run_name="serialize", timeout_seconds=3600, tags=TAGS, **IN_PROCESS)
def serialize(plan: Plan, scratch: Scratch) -> Bundle:
    """See `adapterline.serialize.serialize`."""
    bundle = serialization.serialize(plan, scratch)
    files = ", ".join(f"{file.path} {file.size:,} bytes" for file in bundle.files)
    say(f"serialize: {files}, bundle {bundle.sha12}")
    return bundle
