"""What is published by the records: places, and the versions that they say lie there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from adapterline.values import LineageRecord, Publication


@dataclass(frozen=True)
class Place:
    """A destination for one name. `recorded` are the newest record and its publication there, by digest."""

    uri: str
    name: str
    recorded: dict[str, tuple[LineageRecord, Publication]] = field(default_factory=dict, hash=False)


def places_of(records: Iterable[LineageRecord], names: tuple[str, ...], to: tuple[str, ...]) -> list[Place]:
    """Every place that the records name, by destination and name; `names` are patterns, `to` destinations, () for any.

    A pull request that was never merged is no publication.
    """
    places: dict[tuple[str, str], Place] = {}
    for record in sorted(records, key=lambda record: record.started_at):
        if record.outcome != "exported" or record.manifest is None:
            continue
        name = record.manifest.name
        if names and not any(fnmatchcase(name, pattern) for pattern in names):
            continue
        for publication in record.publications:
            uri = publication.receipt.destination
            if publication.latest != "proposed" and (not to or uri in to):
                place = places.setdefault((uri, name), Place(uri, name))
                place.recorded[record.manifest.digest] = (record, publication)
    return [places[key] for key in sorted(places)]
