"""What a Python caller uses, as `adapterline.export` and so on: everything that the command line does."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from adapterline.checkpoints import fetch, load_checkpoint
from adapterline.errors import AdapterlineError, MachineError, UsageError
from adapterline.inspection import Inspection, inspect
from adapterline.values import ExportOptions, LineageRecord, Promotion, Pruning, TrainingRun, ValidationReport

if TYPE_CHECKING:
    from adapterline.audits import AuditReport
    from adapterline.checkup import Finding
    from adapterline.lineage import Index
    from adapterline.package.verification import Trust
    from adapterline.sweeps import SweepSummary

__all__ = [
    "Inspection",
    "audit",
    "doctor",
    "export",
    "inspect",
    "listen",
    "notify",
    "promote",
    "prune",
    "sweep",
    "validate",
]


def export(
    checkpoint: str,
    base: str | None = None,
    name: str | None = None,
    to: tuple[str, ...] = (),
    run: TrainingRun | None = None,
    options: ExportOptions | None = None,
) -> LineageRecord:
    """Runs the flow `export-adapter` in this process; see `flows.export.export_adapter`.

    It needs a Prefect API: the one of `PREFECT_API_URL`, or, without that, a temporary server that Prefect starts.
    MachineError if there is none to be had.
    """
    from flows.export import export_adapter

    with _api_errors():
        return export_adapter(
            checkpoint=checkpoint, base=base, name=name, to=to, run=run, options=options or ExportOptions()
        )


def sweep(
    roots: tuple[str, ...],
    to: tuple[str, ...] = (),
    base: str | None = None,
    options: ExportOptions | None = None,
    steps: str = "final",
    deployment: str | None = None,
) -> SweepSummary:
    """Runs the flow `export-nightly` in this process; see `flows.nightly.export_nightly`.

    SweepFailedError, which has the summary, if anything failed; MachineError if there is no Prefect API to be had.
    """
    from flows.nightly import export_nightly

    with _api_errors():
        return export_nightly(
            roots=roots, to=to, base=base, options=options or ExportOptions(), steps=steps, deployment=deployment
        )


def validate(
    file: str,
    base: str,
    against: str | None = None,
    options: ExportOptions | None = None,
    trust: Trust | None = None,
) -> ValidationReport:
    """The proof alone, for a file that anybody wrote: a path, a folder, `s3://` or `hf://`.

    Without `against` (a checkpoint) it proves that the file loads whole, onto the right modules, finite and alive. With
    it, that the effect is the checkpoint's. Of what adapterline published provenance and signature are checked, the
    latter with what `trust` names. Nothing is raised for a finding: look at `.passed` and `.checks`.
    """
    from adapterline.families.base import open_base
    from adapterline.package.verification import Trust, with_trust
    from adapterline.request import check_base
    from adapterline.validation import validate_file

    options = options or ExportOptions()
    with tempfile.TemporaryDirectory(prefix="adapterline-") as folder:
        work = Path(folder)
        path = fetch(file, work / "file")
        source = load_checkpoint(against, options, work / "against") if against else None
        if source:
            check_base(base, source)
        report = validate_file(path, open_base(base, work / "base"), source, options)
        return with_trust(report, path, trust or Trust())


def notify(checkpoint: str, *, base: str | None = None, name: str | None = None, run: TrainingRun | None = None) -> str:
    """Tells Prefect that a training run left `checkpoint`: the last call of a training script. Gives the event's id.

    The deployment that listens (`make deploy`) decides where the export goes and how it is made. A local path must be
    one that its worker sees. Sent twice, it is one event. `run.finished_at` is now, unless given.
    UsageError for what cannot be; MachineError, transient, if the API of `PREFECT_API_URL` cannot be reached.
    """
    from datetime import UTC, datetime

    from pydantic import ValidationError

    from adapterline.events import TrainingCompleted
    from adapterline.events.training_completed import absolute
    from adapterline.prefect_events import send

    run = run or TrainingRun()
    if run.finished_at is None:
        run = run.model_copy(update={"finished_at": datetime.now(UTC)})
    try:
        event = TrainingCompleted(checkpoint=absolute(checkpoint), base=base, name=name, run=run)
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"{'.'.join(map(str, first['loc']))} {first['input']!r}: {first['msg']}.") from error
    send(event.to_event())
    return str(event.id)


def listen(host: str = "127.0.0.1", port: int = 8787, sqs: Sequence[str] = (), sqs_sender: str | None = None) -> None:
    """Receives what platforms send, until it is interrupted, and tells Prefect of the runs that ended.

    Over HTTP if ADAPTERLINE_LISTEN_SECRET or `senders` are set, and from the SQS queues with these URLs; `sqs_sender`
    is whose messages they carry, where the messages do not say it. UsageError if there is nothing to listen to.
    """
    from adapterline.events.listening import listen
    from adapterline.prefect_events import Prefect

    listen(Prefect(), host, port, tuple(sqs), sqs_sender)


def doctor(to: tuple[str, ...] = ()) -> tuple[Finding, ...]:
    """Tries what an export to these destinations needs, and the Prefect server; see `adapterline.checkup`."""
    from adapterline.checkup import examine

    return (*examine(to), *_prefect_findings())


def _prefect_findings() -> Iterator[Finding]:
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags
    from prefect.settings import PREFECT_API_URL

    from adapterline.checkup import Finding

    if not (url := PREFECT_API_URL.value()):
        yield Finding(
            name="prefect server",
            status="warning",
            observed="PREFECT_API_URL is not set: each run starts a server of its own, and no deployment works",
            remedy="Start one with `prefect server start`, and set PREFECT_API_URL.",
        )
        return
    try:
        with get_client(sync_client=True) as client:
            server = client.api_version()
            yield Finding(name="prefect server", status="ok", observed=f"{url} answers, version {server}")
            ours = client.read_deployments(
                deployment_filter=DeploymentFilter(tags=DeploymentFilterTags(all_=["adapterline"]))
            )
            names = sorted({name for each in ours if (name := each.work_pool_name)})
            pools = [client.read_work_pool(name) for name in names]
    except httpx.HTTPError as error:
        yield Finding(
            name="prefect server",
            status="failed",
            observed=f"{url}: {str(error).splitlines()[0][:200]}",
            remedy="Check PREFECT_API_URL and the server.",
        )
        return
    if not ours:
        fix = "`make deploy`, if events should start exports."
        yield Finding(name="deployments", status="warning", observed="none", remedy=fix)
        return
    yield Finding(name="deployments", status="ok", observed=", ".join(sorted(each.name for each in ours)))
    for pool in pools:
        ready = str(getattr(pool.status, "value", pool.status)) == "READY"
        yield Finding(
            name=f"work pool {pool.name}",
            status="ok" if ready else "warning",
            observed=f"{pool.type}, {'a worker is there' if ready else 'no worker is there'}",
            remedy="" if ready else f"prefect worker start --pool {pool.name}",
        )


@contextlib.contextmanager
def _api_errors() -> Iterator[None]:
    """Makes a Prefect API that cannot be used a MachineError."""
    try:
        yield
    except AdapterlineError:
        raise
    except Exception as error:
        if _is_about_the_api(error):
            raise MachineError(
                f"The Prefect API cannot be used: {str(error).splitlines()[0][:200]}.",
                expected="a Prefect server",
                remedy="Check PREFECT_API_URL, or unset it to use a temporary server.",
                transient=True,
            ) from error
        raise


def audit(
    names: tuple[str, ...] = (),
    to: tuple[str, ...] = (),
    *,
    sample: int | None = None,
    base: str | None = None,
    trust: Trust | None = None,
) -> AuditReport:
    """Runs the flow `audit-published` in this process; see `flows.audit.audit_published`.

    AuditFailedError, which has the report, if anything is not as it was published; MachineError if there is no Prefect
    API to be had.
    """
    from adapterline.package.verification import Trust
    from flows.audit import audit_published

    trust = trust or Trust()
    with _api_errors():
        return audit_published(
            names=names,
            to=to,
            sample=sample,
            base=base,
            public_key=str(trust.public_key) if trust.public_key else None,
            certificate_chain=tuple(map(str, trust.certificate_chain)),
            require_signature=trust.required,
        )


def promote(name: str, version: str, alias: str, to: Sequence[str], expect: str | None = None) -> Promotion:
    """Points `alias` of `name` to a version, at every destination; see `adapterline.retention.promote`.

    `version` is the beginning of its digest, 8 digits or more; `expect` that of what the alias has to point to now, or
    "none".
    """
    from adapterline import retention

    done = retention.promote(name, version, alias, to, expect)
    _remember(lambda index: index.add_promotion(done))
    return done


def prune(
    name: str,
    to: Sequence[str],
    *,
    keep_last: int | None = None,
    keep_aliases: Sequence[str] = (),
    older_than: timedelta | None = None,
    orphans: bool = False,
    yes: bool = False,
) -> Pruning:
    """Tells, and with `yes` deletes, the versions that nothing keeps; with `orphans` what interrupted runs left.

    See `adapterline.retention.prune` and `adapterline.retention.collect`. UsageError for versions if neither
    `keep_last` nor `older_than` is given; `older_than` is a day for orphans unless it is.
    """
    from adapterline import retention

    if not orphans:
        rules = retention.Rules(keep_last, older_than)
        done = retention.prune(name, to, rules, keep_aliases=keep_aliases, yes=yes)
        if yes:
            _remember(lambda index: index.add_pruning(done))
        return done
    if keep_last is not None or keep_aliases:
        raise UsageError(
            "--orphans collects what is no version, and --keep-last and --keep-alias are of versions.",
            expected="one or the other",
            remedy="Prune versions and collect orphans in two calls.",
        )
    return retention.collect(name, to, retention.ORPHAN_AGE if older_than is None else older_than, yes=yes)


def _remember(what: Callable[[Index], object]) -> None:
    """Tells the lineage index; if that fails, a reindex repairs it, and what was done at the destinations stands."""
    from adapterline.lineage.index import remember

    if why := remember(what):
        logging.getLogger(__name__).warning("The lineage index was not written: %s", why)


def _is_about_the_api(error: BaseException | None) -> bool:
    import httpx

    while error is not None:
        if isinstance(error, httpx.TransportError | httpx.HTTPStatusError):
            return True
        if isinstance(error, RuntimeError) and ("ephemeral Prefect API" in str(error) or "reach API" in str(error)):
            return True
        error = error.__cause__
    return False
