"""Everything that is published: a bundle's files, the manifest that makes them one export, and what follows from it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from adapterline.digests import sha256_of_bytes
from adapterline.errors import from_os_error
from adapterline.package.card import CARD_NAME, make_card
from adapterline.package.manifest import make_manifest
from adapterline.package.provenance import make_provenance
from adapterline.package.signature import Signer
from adapterline.validation.files import MANIFEST_NAME
from adapterline.values import Gallery, Manifest, Package, PackagedFile, provenance_name, signature_name

__all__ = ["make_manifest", "make_package"]


def make_package(
    manifest: Manifest,
    bundle_folder: Path,
    folder: Path,
    gallery: Gallery | None = None,
    signer: Signer | None = None,
) -> Package:
    """Lays out in the empty `folder` what every destination gets, signed if there is a signer.

    MachineError if the disk fails.
    """
    # Two prompts that render the same are one file.
    images = tuple({image.path: image for image in gallery.images}.values()) if gallery else ()
    manifest_bytes = manifest.to_bytes()
    digest = sha256_of_bytes(manifest_bytes)
    card, provenance = make_card(manifest, gallery.images if gallery else ()), make_provenance(manifest)
    made = {CARD_NAME: card, provenance_name(digest): provenance}
    if signer:
        files = {file.path: file.sha256 for file in manifest.files}
        files |= {MANIFEST_NAME: digest, provenance_name(digest): sha256_of_bytes(provenance)}
        made[signature_name(digest)] = signer.sign(manifest.name, digest, files)
    try:
        for file in manifest.files:
            _link(bundle_folder / file.path, folder / file.path)
        for image in images:
            assert gallery is not None
            _link(gallery.folder / image.path, folder / image.path)
        for path, data in made.items():
            (folder / path).write_bytes(data)
    except OSError as error:
        raise from_os_error(error, f"Packaging {manifest.name}") from error
    packaged = [PackagedFile(path=file.path, size=file.size, sha256=file.sha256) for file in manifest.files]
    packaged += [PackagedFile(path=path, size=len(data), sha256=sha256_of_bytes(data)) for path, data in made.items()]
    packaged += [PackagedFile(path=image.path, size=image.size, sha256=image.sha256) for image in images]
    return Package(
        manifest=manifest,
        manifest_bytes=manifest_bytes,
        folder=folder,
        files=tuple(packaged),
        images=gallery.images if gallery else (),
    )


def _link(source: Path, target: Path) -> None:
    """The same bytes under another name, without a copy where the file system can."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
