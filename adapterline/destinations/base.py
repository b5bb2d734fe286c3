"""What a destination is: a place where a package is staged, read back and released."""

from __future__ import annotations

from typing import Protocol

from adapterline.values import Order, Package, Publication, Receipt


class Destination(Protocol):
    """A place for one name.

    The order of calls is `check`, `stage`, `release`; `verify` at any later time. Each is idempotent: after a crash,
    the same calls complete the work. All raise `PublishError` (with `transient` set where a retry may help) or, for a
    full local disk, `MachineError`.
    """

    uri: str  # as the user gave it

    def check(self) -> None:
        """Can it be written to, by us, with the guarantees that releasing needs? Leaves nothing behind."""
        ...

    def stage(self, package: Package) -> Receipt:
        """Put the package where nobody looks, read every file back and compare its sha256.

        If the same digest is already published there, nothing is written: the files there are read back instead, and
        the receipt says `published` with the manifest that is there, which counts from then on. Another digest under
        the same `sha12` is a `PublishError`.
        """
        ...

    def release(self, package: Package, receipt: Receipt, order: Order) -> Publication:
        """Make it visible, then move `latest` if `order` is not older than what `latest` has."""
        ...

    def verify(self, publication: Publication) -> bool:
        """Is all of it still there, visible, with the digests of the receipt? False if not; errors if unreachable."""
        ...
