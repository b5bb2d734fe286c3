"""What a person wrote into a card is never lost, and what adapterline wrote is always that of the newest export."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterline.package.card import MARKER, merge_card
from adapterline.package.card_section import compose_card

OLD = compose_card("---\ntags:\n- lora\n---\n", "# old\n\nrank 4")
NEW = compose_card("---\ntags:\n- lora\nlicense: mit\n---\n", "# new\n\nrank 8")
SECTION = NEW[NEW.index(MARKER.encode()) :]


def test_a_card_that_nobody_edited_becomes_the_new_one() -> None:
    assert merge_card(OLD, NEW) == NEW
    assert merge_card(NEW, NEW) == NEW


def test_what_a_person_wrote_around_the_section_stays_and_the_section_is_new() -> None:
    edited = OLD.replace(MARKER.encode(), b"Read this first.\n\n" + MARKER.encode()) + b"\n## Thanks\n\nTo everybody.\n"
    merged = merge_card(edited, NEW)
    head = NEW[: NEW.index(MARKER.encode())]
    assert merged == head + b"Read this first.\n\n" + SECTION + b"\n## Thanks\n\nTo everybody.\n"


def test_what_a_person_wrote_into_the_section_is_replaced() -> None:
    assert merge_card(OLD.replace(b"rank 4", b"rank 4, which is few"), NEW) == NEW


@pytest.mark.parametrize(
    "front_matter",
    [b"---\ntags:\n- mine\n---\n", b"---\r\ntags:\r\n- lora\r\n---\r\n", b"---\n---\n", b""],
    ids=["edited", "other line ends", "emptied", "taken away"],
)
def test_a_front_matter_that_a_person_touched_stays_and_the_section_is_new(front_matter: bytes) -> None:
    edited = front_matter + OLD[OLD.index(b"---\n\n") + 4 :]
    merged = merge_card(edited, NEW)
    assert merged == front_matter + b"\n" + SECTION
    assert merge_card(merged, NEW) == merged


@pytest.mark.parametrize(
    "card",
    [
        b"# Mine\n\nWritten by hand.\n",
        OLD.replace(MARKER.encode(), b""),
        OLD[: OLD.index(b"<!-- /adapterline")],
        OLD + SECTION,
        f"About `{MARKER}`, which is no line of its own.\n".encode(),
        b"\xff\xfe not even text",
        b"",
    ],
    ids=["by hand", "no begin", "no end", "two sections", "in a sentence", "binary", "empty"],
)
def test_a_card_that_has_not_one_section_stays_as_it_is(card: bytes) -> None:
    assert merge_card(card, NEW) == card


def test_an_editor_that_ends_lines_otherwise_does_not_hide_the_section() -> None:
    merged = merge_card(OLD.replace(b"\n", b"\r\n"), NEW)
    assert merged.count(MARKER.encode()) == 1
    assert b"rank 8" in merged
    assert b"rank 4" not in merged


def test_a_prompt_that_looks_like_the_section_is_none() -> None:
    looks = compose_card(f"---\nwidget:\n- text: |\n{MARKER}\n---\n", "# old")
    assert merge_card(looks, NEW) == NEW


@given(above=st.binary(max_size=60), below=st.binary(max_size=60))
def test_merging_again_changes_nothing_and_no_byte_of_a_person_is_lost(above: bytes, below: bytes) -> None:
    start = OLD.index(MARKER.encode())
    edited = OLD[:start] + above + b"\n" + OLD[start:] + below
    merged = merge_card(edited, NEW)
    assert merge_card(merged, NEW) == merged
    assert merged == edited or (above + b"\n" + SECTION.rstrip(b"\n") in merged and merged.endswith(b"\n" + below))
