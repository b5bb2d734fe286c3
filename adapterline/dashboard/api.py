"""`/api/v1/…`: what the pages show, as JSON. The models are those of the index and of the command line's `--json`."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from adapterline.dashboard.asked import HealthDays, RunsSlice, VersionsSlice
from adapterline.dashboard.links import without_secrets
from adapterline.errors import UnknownLineageError
from adapterline.lineage.answers import (
    Counts,
    DigestMatches,
    Drifts,
    Failures,
    Lineage,
    RunDetail,
    RunPage,
    VersionPage,
)
from adapterline.lineage.health_answers import Health
from adapterline.lineage.index import Index
from adapterline.values import NAME_PATTERN


class Problem(BaseModel):
    """Why there is no answer: as the command line's `--json` says it."""

    error: str = Field(description="its class in adapterline.errors")
    message: str = Field(description="the whole of it")
    found: str
    expected: str
    remedy: str


async def index_of(request: Request) -> Index:
    """The index that the application was made with."""
    index: Index = request.app.state.index
    return index


Asked = Annotated[Index, Depends(index_of)]
Name = Annotated[str, Path(description="what it was published under")]
VersionDigits = Annotated[str, Path(description="an alias, or 8 digits or more of the digest")]
router = APIRouter(
    prefix="/api/v1",
    tags=["lineage"],
    responses={code: {"model": Problem} for code in (404, 422, 503)},
)


def answer(value: BaseModel) -> JSONResponse:
    """As JSON, without what a URL may have of secrets."""
    return JSONResponse(_clean(value.model_dump(mode="json")))


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return without_secrets(value)
    if isinstance(value, dict):
        return {key: _clean(each) for key, each in value.items()}
    return [_clean(each) for each in value] if isinstance(value, list) else value


def version_of(index: Index, name: str, version: str) -> Lineage:
    """What the index knows of a version by an alias or 8 digits or more of its digest; UnknownLineageError."""
    if NAME_PATTERN.fullmatch(name):
        found = index.show(f"{name}@{version}")
        if found.version and found.version.name == name:
            return found
    raise UnknownLineageError(
        f"There is no version {version!r} of {name!r}.", expected="a name, and an alias or digits of a digest"
    )


@router.get("/versions", summary="Versions that a filter lets through", response_model=VersionPage)
def versions(index: Asked, asked: Annotated[VersionsSlice, Query()]) -> JSONResponse:
    """The newest first, unless `sort` and `order` say otherwise. In a text * stands for anything, ? for a character."""
    return answer(
        index.versions(
            asked.filter, sort=asked.sort, descending=asked.order == "desc", limit=asked.limit, offset=asked.offset
        )
    )


@router.get("/versions/{name}/{version}", summary="One version", response_model=Lineage)
def version(index: Asked, name: Name, version: VersionDigits) -> JSONResponse:
    """With manifest, records, drift, parents and children."""
    return answer(version_of(index, name, version))


@router.get("/lineage", summary="Where something comes from and where it went", response_model=Lineage)
def lineage(
    index: Asked, of: Annotated[str, Query(max_length=2000, description="as `adapterline lineage show` takes it")]
) -> JSONResponse:
    """Of a name, name@alias, digits of a digest, a training run, a record or a checkpoint."""
    return answer(index.show(of))


@router.get("/drifts/{name}", summary="How far versions of a name are from those before", response_model=Drifts)
def drifts(index: Asked, name: Name) -> JSONResponse:
    """Of the newest hundred versions, the oldest first: each component's norm, and its cosine to what `latest` was."""
    return answer(Drifts(name=name, drifts=index.drifts(name)))


@router.get("/runs", summary="Runs of the line, the newest first", response_model=RunPage)
def runs(index: Asked, asked: Annotated[RunsSlice, Query()]) -> JSONResponse:
    """Exports, refusals and failures. In a text * stands for anything, ? for one character."""
    return answer(index.runs(asked.filter, limit=asked.limit, offset=asked.offset))


@router.get("/runs/{record}", summary="One run", response_model=RunDetail)
def run(index: Asked, record: Annotated[str, Path(description="as a list of runs has it")]) -> JSONResponse:
    """By the id of its record."""
    return answer(index.run(record))


@router.get("/failures", summary="Refused and failed runs by what they ended with", response_model=Failures)
def failures(
    index: Asked, limit: Annotated[int, Query(ge=1, le=500, description="at most so many")] = 100
) -> JSONResponse:
    """The newest `limit` of them."""
    return answer(index.failures(limit=limit))


@router.get("/which", summary="What a digest is of", response_model=DigestMatches)
def which(index: Asked, digest: Annotated[str, Query(max_length=200, description="its first digits")]) -> JSONResponse:
    """A version, a file, its tensors or a checkpoint, by 8 to 64 digits of its sha256."""
    return answer(index.digests(digest))


@router.get("/health", summary="How the line fares, day by day and now", response_model=Health)
def health(index: Asked, asked: Annotated[HealthDays, Query()]) -> JSONResponse:
    """Outcomes, durations and bytes of each day; errors; the last sweep and export; what waits."""
    return answer(index.health(asked.days, asked.end))


@router.get("/counts", summary="What is in the index, in numbers", response_model=Counts)
def counts(index: Asked) -> JSONResponse:
    """Versions, names, bytes and runs; by outcome, family and base."""
    return answer(index.counts())
