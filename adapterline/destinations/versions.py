"""What the destinations share of versions and of the aliases that point to them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from adapterline.errors import PublishError
from adapterline.values import (
    Bundle,
    Latest,
    Manifest,
    Order,
    PackagedFile,
    Receipt,
    Version,
)

#: What `expect` is where an alias must not be there yet.
NOTHING = "none"


def version_of(
    manifest: Manifest,
    manifest_sha256: str,
    *,
    destination: str,
    location: str,
    published_at: datetime,
    token: str = "",
) -> Version:
    """The version that has this manifest. PublishError if the manifest contradicts itself."""
    if Bundle.digest_of(manifest.files) != manifest.digest:
        raise PublishError(
            f"The manifest of {location} states {manifest.digest}, and its files have another digest.",
            expected="a manifest as it was published",
            remedy="Move it away: something changed it.",
        )
    receipt = Receipt(
        destination=destination,
        name=manifest.name,
        digest=manifest.digest,
        location=location,
        manifest_sha256=manifest_sha256,
        files=tuple(PackagedFile(path=file.path, size=file.size, sha256=file.sha256) for file in manifest.files),
        published=True,
        token=token,
    )
    order = _order(manifest, published_at)
    return Version(receipt=receipt, manifest=manifest, order=order, published_at=published_at)


def _order(manifest: Manifest, published_at: datetime) -> Order:
    # The checkpoint's modification time, by which `latest` moves where no run is known, is in nothing that is
    # published: it differs between copies of one checkpoint.
    run = manifest.training_run
    step = run.step if run and run.step is not None else manifest.source.step
    return Order(
        finished_at=(run.finished_at if run else None) or published_at,
        step=-1 if step is None else step,
        run_id=(run.run_id if run else None) or "",
    )


def names(pointer: Latest | None, version: Version) -> bool:
    """Does the alias point to this version?"""
    return pointer is not None and pointer.digest == version.digest


def pointed(aliases: Mapping[str, Latest], version: Version) -> bool:
    """Does any?"""
    return any(names(pointer, version) for pointer in aliases.values())


def require_expected(current: Latest | None, expect: str | None, alias: str, place: str) -> None:
    """PublishError unless an alias points to what the caller expects: digits of a digest, NOTHING, or None for any."""
    found = current.digest if current else NOTHING
    if expect is not None and not found.startswith(expect):
        raise PublishError(
            f"{alias} of {place} points to {found[:12] if current else 'nothing'}.",
            expected="it to point to " + ("nothing" if expect == NOTHING else expect),
            remedy=f"Look at what moved it; then pass --expect {found[:12]}, or no --expect.",
        )


def removed(receipt: Receipt) -> PublishError:
    """The error of whoever moves an alias to a version that is not whole: a prune may just have taken it away."""
    return PublishError(
        f"{receipt.location} is not published there any more, or not whole.",
        expected="all of its files",
        remedy="If a prune removed it, run its export again.",
    )
