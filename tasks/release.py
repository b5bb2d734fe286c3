"""release: what was staged becomes visible, and `latest` moves."""

from __future__ import annotations

from prefect import task

from adapterline.destinations import open_destination
from adapterline.values import Order, Package, Publication, Receipt
from tasks.policy import IN_PROCESS, TAGS, say

_LATEST = {
    "moved": "latest moved",
    "kept": "latest stays at a newer export",
    "proposed": "offered in a pull request",
}


@task(name="release", task_run_name="release-{receipt.destination}", timeout_seconds=3600, tags=TAGS, **IN_PROCESS)
def release(package: Package, receipt: Receipt, order: Order) -> Publication:
    """See `Destination.release`."""
    publication = open_destination(receipt.destination, package.name).release(package, receipt, order)
    say(f"release: {publication.url} ({_LATEST[publication.latest]})")
    return publication
