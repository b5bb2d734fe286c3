"""What is said in public of a training run: names, Hub ids and web addresses; no path, host or user of a machine."""

from __future__ import annotations

import re

from adapterline.values import TrainingRun

#: A name, or a Hub id or repository, with the revision if known: nothing that begins like a path or goes two folders
#: deep.
_NAME = re.compile(r"[^\s/\\:~.][^/\\:]*(/[^\s/\\:~.][^/\\:]*)?")
#: On the web, without user, password and query.
_WEB = re.compile(r"(git\+)?https://[^\s@?#/]+(/[^\s?#]*)?")


def public_run(run: TrainingRun) -> TrainingRun:
    """The run as a manifest has it: what of `dataset`, `code` and `trainer` may be a private place is left out.

    The whole of it is in the lineage record.
    """
    fields = ("dataset", "code", "trainer")
    return run.model_copy(update={name: public(text) for name in fields if (text := getattr(run, name)) is not None})


def public(text: str) -> str | None:
    """`text` if it is a name, `org/name[@revision]`, `hf://` and such, or an https address; None for anything else."""
    plain = text.removeprefix("hf://").removeprefix("datasets/")
    return text if _NAME.fullmatch(plain) or _WEB.fullmatch(text) else None
