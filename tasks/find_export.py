"""find_export: has exactly this been exported before, and is it still where it was put?"""

from __future__ import annotations

from prefect import task

from adapterline.destinations import address_of, open_destination
from adapterline.families.base import Base
from adapterline.lineage.records import open_records
from adapterline.settings import Settings
from adapterline.values import FORMAT_VERSION, ExportOptions, LineageRecord, Source, TrainingRun, digest_of
from tasks.policy import IN_PROCESS, TAGS, say


def export_key(
    source: Source, base: Base, name: str, to: tuple[str, ...], run: TrainingRun | None, options: ExportOptions
) -> str:
    """What identifies a request: equal keys ask for equal bytes at equal places."""
    return digest_of(
        [
            ["format", FORMAT_VERSION],
            ["source", source.digest],
            ["base", base.architecture, base.pipeline, base.model, base.revision],
            ["name", name],
            ["to", sorted(set(map(address_of, to)))],
            ["run", run.model_dump(mode="json") if run else None],
            ["options", options.model_dump(mode="json", exclude={"adapter_config"})],  # its content is in the source
        ]
    )


@task(name="find_export", task_run_name="find_export", timeout_seconds=4 * 3600, tags=TAGS, **IN_PROCESS)
def find_export(key: str, name: str, to: tuple[str, ...]) -> LineageRecord | None:
    """The record of the earlier export, if all of it is still there with its digests; None if it has to be made.

    In that case every destination is asked whether it can be written to, before anything is computed or staged.
    """
    destinations = {uri: open_destination(uri, name) for uri in to}
    record = open_records(Settings().records).find(key) if to else None
    if record is not None:
        by_uri = {publication.receipt.destination: publication for publication in record.publications}
        if all(uri in by_uri and destinations[uri].verify(by_uri[uri]) for uri in to):
            say(f"find_export: already exported by run {record.id}, and still there")
            return record
        say(f"find_export: exported by run {record.id}, but it is no longer there")
    for destination in destinations.values():
        destination.check()
    return None
