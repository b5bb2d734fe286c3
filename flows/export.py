"""The line on one page: from a checkpoint to a published, proven adapter."""

from __future__ import annotations

from prefect import flow
from prefect.futures import wait
from prefect.runtime import flow_run

from adapterline.checkpoints.stated_run import stated_run
from adapterline.errors import CheckpointIncompleteError, UsageError
from adapterline.journal import Journal
from adapterline.package import make_manifest
from adapterline.package.signature import open_signer
from adapterline.request import base_of, check_allowed, check_destinations, name_of, order_of
from adapterline.scratch import Scratch
from adapterline.settings import Settings
from adapterline.summaries import summarize
from adapterline.validation.render import check_render
from adapterline.values import DriftFromLatest, ExportOptions, LineageRecord, TrainingRun
from tasks.convert import convert
from tasks.extract import extract
from tasks.find_export import export_key, find_export
from tasks.load_checkpoint import load_checkpoint, open_base
from tasks.measure_drift import measure_drift
from tasks.package import package
from tasks.policy import retrying, say, this_run
from tasks.record import record
from tasks.release import release
from tasks.render import render
from tasks.serialize import serialize
from tasks.upload import upload
from tasks.validate import validate
from tasks.wait import run_again_later


def _run_name() -> str:
    given = flow_run.parameters
    try:
        return f"export-{name_of(given.get('name'), str(given['checkpoint']))}"
    except UsageError:
        return "export-unnamed"


@flow(name="export-adapter", flow_run_name=_run_name, timeout_seconds=12 * 3600, persist_result=False)
def export_adapter(
    checkpoint: str,
    base: str | None = None,
    name: str | None = None,
    to: tuple[str, ...] = (),
    run: TrainingRun | None = None,
    options: ExportOptions = ExportOptions(),  # noqa: B008  (frozen)
) -> LineageRecord:
    """Exports the adapter in `checkpoint`, proves it, and publishes it to every place of `to`, or to none.

    Without `to` it ends after the proof. The same request again finds what is there and changes nothing. Raises the
    errors of `adapterline.errors`; each run, also a refused or failed one, leaves a record. A deployed run that meets a
    checkpoint which is not whole yet has its deployment run again later, and ends.
    """
    settings = Settings()
    scratch, patient = Scratch.open(settings), retrying(settings)
    journal = Journal(checkpoint, name, to, run, options, flow_run=this_run())
    with journal.keeping(record), scratch.temporary("run-") as work:
        scratch.trim()
        open_signer(settings)  # a key that cannot be used is refused before the work, not after it
        name = journal.named(name_of(name, checkpoint))
        to = check_destinations(to, name)
        check_allowed(checkpoint, name, settings)
        try:
            source = load_checkpoint.with_options(**patient)(checkpoint, options, work / "checkpoint")
        except CheckpointIncompleteError as error:
            if not run_again_later(settings):
                raise
            return record(journal.waiting(error))
        journal.stated_run = stated_run(source)
        base = base_of(base, source, run)
        model = open_base.with_options(**patient)(base, work / "base")
        check_render(model, base, options)
        journal.key = export_key(source, model, name, to, run, options)
        if earlier := find_export.with_options(**patient)(journal.key, name, to):
            return record(journal.already(earlier))

        adapter = extract(source, model, options)
        plan = convert(adapter, source, model, options, name, run)
        bundle = serialize(plan, scratch)
        report = validate(bundle, source, model, options, scratch)
        say(f"validate: {len(report.checks)} checks passed")  # here, because a remembered proof runs no task
        gallery = None
        if options.render:
            report, gallery = render(bundle, report, model, base, options, scratch, name, work / "render")
        journal.proven(report, gallery)
        journal.manifest = make_manifest(
            name=name,
            bundle=bundle,
            report=report,
            source=source,
            base=model,
            components=summarize(adapter, plan, options.approximate),
            left_out=adapter.left_out,
            run=run,
            options=options,
        )
        if not to:
            return record(journal.validated())

        made = package(journal.manifest, scratch.folder(bundle.digest), work / "package", gallery)
        staged = [upload.with_options(**patient).submit(made, place) for place in to]
        drifting = measure_drift.submit(adapter, journal.manifest, model, to, work / "before")
        wait(staged)  # also for those beside one that fails: they read what lies in `work`
        found = drifting.result(raise_on_failure=False)  # what is proven is published, whatever fails here
        journal.drift = found if isinstance(found, DriftFromLatest) else None
        receipts = [future.result() for future in staged]  # all of them, before anything is visible
        for receipt in receipts:
            published = release.with_options(**patient)(made, receipt, order_of(source, run))
            journal.publications.append(published)
        return record(journal.exported())
