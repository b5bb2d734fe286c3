"""Everything that is published: the bundle's files, the card, and the manifest that makes them one export."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from adapterline.digests import sha256_of_bytes
from adapterline.errors import from_os_error
from adapterline.package.card import CARD_NAME, make_card
from adapterline.package.manifest import make_manifest
from adapterline.values import Manifest, Package, PackagedFile

__all__ = ["make_manifest", "make_package"]


def make_package(manifest: Manifest, bundle_folder: Path, folder: Path) -> Package:
    """Lays out in the empty `folder` what every destination gets. MachineError if the disk fails."""
    card = make_card(manifest)
    try:
        for file in manifest.files:
            target = folder / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            _link(bundle_folder / file.path, target)
        (folder / CARD_NAME).write_bytes(card)
    except OSError as error:
        raise from_os_error(error, f"Packaging {manifest.name}") from error
    files = [PackagedFile(path=file.path, size=file.size, sha256=file.sha256) for file in manifest.files]
    files.append(PackagedFile(path=CARD_NAME, size=len(card), sha256=sha256_of_bytes(card)))
    return Package(manifest=manifest, manifest_bytes=manifest.to_bytes(), folder=folder, files=tuple(files))


def _link(source: Path, target: Path) -> None:
    """The same bytes under another name, without a copy where the file system can."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
