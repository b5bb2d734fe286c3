"""Everything that is published: the bundle's files, the card, and the manifest that makes them one export."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from adapterline.digests import sha256_of_bytes
from adapterline.errors import from_os_error
from adapterline.package.card import CARD_NAME, make_card
from adapterline.package.manifest import make_manifest
from adapterline.values import Gallery, Manifest, Package, PackagedFile

__all__ = ["make_manifest", "make_package"]


def make_package(manifest: Manifest, bundle_folder: Path, folder: Path, gallery: Gallery | None = None) -> Package:
    """Lays out in the empty `folder` what every destination gets. MachineError if the disk fails."""
    # Two prompts that render the same are one file.
    images = tuple({image.path: image for image in gallery.images}.values()) if gallery else ()
    card = make_card(manifest, gallery.images if gallery else ())
    try:
        for file in manifest.files:
            _link(bundle_folder / file.path, folder / file.path)
        for image in images:
            assert gallery is not None
            _link(gallery.folder / image.path, folder / image.path)
        (folder / CARD_NAME).write_bytes(card)
    except OSError as error:
        raise from_os_error(error, f"Packaging {manifest.name}") from error
    files = [PackagedFile(path=file.path, size=file.size, sha256=file.sha256) for file in manifest.files]
    files.append(PackagedFile(path=CARD_NAME, size=len(card), sha256=sha256_of_bytes(card)))
    files += [PackagedFile(path=image.path, size=image.size, sha256=image.sha256) for image in images]
    return Package(
        manifest=manifest,
        manifest_bytes=manifest.to_bytes(),
        folder=folder,
        files=tuple(files),
        images=gallery.images if gallery else (),
    )


def _link(source: Path, target: Path) -> None:
    """The same bytes under another name, without a copy where the file system can."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
