"""What a Python caller uses, as `adapterline.export` and so on: everything that the command line does."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterline.checkpoints import fetch, load_checkpoint
from adapterline.errors import AdapterlineError, MachineError, UsageError
from adapterline.inspection import Inspection, inspect
from adapterline.values import ExportOptions, LineageRecord, Promotion, Pruning, TrainingRun, ValidationReport

if TYPE_CHECKING:
    from adapterline.doctor import Finding
    from adapterline.lineage import Index
    from adapterline.package.verification import Trust
    from adapterline.sweep import SweepSummary

__all__ = ["Inspection", "doctor", "export", "inspect", "notify", "promote", "prune", "sweep", "validate"]


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

    run = run or TrainingRun()
    if run.finished_at is None:
        run = run.model_copy(update={"finished_at": datetime.now(UTC)})
    try:
        event = TrainingCompleted(checkpoint=absolute(checkpoint), base=base, name=name, run=run)
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"{'.'.join(map(str, first['loc']))} {first['input']!r}: {first['msg']}.") from error
    _send(event.to_event())
    return str(event.id)


def doctor(to: tuple[str, ...] = ()) -> tuple[Finding, ...]:
    """Tries everything that an export to these destinations needs, and the Prefect server; see `adapterline.doctor`."""
    from adapterline.doctor import examine

    return (*examine(to), *_prefect_findings())


def _prefect_findings() -> Iterator[Finding]:
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags
    from prefect.settings import PREFECT_API_URL

    from adapterline.doctor import Finding

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


def _send(event: dict[str, Any]) -> None:
    """One event, over HTTP: unlike `prefect.events.emit_event` it says whether it arrived."""
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL

    if not PREFECT_API_URL.value():
        raise MachineError(
            "PREFECT_API_URL is not set: nobody would be told.",
            expected="the URL of the Prefect server that the deployment is on",
            remedy="Set PREFECT_API_URL, or use a Prefect profile.",
        )
    try:
        with get_client(sync_client=True) as client:
            client.request("POST", "/events", json=[event]).raise_for_status()
    except httpx.HTTPError as error:
        raise MachineError(
            f"The event was not taken by {PREFECT_API_URL.value()}: {str(error).splitlines()[0][:200]}.",
            expected="a Prefect server",
            remedy="Check PREFECT_API_URL and the server, then notify again: it is the same event.",
            transient=True,
        ) from error


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
