"""A few of the faults of `make faults`, at every kind of destination."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.places import places
from tests.faults.proxy import Trouble
from tests.faults.suite import Suite


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    with places(tmp_path_factory.mktemp("faults")) as found:
        yield Suite(found, random.Random(7), say=lambda line: None)


def check(suite: Suite) -> None:
    tally = suite.tally
    assert tally.passed, [*tally.lost, *tally.doubled, *tally.partial, *tally.others]
    assert tally.faults
    assert tally.reads > tally.faults, "somebody looked all the time"


@pytest.mark.parametrize("kind", ["folder", "s3", "hub"])
def test_who_is_killed_anywhere_is_completed_by_the_next_run(suite: Suite, kind: str) -> None:
    suite.kill(kind, 2)
    check(suite)


def test_eight_exporters_of_one_checkpoint_leave_one_version_and_none_fails(suite: Suite) -> None:
    suite.together("s3", same=True)
    check(suite)


def test_a_wire_that_turns_a_bit_publishes_nothing_wrong(suite: Suite) -> None:
    suite.trouble_in_s3(Trouble.FLIPPED_UP, 1)
    suite.kill("s3", 1, large=True)
    check(suite)


def test_nor_does_one_where_every_byte_is_read_back(suite: Suite) -> None:
    reading = replace(suite, read_back="bytes")
    reading.trouble_in_s3(Trouble.FLIPPED_UP, 1)
    reading.trouble_in_s3(Trouble.FLIPPED_DOWN, 1)
    check(reading)


def test_what_the_suite_looks_for_it_finds(suite: Suite) -> None:
    """A place that was tampered with after the fact: a file is gone, another one is left over."""
    place = suite._begun("folder")
    job = suite._job(place, 64)
    root = Path(place.uri)
    suite._completed(place, job, "nothing")
    before = place.state()
    (root / "tiny" / "half").write_bytes(b"x")
    assert place.state() != before
    weights = next(root.glob("tiny/*/pytorch_lora_weights.safetensors"))
    weights.write_bytes(b"")
    latest = place.latest()
    assert latest is not None
    (root / "tiny" / latest["sha12"] / "manifest.json").unlink()
    assert place.read()
