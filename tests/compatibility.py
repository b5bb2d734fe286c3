"""docs/compatibility.md from running every writer's case: `python -m tests.compatibility`, or `make compatibility`."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from adapterline.families import family_named
from tests.writers.cases import CASES, Case
from tests.writers.observe import Bases, outcome

PAGE = Path(__file__).parent.parent / "docs" / "compatibility.md"

_HEAD = """\
# Compatibility

What becomes of the files of each trainer. For every line, a file is written as the trainer writes it, by its formulas
and with its key names, for a small model of the family; it is exported and proven, and the exported file is compared
with the weight changes that the trainer's formulas give. This page is made of the results by `make compatibility`, and
a test fails when one of them changes.

- **exact**: each layer's weight changes as it did in training, to the rounding of the file's own dtype.
- **above `--max-rank` approximate on request**: written as LoRA, such an adapter needs a higher rank than it was
  trained with. Up to `--max-rank` (256) it is exact. Above, it is refused, unless `--approximate` gives the rank to
  decompose it to; the manifest then has the error of every layer.
- **refused**: with the reason, which is part of the error's message. A text encoder that a family's loader drops can be
  left out by `--components`; the rest is then exact.

Wan files of one of its two models do not say which one; `--components` does.
"""


def observed(cases: Iterable[Case]) -> dict[Case, str]:
    """The outcome of each case."""
    with tempfile.TemporaryDirectory() as folder:
        bases = Bases(Path(folder))
        return {case: outcome(case, bases) for case in cases}


def page(outcomes: Mapping[Case, str]) -> str:
    """The page that says so."""
    sections: dict[str, dict[tuple[str, str], list[str]]] = {}
    for case, result in outcomes.items():
        rows = sections.setdefault(case.trainer, {})
        rows.setdefault((case.kind, result), []).append(family_named(case.family).title)
    parts = [_HEAD]
    for trainer, rows in sections.items():
        lines = [f"## {trainer}", "", "| adapter | families | result |", "|---|---|---|"]
        lines += [f"| {kind} | {', '.join(titles)} | {result} |" for (kind, result), titles in rows.items()]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(observed(CASES)))
    sys.stdout.write(f"{PAGE.name}: {len(CASES)} cases\n")
