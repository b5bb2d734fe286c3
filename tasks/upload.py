"""upload: a package lies at a destination, proven, and nobody sees it."""

from __future__ import annotations

from prefect import task

from adapterline.destinations import open_destination
from adapterline.values import Package, Receipt
from tasks.policy import IN_PROCESS, TAGS, say


# No timeout: it runs in a worker thread, which Prefect cannot interrupt; the clients have their own.
@task(name="upload", task_run_name="upload-{destination}", tags=TAGS, **IN_PROCESS)
def upload(package: Package, destination: str) -> Receipt:
    """See `Destination.stage`."""
    receipt = open_destination(destination, package.name).stage(package)
    state = "already published" if receipt.published else "staged"
    say(f"upload: {state} at {receipt.location}, proven by its {receipt.read_back}")
    return receipt
