"""Prune: versions that no rule and no alias keeps are deleted; so is what interrupted runs left."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal

from adapterline.destinations.base import Destination
from adapterline.errors import PublishError
from adapterline.retention.places import open_all
from adapterline.retention.rules import ORPHAN_AGE, Rules, reasons_to_leave, reasons_to_stay
from adapterline.values import Orphan, OrphanFate, Pruned, Pruning, Version, VersionFate, check_alias

_Judged = list[tuple[Version, tuple[str, ...]]]
_Outcome = tuple[Literal["stays", "goes", "removed"], tuple[str, ...]]


def prune(
    name: str, to: Sequence[str], rules: Rules, *, keep_aliases: Sequence[str] = (), yes: bool = False
) -> Pruning:
    """Deletes, or without `yes` only tells, what the rules do not keep and no alias points to.

    Every destination is listed before the first version is deleted. `keep_aliases` have to be there: PublishError at a
    destination where one of them points to nothing. The oldest go first; the same call completes what was interrupted.
    """
    for alias in keep_aliases:
        check_alias(alias)
    now = datetime.now(UTC)
    judged = [(place, _judge(place, rules, keep_aliases, now)) for place in open_all(to, name)]
    return Pruning(name=name, dry_run=not yes, destinations=tuple(_pruned(*each, yes=yes) for each in judged))


def collect(name: str, to: Sequence[str], older_than: timedelta = ORPHAN_AGE, *, yes: bool = False) -> Pruning:
    """Deletes, or without `yes` only tells, what is not part of any version and was not changed for `older_than`.

    An export that still runs may have left what is younger.
    """
    now = datetime.now(UTC)
    found = [(place, sorted(place.orphans(), key=lambda orphan: orphan.changed_at)) for place in open_all(to, name)]
    pruned = tuple(
        Pruned(
            destination=place.uri, orphans=tuple(_collected(place, each, older_than, now, yes=yes) for each in orphans)
        )
        for place, orphans in found
    )
    return Pruning(name=name, dry_run=not yes, destinations=pruned)


def _judge(place: Destination, rules: Rules, keep_aliases: Sequence[str], now: datetime) -> _Judged:
    versions = place.versions()
    aliases = place.aliases()
    if missing := [alias for alias in keep_aliases if alias not in aliases]:
        raise PublishError(
            f"{', '.join(missing)} points to nothing at {place.uri}.",
            expected="that what --keep-alias names is there",
            remedy="Promote a version to it, or leave the option out.",
        )
    return reasons_to_stay(versions, aliases, rules, now)


def _pruned(place: Destination, judged: _Judged, *, yes: bool) -> Pruned:
    outcomes = [_outcome(place, version, reasons, yes=yes) for version, reasons in reversed(judged)]
    fates = (
        VersionFate(
            digest=version.digest,
            published_at=version.published_at,
            order=version.order,
            fate=outcome[0],
            reasons=outcome[1],
        )
        for (version, _), outcome in zip(judged, reversed(outcomes), strict=True)
    )
    return Pruned(destination=place.uri, versions=tuple(fates))


def _outcome(place: Destination, version: Version, reasons: tuple[str, ...], *, yes: bool) -> _Outcome:
    if reasons:
        return "stays", reasons
    if not yes:
        return "goes", ()
    return (
        ("removed", ())
        if place.remove(version)
        else ("stays", ("an alias points to it by now, or it was published again",))
    )


def _collected(place: Destination, orphan: Orphan, older_than: timedelta, now: datetime, *, yes: bool) -> OrphanFate:
    reasons = reasons_to_leave(orphan, older_than, now)
    fate: Literal["stays", "goes", "removed"] = "stays" if reasons else "goes"
    if yes and not reasons:
        fate, reasons = ("removed", ()) if place.discard(orphan) else ("stays", ("it was used meanwhile",))
    return OrphanFate(kind=orphan.kind, place=orphan.place, changed_at=orphan.changed_at, fate=fate, reasons=reasons)
