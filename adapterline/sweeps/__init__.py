"""Whatever is finished and not yet exported: what lies under the roots, what of it is ready, what came of it."""

from __future__ import annotations

from adapterline.sweeps.journal import SweepJournal
from adapterline.sweeps.runs import FoundRun, find_runs
from adapterline.sweeps.steps import Steps, check_steps, steps_of
from adapterline.sweeps.summary import Outcome, SweepItem, SweepSummary, summary_markdown

__all__ = [
    "FoundRun",
    "Outcome",
    "Steps",
    "SweepItem",
    "SweepJournal",
    "SweepSummary",
    "check_steps",
    "find_runs",
    "steps_of",
    "summary_markdown",
]
