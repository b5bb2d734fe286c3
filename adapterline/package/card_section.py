"""Which part of a card is adapterline's, and what a new export may change of a card that a person edited.

    ---
    front matter
    ---
                                            a person's
    <!-- adapterline -->
    adapterline's: each export writes it anew
    <!-- /adapterline front-matter=… -->
                                            a person's

The end of the section states the sha256 of the front matter as adapterline wrote it, so that one which nobody touched
is told from one that is a person's by now.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from adapterline.digests import sha256_of_bytes

#: The line that begins adapterline's section. A card without it was written by a person, and is left alone.
MARKER = "<!-- adapterline -->"
_FRONT_MATTER = re.compile(rb"---[ \t]*\r?\n(?:.*?\r?\n)?---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_BEGIN = re.compile(rb"^" + re.escape(MARKER.encode()) + rb"[ \t]*\r?$", re.MULTILINE)
_END = re.compile(rb"^<!-- /adapterline front-matter=([0-9a-f]{64}) -->[ \t]*\r?$", re.MULTILINE)


@dataclass(frozen=True)
class _Card:
    front_matter: bytes
    before: bytes
    section: bytes
    after: bytes
    stated: str  # the sha256 of the front matter that adapterline wrote


def compose_card(front_matter: str, body: str) -> bytes:
    """A card that is adapterline's from the first to the last byte. `front_matter` has its two lines of dashes."""
    head = front_matter.encode()
    end = f"<!-- /adapterline front-matter={sha256_of_bytes(head)} -->"
    return head + f"\n{MARKER}\n\n{body}\n\n{end}\n".encode()


def merge_card(existing: bytes, new: bytes) -> bytes:
    """The card that takes the place of `existing` when `new`, as `make_card` gives it, is published.

    What a person wrote outside of adapterline's section stays byte for byte. So does the front matter, unless it is
    byte for byte what adapterline wrote. A card that has not exactly one section is a person's, and stays as it is.

    `merge_card(made, new) == new` for every card `made` by `make_card`, and merging twice changes nothing more.
    """
    old, fresh = _parsed(existing), _parsed(new)
    if old is None or fresh is None:
        return existing
    untouched = sha256_of_bytes(old.front_matter) == old.stated
    front_matter = fresh.front_matter if untouched else old.front_matter
    return front_matter + old.before + fresh.section + old.after


def _parsed(card: bytes) -> _Card | None:
    head = match[0] if (match := _FRONT_MATTER.match(card)) else b""
    text = card[len(head) :]  # a prompt in the front matter may have any line in it
    begins, ends = list(_BEGIN.finditer(text)), list(_END.finditer(text))
    if len(begins) != 1 or len(ends) != 1 or begins[0].end() > ends[0].start():
        return None
    start, stop = begins[0].start(), ends[0].end()
    return _Card(head, text[:start], text[start:stop], text[stop:], ends[0][1].decode())
