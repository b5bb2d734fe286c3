"""The manifest: what an export is, in one JSON document that is the same everywhere."""

from __future__ import annotations

from collections.abc import Mapping

from adapterline.families.base import Base
from adapterline.values import (
    FORMAT_VERSION,
    BaseSummary,
    Bundle,
    ComponentSummary,
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
) -> Manifest:
    """The manifest of an export that was proven. Equal input gives equal bytes; no path of this machine is in it."""
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
        training_run=run,
        base=BaseSummary(
            architecture=base.architecture,
            pipeline=base.pipeline,
            model=model,
            revision=revision or "unknown",
        ),
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
