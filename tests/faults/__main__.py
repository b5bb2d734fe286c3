"""Every fault, with counts: `python -m tests.faults [--seed N] [--quick]`, or `make faults`."""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tests.faults.places import places
from tests.faults.proxy import Trouble
from tests.faults.suite import KINDS, Suite, Tally
from tests.hub_double.faults import Fault

#: What the Hub meets: a name, and what is armed.
HUB_FAULTS = {
    "503 to the commit": Fault("POST .*/commit/", status=503),
    "429 with Retry-After to the commit": Fault("POST .*/commit/", status=429, headers={"Retry-After": "1"}),
    "a lost answer to the commit": Fault("POST .*/commit/", drop="after"),
    "a lost commit": Fault("POST .*/commit/", drop="before"),
    "a lost answer to the release": Fault("POST .*/commit/main", drop="after"),
    "a lost answer to the tag": Fault("POST .*/tag/", drop="after"),
    "a lost answer to the upload": Fault("PUT ", drop="after"),
    "503 to the refs": Fault("GET .*/refs", status=503, times=2),
    "a slow commit": Fault("POST .*/commit/", delay=2),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--quick", action="store_true", help="a few of each kind")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="adapterline-faults-") as folder, places(Path(folder)) as found:
        suite = Suite(found, random.Random(arguments.seed), say=lambda line: print(line, flush=True))
        run(suite, 2 if arguments.quick else 12)
        with small_disk(Path(folder)) as disk:
            if disk:
                suite.full_disk(*disk)
            else:
                print("  a full disk was not tried: it takes root to make a small one")
    report(suite.tally)
    return int(not suite.tally.passed)


def run(suite: Suite, points: int) -> None:
    """Everything but the full disk."""
    for kind in KINDS:
        suite.kill(kind, points)
        for same in (True, False):
            suite.together(kind, same=same)
    suite.kill("s3", points, large=True)
    reading = replace(suite, read_back="bytes")
    reading.kill("s3", points)
    reading.kill("s3", points, large=True)
    for trouble in Trouble:
        suite.trouble_in_s3(trouble, max(points // 4, 1))
        reading.trouble_in_s3(trouble, max(points // 4, 1))
    for name, fault in list(HUB_FAULTS.items())[:points]:
        suite.trouble_at_the_hub(fault, name)


@contextmanager
def small_disk(folder: Path) -> Iterator[tuple[str, object] | None]:
    """A folder on a file system of 8 MB, and what gives it 64."""
    disk = folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "adapterline-faults", str(disk)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        yield None
        return
    try:
        yield str(disk / "out"), lambda: subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def report(tally: Tally) -> None:
    kinds = ", ".join(f"{count} at {kind}" for kind, count in tally.by_kind.items())
    print(f"\n{tally.faults} faults tried ({kinds}), {tally.published} adapters published")
    print(f"the probes of killed exporters were left {tally.collected} times, and collected by prune --orphans")
    print(f"lost {len(tally.lost)}, doubled {len(tally.doubled)}, partial {len(tally.partial)} in {tally.reads} reads")
    for name in ("lost", "doubled", "partial", "others"):
        for each in getattr(tally, name):
            print(f"{name.upper()}: {each}")


if __name__ == "__main__":
    sys.exit(main())
