"""The faults, each on a fresh place, and what may not come of them.

Every trial begins with an older version published, so that `latest` points to something, and has a reader that follows
`latest` without a pause. It ends with a run that nothing disturbs, after which the place must be as if nothing had.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from multiprocessing import get_context
from typing import Any

from adapterline.values import ReadBack
from tests.faults import exporter
from tests.faults.exporter import Death, Job, Moment, Outcome
from tests.faults.places import NAME, Place, Places, State, poll
from tests.faults.proxy import Proxy, Trouble
from tests.hub_double.faults import Fault

_PROCESSES = get_context("forkserver")
_PROCESSES.set_forkserver_preload(["tests.faults.preload"])
_PATIENCE = 180
_PART = 5 << 20
_LARGE = 3_000_000  # float32: 12 MB, three parts
#: In the names of the objects by which an exporter tries a store.
PROBE = ".probe-"
KINDS = ("folder", "s3", "hub")


@dataclass
class Tally:
    """What was tried, and what came of it. `lost`, `doubled`, `partial` and `others` must stay empty."""

    faults: int = 0
    published: int = 0
    reads: int = 0
    collected: int = 0
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    partial: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    by_kind: Counter[str] = field(default_factory=Counter)

    @property
    def passed(self) -> bool:
        return not (self.lost or self.doubled or self.partial or self.others)


@dataclass(frozen=True)
class Running:
    """An exporter, alive."""

    process: Any
    answer: Any

    def outcome(self) -> Outcome | None:
        """What it said, or None if it was killed before."""
        told = None
        try:
            if self.answer.poll(_PATIENCE):
                told = self.answer.recv()
        except EOFError:
            pass
        self.process.join(_PATIENCE)
        return told


def start(job: Job, death: Death | None = None) -> Running:
    receiver, sender = _PROCESSES.Pipe(duplex=False)
    process = _PROCESSES.Process(target=exporter.run, args=(job, death, sender))
    process.start()
    sender.close()
    return Running(process, receiver)


def publish(job: Job) -> Outcome:
    outcome = start(job).outcome()
    assert outcome is not None, "an exporter that nobody killed died"
    return outcome


@contextmanager
def reading(place: Place, tally: Tally) -> Iterator[None]:
    """Somebody follows `latest` all the time."""
    stop = _PROCESSES.Event()
    receiver, sender = _PROCESSES.Pipe(duplex=False)
    reader = _PROCESSES.Process(target=poll, args=(place, stop, sender))
    reader.start()
    sender.close()
    try:
        yield
    finally:
        stop.set()
        reads, wrong = receiver.recv()
        reader.join(_PATIENCE)
        tally.reads += reads
        tally.partial += [f"{place.uri}: {each}" for each in wrong]


@dataclass(frozen=True)
class Suite:
    """All trials on these places; `draw` chooses the points, and `read_back` is what proves an upload to S3."""

    places: Places
    draw: random.Random
    tally: Tally = field(default_factory=Tally)
    say: Callable[[str], None] = print
    read_back: ReadBack = "checksum"

    # --- killed -------------------------------------------------------------------------------------------------------

    def kill(self, kind: str, points: int, *, large: bool = False) -> None:
        """SIGKILL at so many points of a publication."""
        size = _LARGE if large else 64
        steps = self._steps(kind, size)
        moments: tuple[Moment, ...] = ("before",) if kind == "folder" else ("before", "after", "half")
        deaths = [Death(moment, nth) for nth in range(1, steps + 1) for moment in moments]
        for death in self.draw.sample(deaths, min(points, len(deaths))):
            self._kill(kind, size, death)

    def _kill(self, kind: str, size: int, death: Death) -> None:
        place = self._begun(kind)
        job = self._job(place, size)
        with reading(place, self.tally):
            victim = start(job, death)
            told = victim.outcome()
            if told is not None and told.steps < death.nth:
                # The Hub's client takes a few steps more in one run than in another: then the last one it is.
                self._kill(kind, size, replace(death, nth=told.steps))
                return
            if told is not None or victim.process.exitcode != -9:
                self.tally.others.append(f"{kind}: {death} did not happen ({told})")
            self._completed(place, job, f"{kind}{', large' if size == _LARGE else ''}: {death}")

    # --- together -----------------------------------------------------------------------------------------------------

    def together(self, kind: str, *, same: bool) -> None:
        """Eight exporters at once: of one checkpoint, each with a manifest of its own, or of eight."""
        place = self._begun(kind)
        base = self._job(place, 64)
        jobs = [replace(base, tool=str(n), day=5) if same else replace(base, seed=n, day=n) for n in range(2, 10)]
        what = f"{kind}: eight exporters of {'one checkpoint' if same else 'eight checkpoints'}"
        with reading(place, self.tally):
            outcomes = [running.outcome() for running in [start(job) for job in jobs]]
        self._count(what)
        for outcome in outcomes:
            if outcome is None or outcome.exit_code:
                self.tally.others.append(f"{what}: {outcome.said if outcome else 'one died'}")
        expected = 2 if same else 9
        found = len(place.versions())
        if found != expected:
            (self.tally.lost if found < expected else self.tally.doubled).append(f"{what}: {found} of {expected}")
        self.tally.published += min(found, expected)
        latest = place.latest()
        newest = max(job.day for job in jobs)
        if latest is None or not latest["order"]["finished_at"].startswith(f"2026-01-{1 + newest:02}"):
            self.tally.lost.append(f"{what}: latest is of {latest and latest['order']}, not of day {newest}")
        self.tally.partial += [f"{what}: {wrong}" for wrong in place.read()]

    # --- on the way ---------------------------------------------------------------------------------------------------

    def trouble_in_s3(self, trouble: Trouble, points: int) -> None:
        """The answer of a store that has trouble, or a wire that has, at so many requests."""
        for nth in self.draw.sample(range(1, self._steps("s3", 64) + 1), points):
            place = self._begun("s3")
            with Proxy(self.places.s3, trouble, nth).running() as proxy:
                through = {**self.places.s3, "AWS_ENDPOINT_URL_S3": proxy.url}
                job = self._job(place, 64)
                with reading(place, self.tally):
                    outcome = publish(replace(job, environment=through))
                    what = f"s3: {trouble.value} at request {nth}"
                    self._judge(what, outcome, trouble.is_lasting)
                    self._completed(place, job, what)

    def trouble_at_the_hub(self, fault: Fault, what: str) -> None:
        place = self._begun("hub")
        job = self._job(place, 64)
        self.places.hub.faults.arm(fault)
        with reading(place, self.tally):
            outcome = publish(job)
            self.places.hub.faults.arm()
            self._judge(f"hub: {what}", outcome, lasting=False)
            self._completed(place, job, f"hub: {what}")

    def full_disk(self, uri: str, free: Callable[[], None]) -> None:
        """A folder on a disk that has no room for the file; `free` makes room."""
        place = replace(self.places.make("folder"), uri=uri)  # type: ignore[type-var]
        publish(self._older(place))
        job = self._job(place, _LARGE)
        with reading(place, self.tally):
            outcome = publish(job)
            if outcome.exit_code != 6:
                self.tally.others.append(f"full disk: exit code {outcome.exit_code}, not 6 ({outcome.said})")
            free()
            self._completed(place, job, "folder: a full disk")

    # --- what is common -----------------------------------------------------------------------------------------------

    def _judge(self, what: str, outcome: Outcome, lasting: bool) -> None:
        """It is done in spite of it, or ends as a fault of the destination, in one paragraph that says what to do."""
        if outcome.exit_code not in ((5,) if lasting else (0, 5)):
            self.tally.others.append(f"{what}: exit code {outcome.exit_code} ({outcome.said})")

    def _begun(self, kind: str) -> Place:
        """A fresh place with an older version."""
        place = self.places.make(kind)
        outcome = publish(self._older(place))
        assert outcome.exit_code == 0, outcome
        return place

    def _older(self, place: Place) -> Job:
        return Job(place.uri, seed=1, day=1, environment=place.environment)

    def _job(self, place: Place, size: int) -> Job:
        return Job(
            place.uri,
            seed=2,
            day=2,
            size=size,
            multipart=_PART,
            read_back=self.read_back,
            environment=place.environment,
        )

    def _completed(self, place: Place, job: Job, what: str) -> None:
        """A run that nothing disturbs leaves the place as if nothing ever had."""
        outcome = publish(job)
        self._count(what)
        if outcome.exit_code:
            self.tally.others.append(f"{what}: the next run failed ({outcome.said})")
            return
        wanted, found = self._undisturbed(type(place), job.size), place.state()
        if any(PROBE in path for path in found):
            self._collected(place, job)
            found = place.state()
        if missing := sorted(wanted.items() - found.items()):
            self.tally.lost.append(f"{what}: {missing[:3]}")
        if more := sorted(found.keys() - wanted.keys()):
            self.tally.doubled.append(f"{what}: left over {more[:3]}")
        self.tally.published += not (missing or more)

    def _collected(self, place: Place, job: Job) -> None:
        """The probes of killed exporters are nobody's afterwards: `prune --orphans` collects them."""
        receiver, sender = _PROCESSES.Pipe(duplex=False)
        process = _PROCESSES.Process(target=exporter.collect, args=(job, sender))
        process.start()
        sender.close()
        receiver.recv()
        process.join(_PATIENCE)
        self.tally.collected += 1

    def _count(self, what: str) -> None:
        if self.read_back == "bytes":
            what = f"{what} (every byte read back)"
        self.tally.faults += 1
        self.tally.by_kind[what.partition(":")[0]] += 1
        self.say(f"  {self.tally.faults:3} {what}")

    def _undisturbed(self, kind: type[Place], size: int) -> State:
        name = {"FolderPlace": "folder", "S3Place": "s3", "HubPlace": "hub"}[kind.__name__]
        return _published(self, name, size)[0]

    def _steps(self, kind: str, size: int) -> int:
        return _published(self, kind, size)[1]

    def __hash__(self) -> int:
        return id(self)


@cache
def _published(suite: Suite, kind: str, size: int) -> tuple[State, int]:
    """What a place holds after an older and a newer export that nothing disturbed, and the steps of the newer one."""
    place = suite._begun(kind)
    outcome = publish(suite._job(place, size))
    assert outcome.exit_code == 0, outcome
    return place.state(), outcome.steps


assert Job("").name == NAME
