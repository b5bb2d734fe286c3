"""What is remembered of a run of the line."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import AwareDatetime, ConfigDict, Field

from adapterline.values.base import Sha256, Value
from adapterline.values.drift import DriftFromLatest
from adapterline.values.manifest import Manifest
from adapterline.values.options import ExportOptions, TrainingRun
from adapterline.values.publication import Publication, RenderedImage
from adapterline.values.report import ValidationReport

RECORD_SCHEMA: Final = "adapterline/record/v1"


class FlowRun(Value):
    """The Prefect run that did it."""

    id: str = Field(description="Prefect's")
    name: str = Field(description="Prefect's")
    url: str | None = Field(None, description="its page")


class LineageRecord(Value):
    """One export, refusal or failure: a JSON file in the record store."""

    model_config = ConfigDict(title=RECORD_SCHEMA, validate_by_name=True, serialize_by_alias=True)

    schema_: Literal["adapterline/record/v1"] = Field(
        RECORD_SCHEMA, alias="schema", description="name and version of this format"
    )
    id: str = Field(description="of this record: random")
    key: str = Field(description="of the request: equal keys ask for equal bytes at equal places")
    outcome: Literal["exported", "already-exported", "validated", "waiting", "refused", "failed"] = Field(
        description="waiting: the checkpoint was not whole, and the deployment runs again for it"
    )
    started_at: AwareDatetime = Field(description="by the clock of the worker")
    ended_at: AwareDatetime = Field(description="by the same clock")
    checkpoint: str = Field(description="its path or URI, as it was asked for")
    name: str | None = Field(description="what it is published under; null: the run ended before that was known")
    to: tuple[str, ...] = Field(description="the destinations, as they were asked for")
    options: ExportOptions = Field(description="as they were asked for")
    run: TrainingRun | None = Field(None, description="the training run, as it was told")
    stated_run: TrainingRun | None = Field(None, description="the same, as the checkpoint's own files tell it")
    flow_run: FlowRun | None = Field(None, description="of Prefect")
    manifest: Manifest | None = Field(None, description="of what was exported; null: the run ended before")
    publications: tuple[Publication, ...] = Field((), description="where it is visible, in this order")
    report: ValidationReport | None = Field(
        None, description="of a failed validation, or one that says more than the manifest may"
    )
    images: tuple[RenderedImage, ...] = Field((), description="what was rendered, wherever it was published")
    error: str | None = Field(None, description="the whole message of a refusal or a failure")
    error_type: str | None = Field(None, description="its class in adapterline.errors")
    exit_code: int = Field(0, description="what the command line ends with")
    earlier: str | None = Field(None, description="id of the record that already did this")
    previous: Sha256 | None = Field(
        None, description="digest of the version that was exported under this name before, as far as the index knew"
    )
    drift: DriftFromLatest | None = Field(
        None, description="how far it is from what `latest` was; null where there was none, or nothing is published"
    )

    @property
    def known_run(self) -> TrainingRun | None:
        """The training run as it was told; what nobody told, as the checkpoint's own files tell it."""
        if self.run is None or self.stated_run is None:
            return self.run or self.stated_run
        told = self.run.model_dump(exclude_none=True, exclude_defaults=True)
        return TrainingRun.model_validate(self.stated_run.model_dump() | told)
