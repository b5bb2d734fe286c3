"""`adapterline lineage`: what exists, where it comes from, where it went."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from adapterline.output import Json, fail, print_document

app = App(name="lineage", help="Ask where an adapter comes from and where it went.")


@app.command(name="list")
def list_(
    *,
    name: str | None = None,
    family: str | None = None,
    base: str | None = None,
    run_id: str | None = None,
    checkpoint: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    outcome: Literal["any", "exported", "already-exported", "validated", "waiting", "refused", "failed"] | None = None,
    alias: str | None = None,
    limit: Annotated[int, Parameter(negative="")] = 50,
    json: Json = False,
) -> None:
    """List versions, the newest first; with --outcome the runs of the line.

    In a text * stands for anything and ? for one character.

    Parameters
    ----------
    name
        What they were published under.
    family
        Of the base: sd15, sdxl, flux, ...
    base
        The model they were trained on.
    run_id
        The training run.
    checkpoint
        As it was given to the export, its name, or 8 digits of its digest.
    since
        Made at this time or later; without a time zone, in UTC.
    until
        Made before this.
    outcome
        List the runs that ended so instead of versions.
    alias
        What this alias points to, anywhere.
    limit
        At most so many.
    """
    from adapterline.errors import UsageError
    from adapterline.lineage import Index
    from adapterline.lineage.answers import RunFilter, VersionFilter
    from adapterline.lineage.texts import runs_text, versions_text

    if limit < 1:
        raise UsageError(f"--limit is {limit}.", expected="1 or more")
    texts = {"name": name, "family": family, "base": base, "run_id": run_id, "checkpoint": checkpoint}
    times = {"since": _aware(since), "until": _aware(until)}
    if outcome is None:
        page = Index().versions(VersionFilter.model_validate({**texts, **times, "alias": alias}), limit=limit)
        print_document(page.model_dump(mode="json"), lambda: versions_text(page), json)
        return
    if alias is not None:
        raise UsageError("--alias is of versions, and --outcome of runs.", expected="one or the other")
    wanted = None if outcome == "any" else outcome
    found = Index().runs(RunFilter.model_validate({**texts, **times, "outcome": wanted}), limit=limit)
    print_document(found.model_dump(mode="json"), lambda: runs_text(found), json)


@app.command
def show(what: str, *, json: Json = False) -> None:
    """Draw where something comes from and where it went: dataset, run, checkpoint, adapter, places; parents, children.

    Parameters
    ----------
    what
        A name, name@alias, 8 digits or more of a digest (of the bundle, a file, its tensors, the checkpoint), a
        training run, a record, or a checkpoint.
    """
    from adapterline.lineage import Index
    from adapterline.lineage.texts import print_lineage

    found = Index().show(what)
    if json:
        print_document(found.model_dump(mode="json"), str, json)
    else:
        print_lineage(found)


@app.command
def which(file: Path, *, json: Json = False) -> None:
    """Say what a stray file is, by its bytes or its tensors, whatever its name and its header are.

    Parameters
    ----------
    file
        A .safetensors file.
    """
    from adapterline.lineage import Index
    from adapterline.lineage.texts import matches_text

    found = Index().which(file)
    print_document(found.model_dump(mode="json"), lambda: matches_text(found), json)


@app.command
def compare(new: str, before: str, *, base: str, json: Json = False) -> None:
    """Say how far two adapters are from each other: the norms of what they do to the weights, and the cosine.

    Parameters
    ----------
    new
        A checkpoint or an export: a path, s3://bucket/key or hf://org/name[@revision].
    before
        Another one, of the same base.
    base
        What both were trained on: a diffusers pipeline folder, a Hub id, or an alias (sd15, sdxl, flux-dev, ...).
    """
    from adapterline.lineage.drift import compare as compare_
    from adapterline.lineage.texts import drift_text

    found = compare_(new, before, base)
    print_document(found.model_dump(mode="json"), lambda: drift_text(found), json)


@app.command
def reindex(
    *, from_: Annotated[list[str] | None, Parameter(name="--from", negative="")] = None, json: Json = False
) -> None:
    """Make the index anew from the record store and from what is published.

    Parameters
    ----------
    from_
        A place to read besides those that records name, as often as needed: a folder, s3://bucket/prefix, hf://org or
        hf://org/repo.
    """
    from adapterline.errors import PublishError
    from adapterline.lineage import Index
    from adapterline.lineage.texts import reindexed_text

    done = Index().reindex(from_ or ())
    print_document(done.model_dump(mode="json"), lambda: reindexed_text(done), json)
    if failed := [place for place in done.places if place.status == "failed"]:
        error = PublishError(
            f"{', '.join(place.place for place in failed)} could not be read: {failed[0].why}",
            remedy="Of these the index has what records say. Run the same command again when they answer.",
        )
        fail(error, as_json=False)


@app.command
def openlineage(*, since: datetime | None = None, until: datetime | None = None) -> None:
    """Print the runs of the record store as OpenLineage events, a line of JSON each.

    Parameters
    ----------
    since
        Runs that began at this time or later; without a time zone, in UTC.
    until
        Runs that began before this.
    """
    from adapterline.lineage.openlineage import as_json, events_of
    from adapterline.lineage.records import open_records
    from adapterline.settings import Settings

    since, until = _aware(since), _aware(until)
    store = open_records(Settings().records)
    for record in filter(None, map(store.read, store.names())):
        if (since is None or since <= record.started_at) and (until is None or record.started_at < until):
            for event in events_of(record):
                print(as_json(event))


def _aware(time: datetime | None) -> datetime | None:
    return time.replace(tzinfo=UTC) if time and time.tzinfo is None else time
