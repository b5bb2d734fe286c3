"""The sweep: every finished run under the roots that is not exported yet, with one summary in the morning."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture, as_completed
from prefect.task_runners import ThreadPoolTaskRunner

from adapterline.errors import AdapterlineError, CheckpointIncompleteError, SweepFailedError, UsageError
from adapterline.settings import Settings
from adapterline.sweeps import (
    FoundRun,
    Outcome,
    SweepItem,
    SweepJournal,
    SweepSummary,
    check_steps,
    find_runs,
    steps_of,
    summary_markdown,
)
from adapterline.values import ExportOptions
from tasks.export_found import export_found
from tasks.policy import say, this_run
from tasks.record_sweep import record_sweep

SUMMARY_KEY = "adapterline-sweep"
Waiting = dict["PrefectFuture[SweepItem]", tuple[FoundRun, int | None]]


#: Threads that wait for runs of a deployment, mostly; what runs here is bounded by `Settings.parallel`.
_RUNNER: Any = ThreadPoolTaskRunner(max_workers=32)


@flow(name="export-nightly", task_runner=_RUNNER, persist_result=False)
def export_nightly(
    roots: tuple[str, ...],
    to: tuple[str, ...] = (),
    base: str | None = None,
    options: ExportOptions = ExportOptions(),  # noqa: B008  (frozen)
    steps: str = "final",
    deployment: str | None = None,
) -> SweepSummary:
    """Exports what lies under `roots` and is finished; see `adapterline.sweeps`. A root that cannot be listed is a bug.

    It goes on past what is refused and what fails. SweepFailedError, after the summary is made, if anything failed.
    `deployment` ("export-adapter/on-completion") runs each export as a run of it, wherever its work pool is.
    """
    summary = sweep(roots, to, base, options, steps, deployment)
    if summary.failed:
        told = [item for item in summary.items if item.outcome == "failed"]
        raise SweepFailedError(
            f"{summary.line()}; failed: {', '.join(f'{item.checkpoint} ({item.why})' for item in told)[:2000]}.",
            expected="no failure",
            remedy=f"See the artifact {SUMMARY_KEY}; the next sweep tries these again.",
            summary=summary,
        )
    return summary


def sweep(
    roots: tuple[str, ...],
    to: tuple[str, ...],
    base: str | None,
    options: ExportOptions,
    steps: str,
    deployment: str | None,
) -> SweepSummary:
    """The summary, which is an artifact and a record too."""
    if not roots:
        raise UsageError("No root was given.", expected="a folder or s3://bucket/prefix")
    check_steps(steps)
    journal = SweepJournal(roots, to, steps, deployment, this_run())
    with journal.keeping(record_sweep):
        _go_through(journal, base, options)
        summary = journal.summary()
        create_markdown_artifact(summary_markdown(summary), key=SUMMARY_KEY, description=summary.line())
    say(f"sweep: {summary.line()}")
    return summary


def _go_through(journal: SweepJournal, base: str | None, options: ExportOptions) -> None:
    settings, now = Settings(), datetime.now(UTC)
    quiet, here = timedelta(seconds=settings.quiet_seconds), threading.BoundedSemaphore(settings.parallel)
    waiting: Waiting = {}
    for run in (run for root in dict.fromkeys(journal.roots) for run in find_runs(root)):
        if not run.is_finished(quiet, now):
            journal.found += 1
            why = "it is still being written to"
            journal.items.append(SweepItem(checkpoint=run.uri, outcome="unfinished", why=why))
            continue
        for step in steps_of(run, journal.steps):
            journal.found += 1
            waiting[export_found.submit(run, step, base, journal.to, options, journal.deployment, here)] = (run, step)
    for future in as_completed(list(waiting)):
        future.wait()  # which takes its state along; else the server would be asked for it
        journal.items.append(_item(*waiting[future], future.state))


def _item(run: FoundRun, step: int | None, state: State[Any]) -> SweepItem:
    found = state.result(raise_on_failure=False)
    if not isinstance(found, BaseException):
        item = SweepItem.model_validate(found)
        if state.name != "Cached":
            return item
        if item.outcome == "refused":
            return item.model_copy(update={"told": True})
        return item.model_copy(update={"outcome": "skipped", "why": "exported by an earlier sweep"})
    outcome: Outcome = "unfinished" if isinstance(found, CheckpointIncompleteError) else "failed"
    why = str(found) if isinstance(found, AdapterlineError) else f"{type(found).__name__}: {found}"
    return SweepItem(checkpoint=run.uri, step=step, outcome=outcome, why=why)
