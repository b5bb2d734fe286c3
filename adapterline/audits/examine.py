"""Looking at what is published: every byte against the manifest, the manifest against the record, and the effect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from adapterline.audits.published import Place
from adapterline.audits.report import AuditedVersion, Proof, State
from adapterline.checkpoints import fetch, load_checkpoint
from adapterline.destinations import open_destination
from adapterline.digests import sha256_of_bytes
from adapterline.errors import AdapterlineError
from adapterline.families.base import Base, open_base
from adapterline.families.shipped import SHIPPED
from adapterline.package.verification import Trust, with_trust
from adapterline.validation import describe, validate_file
from adapterline.validation.files import MANIFEST_NAME
from adapterline.values import Latest, LineageRecord, Manifest, Publication, Source, ValidationReport, Version


@dataclass(frozen=True)
class Shelf:
    """A place with what lies there."""

    place: Place
    versions: tuple[Version, ...]
    aliases: Mapping[str, Latest]

    def aliases_of(self, digest: str) -> tuple[str, ...]:
        """What points to this version."""
        return tuple(sorted(alias for alias, pointer in self.aliases.items() if pointer.digest == digest))


def examine_place(place: Place) -> tuple[Shelf | None, tuple[AuditedVersion, ...]]:
    """What lies there, and what can be told without reading a version: aliases that point to nothing, versions that
    are gone. Nothing, and one finding, if the place cannot be listed.
    """
    try:
        destination = open_destination(place.uri, place.name)
        shelf = Shelf(place, destination.versions(), destination.aliases())
    except AdapterlineError as error:
        newest = list(place.recorded)[-1]
        return None, (_of(place, newest, "unreadable", found=(str(error),)),)
    there = {version.digest: version for version in shelf.versions}
    found = [
        _of(place, pointer.digest, "drifted", (alias,), (f"{alias} points to it, and it is not there",))
        for alias, pointer in sorted(shelf.aliases.items())
        if pointer.digest not in there or there[pointer.digest].receipt.manifest_sha256 != pointer.manifest_sha256
    ]
    told = {version.digest for version in found}
    newest_there = max((version.order.key() for version in shelf.versions), default=None)
    for digest, (record, _) in place.recorded.items():
        if digest in there or digest in told:
            continue
        if newest_there is None:
            found.append(_of(place, digest, "drifted", found=("it is gone, and so is every other version",)))
        else:
            found.append(_of(place, digest, "gone", found=(f"published by run {record.id}, and removed since",)))
    return shelf, tuple(found)


def examine_version(shelf: Shelf, version: Version, base: str | None, trust: Trust, work: Path) -> AuditedVersion:
    """Reads every file of a version again, in `work`, and says what is not as it was published.

    It is proven on `base`, or the base that its manifest names, and against its checkpoint where that still lies where
    the record says. AdapterlineError, transient, if a server is not reached.
    """
    place, digest = shelf.place, version.digest
    aliases, recorded = shelf.aliases_of(digest), place.recorded.get(digest)
    whole = open_destination(place.uri, place.name).verify(version)
    found = [] if whole else ["a file of it is not there any more, or has other bytes"]
    folder = fetch(version.receipt.location, work / "version")
    data = (folder / MANIFEST_NAME).read_bytes()
    manifest = Manifest.model_validate_json(data)
    found += _against_record(data, recorded)
    report: ValidationReport | None = None
    proof: Proof = "none"
    not_run: dict[str, str] = {}
    try:
        opened = _base(manifest, base, work / "base")
        source, why_not = _source(manifest, recorded, work / "checkpoint")
        report = validate_file(folder, opened, source, recorded[0].options if recorded else None)
        proof = "effect" if source else "structure"
        not_run |= {"effect": why_not} if why_not else {}
    except AdapterlineError as error:
        if error.transient:
            raise
        not_run["proof"] = str(error)
    if report is not None:
        report = with_trust(report, folder, trust)
        found += [describe(check) for check in report.failures]
        not_run |= report.not_run
    return AuditedVersion(
        destination=place.uri,
        name=place.name,
        digest=digest,
        aliases=aliases,
        state="drifted" if found else "whole",
        found=tuple(found),
        proof=proof,
        not_run=not_run,
    )


def unreadable(shelf: Shelf, version: Version, error: AdapterlineError) -> AuditedVersion:
    """A version that could not be looked at to the end."""
    return _of(shelf.place, version.digest, "unreadable", shelf.aliases_of(version.digest), (str(error),))


def _of(
    place: Place, digest: str, state: State, aliases: tuple[str, ...] = (), found: tuple[str, ...] = ()
) -> AuditedVersion:
    return AuditedVersion(
        destination=place.uri, name=place.name, digest=digest, aliases=aliases, state=state, found=found
    )


def _against_record(manifest: bytes, recorded: tuple[LineageRecord, Publication] | None) -> list[str]:
    if recorded is None:
        return ["no record tells of it"]
    if sha256_of_bytes(manifest) != recorded[1].receipt.manifest_sha256:
        return [f"its manifest is another than that of run {recorded[0].id}"]
    return []


def _base(manifest: Manifest, given: str | None, folder: Path) -> Base:
    """The base that the manifest was proven on: what was given, if it is it, else shipped, else the Hub's.

    FamilyError if that is none of them.
    """
    wanted = manifest.base.architecture
    if given is not None and (opened := open_base(given, folder / "given")).architecture == wanted:
        return opened
    for known in SHIPPED:
        if _shipped(known.alias).architecture == wanted:
            return _shipped(known.alias)
    model, revision = manifest.base.model, manifest.base.revision
    return open_base(f"{model}@{revision}" if revision != "unknown" else model, folder / "hub")


@cache
def _shipped(alias: str) -> Base:
    return open_base(alias, Path())


def _source(
    manifest: Manifest, recorded: tuple[LineageRecord, Publication] | None, folder: Path
) -> tuple[Source | None, str]:
    """The checkpoint, if it is still the one that was exported; else why it is not compared with."""
    if recorded is None:
        return None, "no record says where its checkpoint lay"
    try:
        source = load_checkpoint(recorded[0].checkpoint, recorded[0].options, folder)
    except AdapterlineError as error:
        if error.transient:
            raise
        return None, f"its checkpoint cannot be read any more: {error.found}"
    if source.digest != manifest.source.digest:
        return None, "where its checkpoint lay is another one now"
    return source, ""
