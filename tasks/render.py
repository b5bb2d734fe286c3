"""render: the same prompts with the base and with the adapter, looked at, and shown to people."""

from __future__ import annotations

from pathlib import Path

from prefect import task
from prefect.artifacts import create_image_artifact

from adapterline.families.base import Base
from adapterline.scratch import Scratch
from adapterline.validation import render as rendering
from adapterline.validation import require
from adapterline.validation.pictures import preview
from adapterline.values import Bundle, ExportOptions, Gallery, ValidationReport, slug
from tasks.policy import IN_PROCESS, TAGS, say


@task(name="render", task_run_name="render", timeout_seconds=8 * 3600, tags=TAGS, **IN_PROCESS)
def render(
    bundle: Bundle,
    report: ValidationReport,
    base: Base,
    spec: str,
    options: ExportOptions,
    scratch: Scratch,
    name: str,
    folder: Path,
) -> tuple[ValidationReport, Gallery]:
    """See `adapterline.validation.render.render`. Gives the report with what was seen of the images, and these.

    ValidationFailedError, with the report, for an image that is black, not finite, or the base's. Every image becomes
    an artifact, also those of a failure: they show it.
    """
    found = rendering.render(bundle, scratch.folder(bundle.digest), base, spec, options, folder)
    report = report.model_copy(update={"checks": (*report.checks, *found.checks)})
    # One key holds one type. The page of an artifact shows any address that a browser opens, and the files have none
    # yet, or one that needs a login: so it has a small copy of the image in it.
    for number, image in enumerate(found.gallery.images, 1):
        create_image_artifact(
            image_url=preview(found.gallery.folder / image.path),
            key=f"{slug(name)}-render-{number}",
            description=f"{name} {bundle.sha12}, base and adapted, seed {image.seed}: {image.prompt}",
        )
    require(report, bundle.files[0].path)
    say(f"render: {len(found.gallery.images)} images, base and adapted side by side")
    return report, found.gallery
