"""The manifest: what an export is, in one JSON document that is the same everywhere."""

from __future__ import annotations

from collections.abc import Mapping

from adapterline.families.base import Base
from adapterline.families.licences import licence_of
from adapterline.package.privacy import public_run
from adapterline.values import (
    FORMAT_VERSION,
    BaseSummary,
    Bundle,
    ComponentSummary,
    ExportOptions,
    License,
    Manifest,
    Source,
    SourceSummary,
    TrainingRun,
    ValidationReport,
)


def make_manifest(
    *,
    name: str,
    bundle: Bundle,
    report: ValidationReport,
    source: Source,
    base: Base,
    components: Mapping[str, ComponentSummary],
    left_out: tuple[str, ...],
    run: TrainingRun | None,
    options: ExportOptions = ExportOptions(),  # noqa: B008  (frozen)
) -> Manifest:
    """The manifest of an export that was proven. Equal input gives equal bytes; no private path is in it."""
    model, _, revision = (stated_model(source, base, run) or "unknown").partition("@")
    return Manifest(
        name=name,
        digest=bundle.digest,
        family=base.family.name,
        source=SourceSummary(
            name=source.name,
            digest=source.digest,
            container=source.container,
            dialect=source.dialect,
            step=source.step,
        ),
        training_run=public_run(run) if run else None,
        base=BaseSummary(
            architecture=base.architecture,
            pipeline=base.pipeline,
            model=model,
            revision=revision or "unknown",
        ),
        license=_license(options, model),
        trigger=options.trigger,
        files=bundle.files,
        components=dict(components),
        transforms=bundle.transforms,
        left_out=left_out,
        validation=report.of_every_machine(),
        loads=bundle.loads,
        consumers=report.consumers,
        tools={**report.versions, "format": str(FORMAT_VERSION)},
    )


def stated_model(source: Source, base: Base, run: TrainingRun | None) -> str | None:
    """What the adapter was trained on: what the run says, else the checkpoint, else the Hub id it was proven on."""
    if run and run.base_model:
        return run.base_model
    if source.stated_base:
        return source.stated_base
    return f"{base.model}@{base.revision}" if base.model and base.revision else base.model


def _license(options: ExportOptions, model: str) -> License | None:
    if options.license is None:
        return licence_of(model)
    return License(id=options.license, name=options.license_name, link=options.license_link)
