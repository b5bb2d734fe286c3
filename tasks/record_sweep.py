"""What a sweep came to, in the record store and the index. It is no task: a flow that breaks off starts none."""

from __future__ import annotations

from prefect.logging import get_run_logger

from adapterline.lineage.index import remember
from adapterline.lineage.records import open_records
from adapterline.settings import Settings
from adapterline.values import SweepRecord
from tasks.policy import say


def record_sweep(sweep: SweepRecord) -> None:
    """Appends the record and tells the index, which fails nothing. MachineError if the store cannot be written."""
    where = open_records(Settings().records).append_sweep(sweep)
    if why := remember(lambda index: index.add_sweep(sweep)):
        get_run_logger().warning("sweep: the lineage index was not written: %s", why)
    say(f"sweep: recorded, {where}")
