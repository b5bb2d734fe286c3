"""Every edit on an adapter, in every mode that it has."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.mutants.adapters import Good
from tests.mutants.edits import EDITS, name_of
from tests.mutants.judge import Trial, Verdict


@dataclass(frozen=True)
class Row:
    """What came of one edit on one adapter in one mode."""

    adapter: str
    mode: str
    edit: str
    verdict: Verdict


def broken(good: Good) -> list[Row]:
    """On one thread: models this small lose more by sharing their work out than they win."""
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        return list(_rows(good, Path(folder)))


def _rows(good: Good, folder: Path) -> Iterator[Row]:
    for mode in good.modes:
        trial = Trial.of(good, mode, folder / mode)
        for edit in EDITS:
            with tempfile.TemporaryDirectory(dir=folder) as place:
                yield Row(good.name, mode, name_of(edit), trial.judge(edit, Path(place)))
