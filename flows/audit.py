"""The audit: what is published is read again, and compared with what was published."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from adapterline.audits import AuditedVersion, AuditReport, audit_markdown, examine_place, places_of
from adapterline.audits.examine import Shelf, unreadable
from adapterline.errors import AdapterlineError, AuditFailedError
from adapterline.lineage.records import every_record, open_records
from adapterline.package.verification import Trust
from adapterline.prefect_events import drifted
from adapterline.scratch import Scratch
from adapterline.settings import Settings
from adapterline.values import Version, digest_of
from tasks.audit_version import audit_version
from tasks.policy import retrying, say

AUDIT_KEY = "adapterline-audit"


@flow(name="audit-published", persist_result=False)
def audit_published(
    names: tuple[str, ...] = (),
    to: tuple[str, ...] = (),
    sample: int | None = None,
    base: str | None = None,
    public_key: str | None = None,
    certificate_chain: tuple[str, ...] = (),
    require_signature: bool = False,
) -> AuditReport:
    """Looks at what the records say is published; see `adapterline.audits`.

    `names` are patterns, `to` destinations; without them all. `sample` is how many versions besides those that an alias
    points to are read; which ones changes from day to day. AuditFailedError, after the report is made, if anything is
    not as it was published, or could not be seen.
    """
    trust = Trust(
        Path(public_key) if public_key else None, tuple(map(Path, certificate_chain)), required=require_signature
    )
    settings = Settings()
    found: list[AuditedVersion] = []
    queue: list[tuple[Shelf, Version]] = []
    for place in places_of(every_record(open_records(settings.records)), names, to):
        shelf, told = examine_place(place)
        found += told
        queue += [(shelf, version) for version in shelf.versions] if shelf else []
    chosen = _sampled(queue, sample)
    with Scratch.open(settings).temporary("audit-") as work:
        for number, (shelf, version) in enumerate(chosen):
            look = audit_version.with_options(**retrying(settings))
            try:
                found.append(look(shelf, version, base, trust, work / str(number)))
            except AdapterlineError as error:
                found.append(unreadable(shelf, version, error))
    found.sort(key=lambda version: (version.destination, version.name, version.digest))
    report = AuditReport(versions=tuple(found), skipped=len(queue) - len(chosen))
    create_markdown_artifact(audit_markdown(report), key=AUDIT_KEY, description=report.line())
    say(f"audit: {report.line()}")
    wrong = [audited for audited in report.versions if audited.state in ("drifted", "unreadable")]
    for audited in wrong:
        drifted(audited)
    if report.failed:
        raise AuditFailedError(
            f"{report.line()}: "
            + "; ".join(f"{v.name} {v.digest[:12]} at {v.destination}: {', '.join(v.found)}" for v in wrong)[:2000]
            + ".",
            expected="everything as it was published",
            remedy="Find out who changed it; the export's run again restores it, once what is there is moved away.",
            report=report,
        )
    return report


def _sampled(queue: list[tuple[Shelf, Version]], sample: int | None) -> list[tuple[Shelf, Version]]:
    """What an alias points to, and so many of the others, in an order that is another one each day."""
    if sample is None:
        return queue
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    pointed = [(shelf, version) for shelf, version in queue if shelf.aliases_of(version.digest)]
    others = [(shelf, version) for shelf, version in queue if not shelf.aliases_of(version.digest)]
    others.sort(key=lambda each: digest_of([today, each[0].place.uri, each[1].digest]))
    return pointed + others[:sample]
