"""package: manifest and card, and everything that is published in one folder."""

from __future__ import annotations

from pathlib import Path

from prefect import task

from adapterline import package as packaging
from adapterline.package.signature import open_signer
from adapterline.settings import Settings
from adapterline.values import Gallery, Manifest, Package
from tasks.policy import IN_PROCESS, TAGS, say


@task(name="package", task_run_name="package", timeout_seconds=3600, tags=TAGS, **IN_PROCESS)
def package(manifest: Manifest, bundle_folder: Path, folder: Path, gallery: Gallery | None) -> Package:
    """See `adapterline.package.make_package`."""
    made = packaging.make_package(manifest, bundle_folder, folder, gallery, open_signer(Settings()))
    say(f"package: {', '.join(file.path for file in made.files)} and the manifest")
    return made
