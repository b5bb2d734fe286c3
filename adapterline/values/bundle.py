"""What was written: files, and the digest that identifies an export."""

from __future__ import annotations

from pydantic import Field

from adapterline.values.base import Sha256, Value, digest_of
from adapterline.values.plan import LoadCall, Transform

#: Part of every cache key and of the manifest's tools: raised when equal input may give other bytes or another verdict.
FORMAT_VERSION = 3


class ExportedFile(Value):
    """A file of the bundle. Its bytes are the export."""

    role: str = Field(description="weights, embedding, or config")
    layout: str = Field(description="whose keys it has: diffusers, kohya or peft")
    path: str = Field(description="relative to the publication")
    size: int = Field(ge=0, description="bytes")
    sha256: Sha256 = Field(description="of the whole file")
    tensors_sha256: Sha256 | None = Field(
        description="sha256 of the tensor bytes alone, after the header; null for a file that is not safetensors"
    )


class Bundle(Value):
    """The files of an export as they lie in the scratch folder, and how to load them."""

    files: tuple[ExportedFile, ...]
    loads: tuple[LoadCall, ...]
    transforms: tuple[Transform, ...]
    digest: Sha256

    @staticmethod
    def digest_of(files: tuple[ExportedFile, ...]) -> str:
        """The identity of an export: of [role, layout, path, sha256] of every file. Card and manifest do not count."""
        return digest_of([[file.role, file.layout, file.path, file.sha256] for file in files])

    @property
    def sha12(self) -> str:
        """A name for the bundle. Where it decides something, the full digest is compared."""
        return self.digest[:12]
