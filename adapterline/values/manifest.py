"""What is said of an export wherever it is published."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import ConfigDict, Field

from adapterline.values.base import Sha256, Value, canonical_json
from adapterline.values.bundle import ExportedFile
from adapterline.values.options import License, TrainingRun
from adapterline.values.plan import LoadCall, Transform
from adapterline.values.report import ValidationReport

MANIFEST_SCHEMA: Final = "adapterline/manifest/v1"


class ComponentSummary(Value):
    """One component of an adapter, in numbers."""

    rank: int | list[int] = Field(description="one number, or every rank that occurs, sorted")
    alpha: float | list[float] = Field(description="rank x scale: one number, or every value that occurs")
    modules: int
    adapter_type: str = Field(description="lora, dora, loha, lokr or full as trained, with +bias for biases")
    dtype: str | list[str]
    parameters: int


class SourceSummary(Value):
    """What is said in public of the checkpoint: no path, no host."""

    name: str
    digest: Sha256
    container: str
    dialect: str
    step: int | None = None


class BaseSummary(Value):
    """The base: the architecture that it was proven on, and the model that it was trained on."""

    architecture: str = Field(description="sha256 of the component configs that it was proven on")
    pipeline: str
    model: str = Field("unknown", description="Hub id, or unknown")
    revision: str = Field("unknown", description="commit, tag or branch, or unknown")


class Manifest(Value):
    """What an export is: immutable, and the same bytes at every destination.

    It holds nothing that varies between runs on equal input and no private path.
    """

    model_config = ConfigDict(title=MANIFEST_SCHEMA, validate_by_name=True, serialize_by_alias=True)

    schema_: Literal["adapterline/manifest/v1"] = Field(MANIFEST_SCHEMA, alias="schema")
    name: str
    digest: Sha256 = Field(description="the bundle's digest")
    family: str
    source: SourceSummary
    training_run: TrainingRun | None
    base: BaseSummary
    license: License | None = Field(None, description="what was asked for, else the base's; null: not known")
    trigger: tuple[str, ...] = Field((), description="words that call what was trained")
    files: tuple[ExportedFile, ...]
    components: dict[str, ComponentSummary]
    transforms: tuple[Transform, ...]
    left_out: tuple[str, ...]
    validation: ValidationReport
    loads: tuple[LoadCall, ...]
    consumers: dict[str, tuple[str, ...]] = Field(
        description="path of a file -> what loaded it, and versions (diffusers==0.35.2) known to load its kind right"
    )
    tools: dict[str, str]

    def to_bytes(self) -> bytes:
        """The bytes that are published."""
        return canonical_json(self.model_dump(mode="json"))
