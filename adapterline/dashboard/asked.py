"""What the address of a list says: filter, order, page. A form without JavaScript sends its empty fields too."""

from __future__ import annotations

from datetime import UTC, date, datetime, time
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

from pydantic import BeforeValidator, Field, model_validator

from adapterline.lineage.answers import RunFilter, Sort, VersionFilter
from adapterline.values import Value

PER_PAGE = 50


def _moment(value: Any) -> Any:
    """A day or a time; without a zone, in UTC."""
    if not isinstance(value, str):
        return value
    moment = datetime.fromisoformat(value)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


Moment = Annotated[datetime, BeforeValidator(_moment)]
Limit = Annotated[int, Field(ge=1, le=500, description="at most so many")]
Offset = Annotated[int, Field(ge=0, le=10**9, description="after so many")]


class _Asked(Value):
    @model_validator(mode="before")
    @classmethod
    def _without_blanks(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {name: text for name, text in given.items() if not isinstance(text, str) or text.strip()}

    def said(self, **changes: Any) -> str:
        """The address's query with these changes: what is as by default is not in it."""
        given = self.model_dump(mode="json") | changes
        usual = {name: field.default for name, field in type(self).model_fields.items()}
        kept = {name: value for name, value in given.items() if value is not None and value != usual[name]}
        return f"?{urlencode(kept)}" if kept else ""


class _OfVersions(VersionFilter, _Asked):
    since: Moment | None = Field(None, description="made on this day, at this time, or later; without a zone, in UTC")
    until: Moment | None = Field(None, description="made before this")
    sort: Sort = "created"
    order: Literal["desc", "asc"] = "desc"

    @property
    def filter(self) -> VersionFilter:
        """Which versions."""
        return VersionFilter(**self.model_dump(include=set(VersionFilter.model_fields)))


class _OfRuns(RunFilter, _Asked):
    since: Moment | None = Field(None, description="begun on this day, at this time, or later; without a zone, in UTC")
    until: Moment | None = Field(None, description="begun before this")

    @property
    def filter(self) -> RunFilter:
        """Which runs."""
        return RunFilter(**self.model_dump(include=set(RunFilter.model_fields)))


class VersionsPage(_OfVersions):
    """The address of a page of versions."""

    page: int = Field(1, ge=1, le=10**7)


class VersionsSlice(_OfVersions):
    """The query of the API for versions."""

    limit: Limit = PER_PAGE
    offset: Offset = 0


class RunsPage(_OfRuns):
    """The address of a page of runs."""

    page: int = Field(1, ge=1, le=10**7)


class RunsSlice(_OfRuns):
    """The query of the API for runs."""

    limit: Limit = PER_PAGE
    offset: Offset = 0


class HealthDays(_Asked):
    """Which days: so many, up to and with `until`."""

    days: int = Field(30, ge=1, le=3660, description="so many")
    until: date | None = Field(None, description="the last one, in UTC; without it, today")

    @property
    def end(self) -> datetime | None:
        """The end of the last day; None for now."""
        return datetime.combine(self.until, time.max, UTC) if self.until else None


class Paging(Value):
    """Which page of how many."""

    page: int
    total: int

    @property
    def pages(self) -> int:
        """How many there are, at least one."""
        return max(1, -(-self.total // PER_PAGE))

    @property
    def first(self) -> int:
        """The number of the first row on it, from 1."""
        return (self.page - 1) * PER_PAGE + 1

    @property
    def last(self) -> int:
        """The number of the last row on it."""
        return min(self.page * PER_PAGE, self.total)
