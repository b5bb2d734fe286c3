"""Every edit on every adapter in every mode, with counts: `python -m tests.mutants [NAME...]`, or `make mutants`."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from tests.mutants.adapters import ADAPTERS
from tests.mutants.edits import EDITS
from tests.mutants.judge import GOOD, REFUSED, SURVIVED, UNNAMED
from tests.mutants.suite import Row, broken


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="*", help="adapters to break; all, if none is given")
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    chosen = [good for good in ADAPTERS if not arguments.name or good.name in arguments.name]
    rows: list[Row] = []
    with ProcessPoolExecutor(arguments.processes, get_context("spawn")) as pool:
        for good, found in zip(chosen, pool.map(broken, chosen), strict=True):
            rows += found
            _say(f"{good.name:<32} {_counts(found)}")
    for row in rows:
        if not row.verdict.is_good:
            outcome = row.verdict.outcome.upper()
            _say(f"{outcome}: {row.adapter} ({row.mode}), {row.edit}: {row.verdict.said[:1000]}")
    _say(f"\n{len(EDITS)} edits on {len(chosen)} adapters, of {len({good.family for good in chosen})} families")
    _say(_counts(rows))
    return int(any(not row.verdict.is_good for row in rows))


def _counts(rows: list[Row]) -> str:
    counts = Counter(row.verdict.outcome for row in rows)
    return ", ".join(f"{counts[outcome]} {outcome}" for outcome in (*GOOD, SURVIVED, UNNAMED, REFUSED))


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
