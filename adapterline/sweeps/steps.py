"""Which of a run's checkpoints are wanted: the final one, all of them, or every so many steps."""

from __future__ import annotations

import re
from pathlib import PurePath

from adapterline.checkpoints.containers.training_folder import save_named
from adapterline.errors import UsageError
from adapterline.sweeps.runs import FoundRun

#: `final`, `all` or `every:N`.
Steps = str
_EVERY = re.compile(r"every:([1-9]\d{0,17})")


def check_steps(steps: Steps) -> Steps:
    """`steps`, if it is one; UsageError otherwise."""
    if steps in ("final", "all") or _EVERY.fullmatch(steps):
        return steps
    raise UsageError(f"The steps {steps!r} are none.", expected="final, all or every:N", remedy="Correct --steps.")


def steps_of(run: FoundRun, steps: Steps) -> tuple[int | None, ...]:
    """The steps to export, the smallest first; None, always the last, is the final checkpoint.

    A run that has nothing but steps has no final one: it is its last step, where all or every so many are wanted.
    """
    numbers = {found for name, folder in run.names() if (found := save_named(PurePath(name), folder)) is not None}
    if steps == "final" or not numbers:
        return (None,)
    match = _EVERY.fullmatch(steps)
    every = int(match[1]) if match else 1
    wanted = sorted(number for number in numbers if number % every == 0)
    return (*wanted, None) if _has_more_than_steps(run) else tuple(wanted)


def _has_more_than_steps(run: FoundRun) -> bool:
    """Is there anything of weights beside what is named by a step?"""
    return any(
        save_named(PurePath(name), folder) is None
        for name, folder in run.names()
        if folder or name.endswith((".safetensors", ".bin", ".pt", ".pth", ".ckpt"))
    )
