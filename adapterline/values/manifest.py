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
    modules: int = Field(description="how many layers of the model are adapted")
    adapter_type: str = Field(description="lora, dora, loha, lokr or full as trained, with +bias for biases")
    dtype: str | list[str] = Field(description="of the factors in the checkpoint: one, or every one that occurs")
    parameters: int = Field(description="trained numbers in the checkpoint, of all factors together")


class SourceSummary(Value):
    """What is said in public of the checkpoint: no path, no host."""

    name: str = Field(description="the last part of its path or URI")
    digest: Sha256 = Field(description="sha256 over path and sha256 of every file that was read")
    container: str = Field(description="which kind of file or folder it is, as of inspect")
    dialect: str = Field(description="whose keys it has, as of inspect")
    step: int | None = Field(None, description="of training, where the checkpoint's name or content says it")


class BaseSummary(Value):
    """The base: the architecture that it was proven on, and the model that it was trained on."""

    architecture: str = Field(description="sha256 of the component configs that it was proven on")
    pipeline: str = Field(description="class of diffusers")
    model: str = Field("unknown", description="Hub id, or unknown; as the request, the run or the checkpoint says")
    revision: str = Field("unknown", description="commit, tag or branch, or unknown")


class Manifest(Value):
    """What an export is: immutable, and the same bytes at every destination.

    It holds nothing that varies between runs on equal input and no private path.
    """

    model_config = ConfigDict(title=MANIFEST_SCHEMA, validate_by_name=True, serialize_by_alias=True)

    schema_: Literal["adapterline/manifest/v1"] = Field(
        MANIFEST_SCHEMA, alias="schema", description="name and version of this format"
    )
    name: str = Field(description="what it is published under")
    digest: Sha256 = Field(description="the bundle's digest")
    family: str = Field(description="of pipelines, as docs/families.md lists them; by the base that it was proven on")
    source: SourceSummary = Field(description="the checkpoint")
    training_run: TrainingRun | None = Field(description="as the event, the run's descriptor or the command says; null")
    base: BaseSummary = Field(description="what it was proven on, and what it was trained on")
    license: License | None = Field(None, description="what was asked for, else the base's; null: not known")
    trigger: tuple[str, ...] = Field((), description="words that call what was trained")
    files: tuple[ExportedFile, ...] = Field(description="what was exported; card, images and signature are not")
    components: dict[str, ComponentSummary] = Field(description="name in the pipeline -> what was trained of it")
    transforms: tuple[Transform, ...] = Field(description="what was done to the factors, in order")
    left_out: tuple[str, ...] = Field(description="components of the checkpoint that the request left out by name")
    validation: ValidationReport = Field(description="the proof, as far as it is the same on every machine")
    loads: tuple[LoadCall, ...] = Field(description="the calls that load it, in order")
    consumers: dict[str, tuple[str, ...]] = Field(
        description="path of a file -> what loaded it, and versions (diffusers==0.35.2) known to load its kind right"
    )
    tools: dict[str, str] = Field(description="package -> version, of what made and proved it")

    def to_bytes(self) -> bytes:
        """The bytes that are published."""
        return canonical_json(self.model_dump(mode="json"))
