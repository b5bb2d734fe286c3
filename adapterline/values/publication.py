"""What is published, where, and which of its name is the latest."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, Field

from adapterline.values.base import Sha256, Value
from adapterline.values.manifest import Manifest

#: Where images are published.
IMAGES = "images"
IMAGE_PATH = re.compile(rf"{IMAGES}/[0-9a-f]{{16}}\.png")
#: The in-toto statement that follows from a manifest, and its signature. Both have their manifest in their names: two
#: exporters of one bundle stage theirs side by side, and what lies beside the manifest that counts is always its own.
PROVENANCE_PATH = re.compile(r"provenance-[0-9a-f]{16}\.json")
SIGNATURE_PATH = re.compile(r"model-[0-9a-f]{16}\.sig")


def provenance_name(manifest_sha256: str) -> str:
    """The file of the provenance, named by the manifest that it follows from."""
    return f"provenance-{manifest_sha256[:16]}.json"


def signature_name(manifest_sha256: str) -> str:
    """The file of a signature, named by the manifest that it covers: beside another manifest it means nothing."""
    return f"model-{manifest_sha256[:16]}.sig"


class PackagedFile(Value):
    """A file that is published: of the bundle, the card, the provenance, a signature, or an image."""

    path: str = Field(description="relative to the publication")
    size: int = Field(description="bytes")
    sha256: Sha256 = Field(description="of the whole file")


class RenderedImage(PackagedFile):
    """A PNG with the base's and the adapted image side by side, named by its digest: it varies between machines."""

    width: int = Field(description="pixels, of both images together")
    height: int = Field(description="pixels")
    prompt: str = Field(description="what was rendered")
    seed: int = Field(description="of the noise")


@dataclass(frozen=True)
class Gallery:
    """Images that lie in `folder` under their `path`."""

    folder: Path
    images: tuple[RenderedImage, ...]


@dataclass(frozen=True)
class Package:
    """What every destination gets: `files` lie in `folder` under their `path`; the manifest is the commit marker.

    `images` are among the files. They and the card do not count for the digest.
    """

    manifest: Manifest
    manifest_bytes: bytes
    folder: Path
    files: tuple[PackagedFile, ...]
    images: tuple[RenderedImage, ...] = ()

    @property
    def name(self) -> str:
        """The name it is published under."""
        return self.manifest.name

    @property
    def sha12(self) -> str:
        """The name of its version."""
        return self.manifest.digest[:12]


class Order(Value):
    """What decides between two exports of a name which of them `latest` is: the later training run."""

    finished_at: AwareDatetime
    step: int = -1
    run_id: str = ""

    def key(self) -> tuple[datetime, int, str]:
        """Sorts from the oldest to the newest."""
        return self.finished_at, self.step, self.run_id


class Latest(Value):
    """The content of `latest.json`."""

    name: str
    digest: Sha256
    sha12: str
    manifest_sha256: Sha256
    order: Order


#: What proves that a destination has what it was sent.
ReadBack = Literal["bytes", "checksum"]


class Receipt(Value):
    """A package lies at a destination, with the right digests, and nobody sees it yet."""

    destination: str = Field(description="as it was asked for")
    name: str = Field(description="what it is published under")
    digest: Sha256 = Field(description="of the bundle")
    location: str = Field(description="where its files lie")
    manifest_sha256: Sha256 = Field(description="of the manifest that counts there: the first one wins")
    files: tuple[PackagedFile, ...] = Field(description="what lies there")
    published: bool = Field(description="it was already visible before this run")
    token: str = Field("", description="what the destination needs to find its staging again")
    read_back: ReadBack | None = Field(
        None, description="bytes: every one was read; checksum: the destination stated that of what it took"
    )


class Publication(Value):
    """A package is visible at a destination, or offered there."""

    receipt: Receipt = Field(description="what lies there")
    latest: Literal["moved", "kept", "proposed"] = Field(
        description="kept: what `latest` points to is newer; proposed: a pull request to move it is open"
    )
    url: str = Field(description="for a person")
    load: str = Field(description="what to pass to load_lora_weights")
    revision: str = Field("", description="what to pass as its revision, if anything")
