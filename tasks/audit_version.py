"""audit-version: one published version, read again from where it lies."""

from __future__ import annotations

from pathlib import Path

from prefect import task

from adapterline.audits import AuditedVersion, examine_version
from adapterline.audits.examine import Shelf
from adapterline.package.verification import Trust
from adapterline.values import Version
from tasks.policy import IN_PROCESS, TAGS, say


@task(name="audit_version", task_run_name="audit-{version.sha12}", timeout_seconds=4 * 3600, tags=TAGS, **IN_PROCESS)
def audit_version(shelf: Shelf, version: Version, base: str | None, trust: Trust, work: Path) -> AuditedVersion:
    """Reads it, hashes it, proves it; retried by its caller's options on transient faults."""
    found = examine_version(shelf, version, base, trust, work)
    say(f"audit: {shelf.place.name} {version.sha12} at {shelf.place.uri} is {found.state}")
    return found
