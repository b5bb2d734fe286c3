"""What the index answers: frozen, and as JSON what the command line, a page and an API give."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import AwareDatetime, Field

from adapterline.values import DriftFromLatest, LineageRecord, Manifest, SweepRecord, TrainingRun
from adapterline.values.base import Value

Sort = Literal["created", "finished", "name", "size"]


class VersionFilter(Value):
    """Which versions. Texts are patterns, in which * stands for anything and ? for one character."""

    name: str | None = Field(None, description="what it was published under")
    family: str | None = Field(None, description="of the base: sd15, sdxl, flux, ...")
    base: str | None = Field(None, description="the model it was trained on")
    run_id: str | None = Field(None, description="the training run")
    checkpoint: str | None = Field(None, description="its URI as it was given, its name, or 8 digits of its digest")
    alias: str | None = Field(None, description="that points to it, anywhere")
    search: str | None = Field(
        None, description="a part of its name, family, base, run id or checkpoint's name, in any case"
    )
    since: AwareDatetime | None = None
    until: AwareDatetime | None = Field(None, description="before this")


class RunFilter(Value):
    """Which runs of the line. Texts are patterns, as in `VersionFilter`."""

    outcome: str | None = Field(None, description="exported, already-exported, validated, waiting, refused or failed")
    name: str | None = Field(None, description="what it was, or would have been, published under")
    family: str | None = Field(None, description="of the base: sd15, sdxl, flux, ...")
    base: str | None = Field(None, description="the model it was trained on")
    run_id: str | None = Field(None, description="the training run")
    checkpoint: str | None = Field(None, description="its URI as it was given")
    since: AwareDatetime | None = None
    until: AwareDatetime | None = None


class ComponentEntry(Value):
    """A component of an adapter."""

    component: str
    adapter_type: str
    rank: Any = Field(description="one number, or every rank that occurs")
    alpha: Any
    dtype: Any
    modules: int
    parameters: int


class AliasEntry(Value):
    """An alias that points to a version at one place."""

    alias: str
    place: str


class PlaceEntry(Value):
    """Where a version is published, or offered in a pull request."""

    place: str
    state: Literal["published", "proposed"]
    location: str
    manifest_sha256: str
    published_at: AwareDatetime = Field(
        description="the end of the first run that put it there, else as the place says"
    )


class VersionEntry(Value):
    """A version in a list. `digest` is the bundle's, `size` that of its files in bytes."""

    name: str
    digest: str
    outcome: Literal["exported", "validated"] = Field(description="validated: proven, and published nowhere")
    family: str
    base_model: str
    base_revision: str
    source_name: str
    source_digest: str
    run_id: str | None
    step: int | None
    finished_at: AwareDatetime | None
    created_at: AwareDatetime = Field(description="the end of its first run; without a record, when it was published")
    size: int
    components: tuple[ComponentEntry, ...]
    places: tuple[PlaceEntry, ...]
    aliases: tuple[AliasEntry, ...]

    @property
    def sha12(self) -> str:
        """What its version is called."""
        return self.digest[:12]


class VersionPage(Value):
    """Some of the versions that a filter lets through, and how many there are."""

    versions: tuple[VersionEntry, ...]
    total: int


class RunEntry(Value):
    """A run of the line in a list: of an export, a refusal or a failure."""

    id: str
    outcome: str
    started_at: AwareDatetime
    ended_at: AwareDatetime
    checkpoint: str
    name: str | None
    digest: str | None = Field(description="of the version that it proved or published")
    family: str | None
    base_model: str | None
    run_id: str | None
    error: str | None
    error_type: str | None


class RunPage(Value):
    """Some of the runs that a filter lets through, and how many there are."""

    runs: tuple[RunEntry, ...]
    total: int


class SweepPage(Value):
    """Some of the sweeps, and how many there are."""

    sweeps: tuple[SweepRecord, ...]
    total: int


class DriftEntry(Value):
    """How far a component of a version is from what `latest` of the name was before."""

    digest: str = Field(description="of the version")
    created_at: AwareDatetime
    component: str
    before: str = Field(description="digest of the version that `latest` pointed to")
    norm: float = Field(description="Frobenius norm of what it does to the weights")
    norm_before: float
    cosine: float | None = Field(description="between both; null where one of them is nothing")


class Drifts(Value):
    """How far the versions of a name are from what `latest` was before each, the oldest first."""

    name: str
    drifts: tuple[DriftEntry, ...]


class Relative(Value):
    """A version that another was made from, or that was made from another."""

    kind: Literal["resumed-from", "previous"] = Field(
        description="resumed-from: its training went on from there; previous: the export of the same name before"
    )
    stated: str = Field(description="the digest or the run id that says so")
    name: str | None = Field(description="null: the index does not know it")
    digest: str | None


class Lineage(Value):
    """Where something comes from and where it went. Of a run that made no version, the run alone."""

    version: VersionEntry | None
    manifest: Manifest | None
    runs: tuple[dict[str, Any], ...] = Field(
        description="the records, the newest first; without the manifest where it is the version's own"
    )
    drift: DriftFromLatest | None = Field(description="as the first record that tells it says")
    parents: tuple[Relative, ...]
    children: tuple[Relative, ...]

    @property
    def training_run(self) -> TrainingRun | None:
        """As it was told; what nobody told, as the checkpoint's own files tell it. None where nothing is known."""
        told = [self.manifest.training_run.model_dump()] if self.manifest and self.manifest.training_run else []
        for field in ("run", "stated_run"):
            told += [run[field] for run in self.runs if run.get(field)][:1]
        known = {name: value for each in reversed(told) for name, value in each.items() if value not in (None, ())}
        return TrainingRun.model_validate(known) if known else None


class Match(Value):
    """What a file on somebody's disk is."""

    by: Literal["file", "tensors"] = Field(description="tensors: its header was changed, or the order of its data")
    sha256: str
    tensors_sha256: str | None
    path: str = Field(description="what it is called in the version")
    layout: str
    version: VersionEntry


class Matches(Value):
    """Every version that has this file."""

    file: str
    matches: tuple[Match, ...]


class Count(Value):
    """How many have this value."""

    value: str
    count: int


class Counts(Value):
    """What is in the index, in numbers."""

    versions: int
    bytes: int
    names: int
    runs: int
    by_outcome: tuple[Count, ...] = Field(description="of runs")
    by_family: tuple[Count, ...] = Field(description="of versions")
    by_base: tuple[Count, ...] = Field(description="of versions: the twenty that most have")


class RunDetail(Value):
    """One run of the line."""

    record: LineageRecord = Field(description="without the manifest where it is the version's own")
    version: VersionEntry | None = Field(description="that it made or found; null: none, or it was pruned everywhere")


class FailureGroup(Value):
    """Runs that ended alike, the newest first."""

    outcome: str
    error_type: str | None
    runs: tuple[RunEntry, ...]


class Failures(Value):
    """The newest refused and failed runs, and how many there are."""

    groups: tuple[FailureGroup, ...] = Field(description="the most frequent first")
    total: int


class DigestMatch(Value):
    """What a digest is of."""

    what: Literal["bundle", "file", "tensors", "checkpoint"] = Field(
        description="bundle: the version itself; tensors: those of a file, without its header"
    )
    digest: str
    path: str | None = Field(description="of the file in the version")
    version: VersionEntry


class DigestMatches(Value):
    """Everything that has a digest which begins so."""

    digits: str
    matches: tuple[DigestMatch, ...]


class Choices(Value):
    """What occurs in the index, to choose from: a hundred of each at most."""

    families: tuple[str, ...]
    bases: tuple[str, ...]
    aliases: tuple[str, ...]


class PlaceRead(Value):
    """What became of a place when the index was made anew."""

    place: str
    status: Literal["read", "absent", "failed"] = Field(
        description="absent: a folder that this machine does not have; of it and of a failed one the records count"
    )
    versions: int
    why: str = ""


class Reindexed(Value):
    """What the index was made of."""

    records: int
    sweeps: int = 0
    unread: int = Field(description="records and sweeps that this version of adapterline does not read")
    versions: int
    places: tuple[PlaceRead, ...]
