"""Which versions stay, which go, and why. Nothing here reads or writes anything.

The laws, whatever the rules: what an alias points to stays, and `keep_last` of N keeps the N newest. What no rule
keeps goes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from adapterline.errors import UsageError
from adapterline.values import Latest, Orphan, Version

#: For so long, something unmarked may belong to an export that still runs.
ORPHAN_AGE = timedelta(hours=24)


@dataclass(frozen=True)
class Rules:
    """What keeps a version: to be one of the `keep_last` newest, or published more recently than `older_than` ago.

    UsageError where nothing is said: then every version without an alias would go.
    """

    keep_last: int | None = None
    older_than: timedelta | None = None

    def __post_init__(self) -> None:
        if self.keep_last is None and self.older_than is None:
            raise UsageError(
                "Nothing says which versions may go.",
                expected="--keep-last N, --older-than TIME, or both",
                remedy="To collect what interrupted runs left, pass --orphans.",
            )
        if self.keep_last is not None and self.keep_last < 0:
            raise UsageError(f"--keep-last is {self.keep_last}.", expected="0 or more")
        if self.older_than is not None and self.older_than < timedelta(0):
            raise UsageError("--older-than is negative.", expected="a time that has passed")


def newest_first(versions: Sequence[Version]) -> list[Version]:
    """By the order of `latest`: training finished at, step, run id. Of equal ones, what was published last."""
    return sorted(versions, key=_age, reverse=True)


def reasons_to_stay(
    versions: Sequence[Version], aliases: Mapping[str, Latest], rules: Rules, now: datetime
) -> list[tuple[Version, tuple[str, ...]]]:
    """Every version with what keeps it, the newest first. Those with no reason go."""
    judged = []
    for place, version in enumerate(newest_first(versions)):
        reasons = [f"{alias} points to it" for alias, to in sorted(aliases.items()) if to.digest == version.digest]
        if rules.keep_last is not None and place < rules.keep_last:
            reasons.append(f"one of the newest {rules.keep_last}")
        if rules.older_than is not None and now - version.published_at < rules.older_than:
            reasons.append(f"published less than {in_words(rules.older_than)} ago")
        judged.append((version, tuple(reasons)))
    return judged


def reasons_to_leave(orphan: Orphan, older_than: timedelta, now: datetime) -> tuple[str, ...]:
    """Why an orphan is not collected yet; nothing where it is."""
    if now - orphan.changed_at < older_than:
        return (f"changed less than {in_words(older_than)} ago",)
    return ()


def in_words(time: timedelta) -> str:
    """As a person says it: 36h, 30d."""
    hours = time.total_seconds() / 3600
    return f"{hours / 24:g}d" if hours and hours % 24 == 0 else f"{hours:g}h"


def _age(version: Version) -> tuple[Any, ...]:
    return (*version.order.key(), version.published_at, version.digest)
