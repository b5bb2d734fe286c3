"""What is remembered of a run of the line."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import AwareDatetime, ConfigDict, Field

from adapterline.values.base import Sha256, Value
from adapterline.values.manifest import Manifest
from adapterline.values.options import ExportOptions, TrainingRun
from adapterline.values.publication import Publication, RenderedImage
from adapterline.values.report import ValidationReport

RECORD_SCHEMA: Final = "adapterline/record/v1"


class FlowRun(Value):
    """The Prefect run that did it."""

    id: str
    name: str
    url: str | None = None


class LineageRecord(Value):
    """One export, refusal or failure: a JSON file in the record store."""

    model_config = ConfigDict(title=RECORD_SCHEMA, validate_by_name=True, serialize_by_alias=True)

    schema_: Literal["adapterline/record/v1"] = Field(RECORD_SCHEMA, alias="schema")
    id: str
    key: str = Field(description="of the request: equal keys ask for equal bytes at equal places")
    outcome: Literal["exported", "already-exported", "validated", "waiting", "refused", "failed"] = Field(
        description="waiting: the checkpoint was not whole, and the deployment runs again for it"
    )
    started_at: AwareDatetime
    ended_at: AwareDatetime
    checkpoint: str
    name: str | None
    to: tuple[str, ...]
    options: ExportOptions
    run: TrainingRun | None = None
    flow_run: FlowRun | None = None
    manifest: Manifest | None = None
    publications: tuple[Publication, ...] = ()
    report: ValidationReport | None = Field(
        None, description="of a failed validation, or one that says more than the manifest may"
    )
    images: tuple[RenderedImage, ...] = Field((), description="what was rendered, wherever it was published")
    error: str | None = None
    error_type: str | None = None
    exit_code: int = 0
    earlier: str | None = Field(None, description="id of the record that already did this")
    previous: Sha256 | None = Field(
        None, description="digest of the version that was exported under this name before, as far as the index knew"
    )
