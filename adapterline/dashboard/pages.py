"""The pages. Each asks the index once or twice and fills a template; its address says everything that it shows."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Query, Request
from fastapi.responses import RedirectResponse, Response

from adapterline.dashboard.api import Asked, version_of
from adapterline.dashboard.asked import PER_PAGE, HealthDays, Paging, RunsPage, VersionsPage
from adapterline.dashboard.drift import drift_of, farthest
from adapterline.dashboard.graph import draw
from adapterline.dashboard.health import view_of as days_of
from adapterline.dashboard.images import images_of, read_image
from adapterline.dashboard.links import version_path
from adapterline.dashboard.remedies import OTHER, REMEDIES
from adapterline.dashboard.rendering import page, static_files
from adapterline.dashboard.version import view_of
from adapterline.errors import UnknownLineageError, UsageError
from adapterline.lineage.answers import Lineage, RunFilter, VersionEntry, VersionFilter
from adapterline.lineage.index import Index
from adapterline.values import NAME_PATTERN, Manifest

router = APIRouter(include_in_schema=False)
OUTCOMES = ("exported", "already-exported", "validated", "waiting", "refused", "failed")
_KEPT = "max-age=31536000, immutable"
_MOST_VERSIONS = 200  # of a name, on its page
_MOST_FAILURES = 500


@router.get("/")
def home() -> Response:
    """The adapters."""
    return RedirectResponse("/adapters")


@router.get("/adapters")
def adapters(request: Request, index: Asked, asked: Annotated[VersionsPage, Query()]) -> Response:
    """Every version, to search, filter, sort and page through."""
    found = index.versions(
        asked.filter,
        sort=asked.sort,
        descending=asked.order == "desc",
        limit=PER_PAGE,
        offset=(asked.page - 1) * PER_PAGE,
    )
    values = {"asked": asked, "found": found, "paging": Paging(page=asked.page, total=found.total)}
    if _swaps(request):
        return _swapped(page(request, "adapters_table.html", is_swap=True, **values), f"/adapters{asked.said()}")
    return _varied(page(request, "adapters.html", choices=index.choices(), is_swap=False, **values))


@router.get("/adapters/{name}")
def adapter(request: Request, index: Asked, name: str) -> Response:
    """A name: its versions, the newest first."""
    found = index.versions(VersionFilter(name=name), limit=_MOST_VERSIONS) if NAME_PATTERN.fullmatch(name) else None
    if not found or not found.versions:
        raise UnknownLineageError(f"The index has no adapter {name!r}.", expected="a name that was published or proven")
    return page(request, "adapter.html", name=name, found=found, drift=drift_of(index.drifts(name)))


@router.get("/adapters/{name}/{version}")
def version(request: Request, index: Asked, name: str, version: str) -> Response:
    """One version: what was proven, what it looks like, what is in it, where it is."""
    found, entry, manifest = _version(index, name, version)
    if version != entry.sha12:
        return RedirectResponse(version_path(entry.name, entry.digest))
    return page(request, "version.html", view=view_of(found, entry, manifest), lineage=found, farthest=farthest)


@router.get("/adapters/{name}/{version}/lineage")
def lineage(request: Request, index: Asked, name: str, version: str) -> Response:
    """Where it comes from and where it went, drawn and as a list."""
    found, entry, _ = _version(index, name, version)
    return page(request, "lineage.html", entry=entry, graph=draw(found, entry))


@router.get("/adapters/{name}/{version}/images/{digits}.png")
def image(index: Asked, name: str, version: str, digits: str) -> Response:
    """A rendered image, read from where it is published and compared with its digest."""
    found, entry, _ = _version(index, name, version)
    wanted = next((each for each in images_of(found) if each.sha256.startswith(digits) and len(digits) >= 16), None)
    if wanted is None:
        raise UnknownLineageError(f"The records of {name} {version} have no image {digits!r}.")
    data = read_image(wanted, [place.location for place in entry.places if place.state == "published"])
    return Response(data, media_type="image/png", headers={"Cache-Control": f"private, {_KEPT}"})


@router.get("/runs")
def runs(request: Request, index: Asked, asked: Annotated[RunsPage, Query()]) -> Response:
    """Every run of the line."""
    found = index.runs(asked.filter, limit=PER_PAGE, offset=(asked.page - 1) * PER_PAGE)
    values = {"asked": asked, "found": found, "paging": Paging(page=asked.page, total=found.total)}
    if _swaps(request):
        return _swapped(page(request, "runs_table.html", is_swap=True, **values), f"/runs{asked.said()}")
    answer = page(request, "runs.html", is_swap=False, choices=index.choices(), outcomes=OUTCOMES, **values)
    return _varied(answer)


@router.get("/runs/{record}")
def run(request: Request, index: Asked, record: str) -> Response:
    """One run: what was asked for, what became of it."""
    found = index.run(record)
    remedy = REMEDIES.get(found.record.error_type or "", OTHER) if found.record.error else None
    return page(request, "run.html", record=found.record, entry=found.version, remedy=remedy)


@router.get("/failures")
def failures(request: Request, index: Asked, name: str = "") -> Response:
    """Refused and failed runs by what they ended with."""
    wanted = RunFilter(name=name or None)
    found = index.failures(wanted, limit=_MOST_FAILURES)
    shown = sum(len(group.runs) for group in found.groups)
    return page(request, "failures.html", found=found, shown=shown, remedies=REMEDIES, other=OTHER, name=name)


@router.get("/which")
def which(request: Request, index: Asked, digest: Annotated[str, Query(max_length=1000)] = "") -> Response:
    """What a digest is of."""
    found, problem = None, None
    if digest.strip():
        try:
            found = index.digests(digest)
        except UsageError as error:
            problem = error
    status = 200 if problem is None else 404 if isinstance(problem, UnknownLineageError) else 422
    return page(request, "which.html", status, digest=digest, found=found, problem=problem)


@router.get("/health")
def health(request: Request, index: Asked, asked: Annotated[HealthDays, Query()]) -> Response:
    """How the line fares: over some days, and now."""
    found = index.health(asked.days, asked.end)
    return page(request, "health.html", asked=asked, found=found, view=days_of(found), counts=index.counts())


@router.get("/api")
def reference(request: Request) -> Response:
    """The JSON API, as its OpenAPI document describes it."""
    return page(request, "api.html", document=request.app.openapi())


@router.get("/static/{digest}/{name}")
def static(digest: str, name: str) -> Response:
    """A static file, kept for ever: another one has another address."""
    data, kind, current = static_files().get(name, (b"", "", ""))
    if not current or digest != current:
        return Response("There is no such file.\n", 404, media_type="text/plain")
    return Response(data, media_type=kind, headers={"Cache-Control": f"public, {_KEPT}"})


@router.get("/healthz")
def healthz(index: Asked) -> dict[str, str]:
    """Does the index answer?"""
    index.runs(limit=1)
    return {"status": "ok"}


def _version(index: Index, name: str, version: str) -> tuple[Lineage, VersionEntry, Manifest]:
    found = version_of(index, name, version)
    if found.version is None or found.manifest is None:
        raise UnknownLineageError(f"There is no version {version!r} of {name!r}.")
    return found, found.version, found.manifest


def _swaps(request: Request) -> bool:
    """Does htmx want the table alone? What it asks for to go back in its history is a whole page."""
    return "hx-request" in request.headers and "hx-history-restore-request" not in request.headers


def _swapped(answer: Response, address: str) -> Response:
    answer.headers["HX-Push-Url"] = quote(address, safe="/?&=%+*-._~")
    return _varied(answer)


def _varied(answer: Response) -> Response:
    answer.headers["Vary"] = "HX-Request"
    return answer
