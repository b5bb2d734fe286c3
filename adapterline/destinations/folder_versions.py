"""What lies in a folder destination: versions, aliases, and what interrupted runs left. Reads; writes nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from adapterline.destinations.latest import MANIFEST_NAME, from_bytes
from adapterline.destinations.versions import version_of
from adapterline.digests import sha256_of_bytes
from adapterline.errors import PublishError
from adapterline.values import Latest, Manifest, Orphan, Version, is_alias

STAGING = ".staging"
#: Before the name of what is on its way out. No adapter's name begins with a dot.
REMOVED = ".removed-"
PROBE = ".adapterline-"
_SHA12 = re.compile(r"[0-9a-f]{12}")


def versions_in(folder: Path, destination: str, digits: str) -> Iterator[Version]:
    """The versions in `{root}/{name}` whose digest begins with `digits`. PublishError for another manifest."""
    for target in sorted(folder.glob(f"{digits[:12]}*")):
        manifest = target / MANIFEST_NAME
        if not _SHA12.fullmatch(target.name) or not manifest.is_file():
            continue
        data, stat = manifest.read_bytes(), manifest.stat()
        try:
            found = Manifest.model_validate_json(data)
        except ValueError as error:
            raise PublishError(
                f"{manifest} is not a manifest that this version of adapterline reads.",
                expected="what adapterline published",
                remedy="Use a later version, or move that folder away.",
            ) from error
        if found.digest.startswith(digits):
            yield version_of(
                found,
                sha256_of_bytes(data),
                destination=destination,
                location=str(target),
                published_at=datetime.fromtimestamp(stat.st_mtime, UTC),
            )


def aliases_in(folder: Path) -> dict[str, Latest]:
    """The aliases in `{root}/{name}`."""
    paths = [path for path in sorted(folder.glob("*.json")) if is_alias(path.stem)]
    return {path.stem: from_bytes(path.read_bytes(), str(path)) for path in paths}


def orphans_in(root: Path, name: str) -> Iterator[Orphan]:
    """What was staged under the name, what was being removed, and the probes of checks."""
    ours = re.compile(rf"({re.escape(REMOVED)})?{re.escape(name)}-[0-9a-f]{{12}}(\.[0-9a-f]{{8}})?")
    for path in sorted((root / STAGING).glob("*")):
        if match := ours.fullmatch(path.name):
            yield _orphan("removed" if match[1] else "staged", root, path)
    for path in sorted(root.glob(f"{PROBE}*")):
        if re.fullmatch(r"[0-9a-f]{8}", path.name.removeprefix(PROBE)):
            yield _orphan("probe", root, path)


def changed_at(path: Path) -> datetime:
    """When the newest of it was written: of a folder, everything below it counts."""
    newest = max(each.stat().st_mtime for each in (path, *path.rglob("*")))
    return datetime.fromtimestamp(newest, UTC)


def _orphan(kind: str, root: Path, path: Path) -> Orphan:
    return Orphan.model_validate(
        {"kind": kind, "place": str(path), "changed_at": changed_at(path), "token": str(path.relative_to(root))}
    )
