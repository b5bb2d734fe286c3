"""What is remembered of a sweep."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import AwareDatetime, ConfigDict, Field

from adapterline.values.base import Value
from adapterline.values.record import FlowRun

SWEEP_SCHEMA: Final = "adapterline/sweep/v1"


class SweepRecord(Value):
    """One sweep: a JSON file in the record store. Each export, refusal and failure of it has its own record, too."""

    model_config = ConfigDict(title=SWEEP_SCHEMA, validate_by_name=True, serialize_by_alias=True)

    schema_: Literal["adapterline/sweep/v1"] = Field(
        SWEEP_SCHEMA, alias="schema", description="name and version of this format"
    )
    id: str = Field(description="of this record: random")
    started_at: AwareDatetime = Field(description="by the clock of the machine that swept")
    ended_at: AwareDatetime = Field(description="by the same clock")
    roots: tuple[str, ...] = Field(description="as they were asked for")
    to: tuple[str, ...] = Field(description="the destinations, as they were asked for; a deployment has its own")
    steps: str = Field(description="final, all or every:N")
    deployment: str | None = Field(None, description="that ran the exports; null: they ran in the sweep's own process")
    flow_run: FlowRun | None = Field(None, description="of Prefect")
    found: int = Field(description="checkpoints that it met; of a sweep that broke off some have no outcome")
    exported: int = Field(description="published now")
    skipped: int = Field(description="published before")
    unfinished: int = Field(description="still being written to: the next sweep looks again")
    refused: int = Field(description="cannot be exported")
    told: int = Field(description="of the refused: refused by an earlier sweep already, and not changed since")
    failed: int = Field(description="something broke: the next sweep tries again")
    error: str | None = Field(None, description="what broke the sweep off; null: it went through all its roots")
    error_type: str | None = Field(None, description="the class of that error")

    @property
    def is_whole(self) -> bool:
        """Did it go through all its roots?"""
        return self.error_type is None
