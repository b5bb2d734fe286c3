from __future__ import annotations

from adapterline.families import FAMILIES
from tests.families.page import PAGE, current


def test_page_of_the_families_is_current() -> None:
    assert PAGE.read_text() == current(), "run `python -m tests.families.page`"


def test_page_has_every_family_and_every_call_that_is_not_the_usual_one() -> None:
    text = PAGE.read_text()
    assert all(f"| `{family.name}` | {family.title} |" in text for family in FAMILIES)
    assert text.count("load_into_transformer_2=True") == 1
