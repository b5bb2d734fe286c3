"""What a destination is: where a package is staged, read back and released, and where aliases point to versions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from adapterline.values import Latest, Order, Orphan, Package, Publication, Receipt, Version


class Destination(Protocol):
    """A place for one name.

    The order of calls is `check`, `stage`, `release`; `verify` at any later time. Each is idempotent: after a crash,
    the same calls complete the work. The others are for what is published already, in any order. All raise
    `PublishError` (with `transient` set where a retry may help) or, for a full local disk, `MachineError`.
    """

    uri: str  # as the user gave it

    def check(self) -> None:
        """Can it be written to, by us, with the guarantees that releasing needs? Leaves nothing behind."""
        ...

    def stage(self, package: Package) -> Receipt:
        """Put the package where nobody looks, and compare the digests of what is there: read, or stated by the server.

        If the same digest is already published there, nothing is written: the files there are read back instead, and
        the receipt says `published` with the manifest that is there, which counts from then on. Another digest under
        the same `sha12` is a `PublishError`.
        """
        ...

    def release(self, package: Package, receipt: Receipt, order: Order) -> Publication:
        """Make it visible, then move `latest` if `order` is not older than what `latest` has."""
        ...

    def verify(self, published: Publication | Version) -> bool:
        """Is all of it still there, visible, with the digests of the receipt? False if not; errors if unreachable."""
        ...

    # --- what is published already ------------------------------------------------------------------------------------

    def versions(self, digits: str = "") -> tuple[Version, ...]:
        """What is published there: all that bears a commit marker and whose digest begins with `digits`."""
        ...

    def aliases(self) -> Mapping[str, Latest]:
        """Every alias of the name, `latest` among them, and what it points to."""
        ...

    def point(self, alias: str, version: Version, expect: str | None = None) -> Latest | None:
        """Moves an alias by compare-and-swap, whatever the order; gives what it pointed to before.

        Nothing is written if it points there already, which is also what is told if the answer to the write is lost.
        PublishError if it points to what does not begin with `expect` ("none": to nothing), and, with the alias back
        where it was, if the version is removed at the same time.
        """
        ...

    def remove(self, version: Version) -> bool:
        """Deletes it, so that nobody ever sees a part. False, and it stays, if an alias points to it by now."""
        ...

    def orphans(self) -> tuple[Orphan, ...]:
        """What adapterline wrote there under the name, and what is neither part of a version nor an alias."""
        ...

    def discard(self, orphan: Orphan) -> bool:
        """Deletes it. False, and it stays, if it was changed or published since it was listed."""
        ...
