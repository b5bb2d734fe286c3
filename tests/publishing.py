"""The end of the line without Prefect: what was exported, packaged and published in a folder."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from adapterline.destinations.folder import FolderDestination
from adapterline.package import make_manifest, make_package
from adapterline.summaries import summarize
from adapterline.values import Manifest, Order, Publication, TrainingRun
from tests.line import Exported


def manifest_of(exported: Exported, name: str, base_model: str | None = None) -> Manifest:
    """The manifest of an export, with its proof; `base_model` is what it is said to be trained on."""
    return make_manifest(
        name=name,
        bundle=exported.bundle,
        report=exported.report(),
        source=exported.source,
        base=exported.base,
        components=summarize(exported.adapter, exported.plan),
        left_out=exported.adapter.left_out,
        run=TrainingRun(base_model=base_model) if base_model else None,
        options=exported.options,
    )


def publish(exported: Exported, name: str, folder: Path, base_model: str | None = None) -> Publication:
    """Stages and releases it at `folder`."""
    work = folder.parent / ".package"
    work.mkdir()
    package = make_package(manifest_of(exported, name, base_model), exported.folder, work)
    place = FolderDestination(str(folder), name)
    return place.release(package, place.stage(package), Order(finished_at=datetime(2026, 1, 1, tzinfo=UTC)))
