"""extract: the adapter in a source, every tensor on a module that the base has."""

from __future__ import annotations

from prefect import task

from adapterline.checkpoints import extract as extraction
from adapterline.families.base import Base
from adapterline.values import Adapter, ExportOptions, Source
from tasks.policy import IN_PROCESS, TAGS, say


@task(name="extract", task_run_name="extract", timeout_seconds=3600, tags=TAGS, **IN_PROCESS)
def extract(source: Source, base: Base, options: ExportOptions) -> Adapter:
    """See `adapterline.checkpoints.extract.extract`."""
    adapter = extraction.extract(source, base, options)
    parts = ", ".join(f"{name} ({len(deltas)} modules)" for name, deltas in adapter.components.items())
    left = f"; left out by request: {', '.join(adapter.left_out)}" if adapter.left_out else ""
    say(f"extract: {parts}{left}")
    return adapter
