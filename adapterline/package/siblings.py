"""What lies beside a bundle's files and its manifest, and follows from the manifest that counts there."""

from __future__ import annotations

from adapterline.package.card import CARD_NAME, images_shown
from adapterline.values import IMAGE_PATH, PROVENANCE_PATH, SIGNATURE_PATH, provenance_name, signature_name


def sibling_paths(manifest_sha256: str, card: bytes | None) -> tuple[str, ...]:
    """Where the siblings of this manifest are, if they are there: its card, provenance, signature, and images.

    A destination that holds another exporter's manifest takes over these together with it.
    """
    named = provenance_name(manifest_sha256), signature_name(manifest_sha256)
    return (CARD_NAME, *named, *images_shown(card or b""))


def is_sibling(path: str) -> bool:
    """Does a file of this path, if it is not of the bundle, belong to an export and go with it? The card stays."""
    return any(kind.fullmatch(path) for kind in (PROVENANCE_PATH, SIGNATURE_PATH, IMAGE_PATH))
