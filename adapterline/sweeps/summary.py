"""What came of a sweep."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from pydantic import Field

from adapterline.values.base import Value

Outcome = Literal["exported", "skipped", "unfinished", "refused", "failed"]
#: In the order in which a person wants to know.
OUTCOMES: tuple[Outcome, ...] = ("failed", "refused", "exported", "unfinished", "skipped")


class SweepItem(Value):
    """One checkpoint that a sweep met."""

    checkpoint: str
    step: int | None = None
    outcome: Outcome
    name: str | None = None
    digest: str | None = Field(None, description="of what was exported: its version")
    why: str = Field("", description="of a refusal, a failure, or of being skipped")
    told: bool = Field(False, description="an earlier sweep said the same of the same bytes")


class SweepSummary(Value):
    """Every checkpoint under the roots, each once."""

    roots: tuple[str, ...]
    steps: str
    items: tuple[SweepItem, ...]

    @property
    def counts(self) -> dict[Outcome, int]:
        """How many of each, all outcomes named."""
        found = Counter(item.outcome for item in self.items)
        return {outcome: found[outcome] for outcome in OUTCOMES}

    @property
    def failed(self) -> bool:
        """A refusal is no failure: it stays one whatever is tried again."""
        return self.counts["failed"] > 0

    def line(self) -> str:
        """The counts in words."""
        return ", ".join(f"{count} {outcome}" for outcome, count in self.counts.items())


def summary_markdown(summary: SweepSummary) -> str:
    """For a person who looks in the morning: what is new comes first; refusals that were told before are counted."""
    lines = [f"**{summary.line()}** under {', '.join(f'`{root}`' for root in summary.roots)}", ""]
    new = [item for item in summary.items if item.outcome != "skipped" and not item.told]
    if new:
        lines += ["| | checkpoint | step | name | version | why |", "|---|---|---|---|---|---|"]
        lines += [_row(item) for item in sorted(new, key=lambda item: OUTCOMES.index(item.outcome))]
    if told := sum(item.told for item in summary.items if item.outcome == "refused"):
        lines += ["", f"{told} refused by an earlier sweep already, and not changed since."]
    return "\n".join(lines)


def _row(item: SweepItem) -> str:
    version = (item.digest or "")[:12]
    cells = (item.outcome, item.checkpoint, "" if item.step is None else item.step, item.name or "", version, item.why)
    texts = (" ".join(str(cell).split()).replace("|", "\\|").replace("<", "&lt;") for cell in cells)
    return f"| {' | '.join(texts)} |"
