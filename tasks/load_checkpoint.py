"""load-checkpoint: a URI becomes a source, hashed, its dialect known; and a name becomes a base."""

from __future__ import annotations

from pathlib import Path

from prefect import task

from adapterline import checkpoints
from adapterline.families import base as families
from adapterline.values import ExportOptions, Source
from tasks.policy import IN_PROCESS, TAGS, say


@task(name="load-checkpoint", task_run_name="load-checkpoint", timeout_seconds=4 * 3600, tags=TAGS, **IN_PROCESS)
def load_checkpoint(uri: str, options: ExportOptions, folder: Path) -> Source:
    """See `adapterline.checkpoints.load_checkpoint`. `folder` is for what has to be fetched."""
    source = checkpoints.load_checkpoint(uri, options, folder)
    say(
        f"load-checkpoint: {source.name} is a {source.container} in {source.dialect} keys, "
        f"{len(source.tensors)} tensors, digest {source.digest[:12]}"
    )
    return source


@task(name="open-base", task_run_name="open-base", timeout_seconds=600, tags=TAGS, **IN_PROCESS)
def open_base(spec: str, folder: Path) -> families.Base:
    """See `adapterline.families.base.open_base`. A base on the Hub is read from there: its configurations alone."""
    base = families.open_base(spec, folder)
    say(f"open-base: {base.pipeline} ({base.family.title}), architecture {base.architecture[:12]}")
    return base
