"""Everything that the page of a version shows, from what the index knows of it."""

from __future__ import annotations

from dataclasses import dataclass

from adapterline.dashboard.charts import RankChart, rank_chart
from adapterline.dashboard.images import images_of
from adapterline.dashboard.links import href, hub_url
from adapterline.lineage.answers import Lineage, PlaceEntry, VersionEntry
from adapterline.lineage.places import place_of
from adapterline.package.card import snippets
from adapterline.values import LineageRecord, Manifest, Publication, RenderedImage, ValidationReport


@dataclass(frozen=True)
class PlaceView:
    """Where it is published: what a person opens, and what is loaded from there."""

    entry: PlaceEntry
    aliases: tuple[str, ...]
    url: str | None
    load: str
    revision: str


@dataclass(frozen=True)
class VersionView:
    """One version. `report` is the fullest one that passed, so also of what hangs on a machine, as rendering does."""

    entry: VersionEntry
    manifest: Manifest
    records: tuple[LineageRecord, ...]
    report: ValidationReport
    images: tuple[RenderedImage, ...]
    places: tuple[PlaceView, ...]
    snippets: tuple[str, ...]
    chart: RankChart


def view_of(found: Lineage, version: VersionEntry, manifest: Manifest) -> VersionView:
    """What to show of a version that the index knows."""
    records = tuple(map(LineageRecord.model_validate, found.runs))
    places = tuple(_places(version, records))
    base = manifest.base.model if manifest.base.model != "unknown" else None
    there = sorted((place for place in places if place.entry.state == "published"), key=_ease)
    first = there[0] if there else None
    return VersionView(
        entry=version,
        manifest=manifest,
        records=records,
        report=next((r.report for r in records if r.report and r.report.passed), manifest.validation),
        images=images_of(found),
        places=places,
        snippets=snippets(manifest, first.load, base, first.revision) if first else (),
        chart=rank_chart(manifest.components),
    )


def _places(version: VersionEntry, records: tuple[LineageRecord, ...]) -> list[PlaceView]:
    told: dict[str, Publication] = {}
    for record in records:
        for publication in record.publications:
            told.setdefault(place_of(publication.receipt), publication)
    found = []
    for entry in version.places:
        aliases = tuple(each.alias for each in version.aliases if each.place == entry.place)
        known = told.get(entry.place)
        load, revision = (known.load, known.revision) if known else _load_from(entry.location)
        url = href(known.url if known else None) or hub_url(entry.location)
        found.append(PlaceView(entry, aliases, url, load, revision))
    return found


def _ease(place: PlaceView) -> int:
    """The Hub from everywhere, a folder where it is mounted; what is in S3 has to be fetched first."""
    return next((n for n, scheme in ((0, "hf://"), (2, "s3://")) if place.entry.location.startswith(scheme)), 1)


def _load_from(location: str) -> tuple[str, str]:
    """What `load_lora_weights` takes for it, and its revision."""
    if not location.startswith("hf://"):
        return location, ""
    repository, _, revision = location.removeprefix("hf://").partition("@")
    return repository, revision
