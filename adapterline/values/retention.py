"""What lies at a destination, where its aliases point, and what became of it: promote and prune."""

from __future__ import annotations

from typing import Literal

from pydantic import AwareDatetime, Field

from adapterline.values.base import Sha256, Value
from adapterline.values.manifest import Manifest
from adapterline.values.publication import Latest, Order, Receipt

#: The alias that an export moves.
LATEST = "latest"


class Version(Value):
    """An export that is published at a destination. The receipt lists the files of its manifest."""

    receipt: Receipt
    manifest: Manifest
    order: Order = Field(description="of its training run as the manifest states it; else when it was published")
    published_at: AwareDatetime

    @property
    def digest(self) -> str:
        """The bundle's digest."""
        return self.receipt.digest

    @property
    def sha12(self) -> str:
        """Its name."""
        return self.receipt.digest[:12]

    def pointer(self) -> Latest:
        """What an alias that points to it says."""
        return Latest(
            name=self.receipt.name,
            digest=self.digest,
            sha12=self.sha12,
            manifest_sha256=self.receipt.manifest_sha256,
            order=self.order,
        )


class Orphan(Value):
    """Something that an interrupted export, check or prune left at a destination, and that nobody sees."""

    kind: Literal["staged", "removed", "probe", "upload"] = Field(
        description="files of no published version; of one that was being removed; of a check; parts of a file"
    )
    place: str
    changed_at: AwareDatetime
    token: str = Field("", description="what the destination needs to find it again")


class Move(Value):
    """An alias at one destination points to the version. `previous` is the sha12 that it pointed to before."""

    destination: str
    outcome: Literal["moved", "kept"] = Field(description="kept: it pointed there already")
    previous: str | None


class Promotion(Value):
    """An alias points to one version, everywhere."""

    name: str
    alias: str
    digest: Sha256
    moves: tuple[Move, ...]


class VersionFate(Value):
    """What becomes of a version, and why."""

    digest: Sha256
    published_at: AwareDatetime
    order: Order
    fate: Literal["stays", "goes", "removed"] = Field(description="goes: it would, and nothing was done yet")
    reasons: tuple[str, ...] = Field(description="why it stays")


class OrphanFate(Value):
    """What becomes of an orphan, and why."""

    kind: str
    place: str
    changed_at: AwareDatetime
    fate: Literal["stays", "goes", "removed"]
    reasons: tuple[str, ...]


class Pruned(Value):
    """One destination, the newest version first, the oldest orphan first."""

    destination: str
    versions: tuple[VersionFate, ...] = ()
    orphans: tuple[OrphanFate, ...] = ()


class Pruning(Value):
    """What was deleted, or with `dry_run` would be."""

    name: str
    dry_run: bool
    destinations: tuple[Pruned, ...]
