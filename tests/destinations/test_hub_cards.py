"""A card on `main` that a person edited: what is theirs stays, what is adapterline's follows the next export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from adapterline.destinations.hub import HubDestination
from adapterline.package.card import CARD_NAME, MARKER, images_shown
from adapterline.values import Package, Publication
from tests.hub_double.server import Hub
from tests.packages import order_of

REPO = "acme/tiny"
Make = Callable[..., Package]


def publish(package: Package, day: int, **how: bool) -> Publication:
    place = HubDestination("hf://acme", "tiny", **how)  # type: ignore[arg-type]
    return place.release(package, place.stage(package), order_of(day))


def card_of(package: Package) -> bytes:
    return (package.folder / CARD_NAME).read_bytes()


def card_at(hub: Hub, revision: str = "main") -> bytes:
    found = hub.content(REPO, revision)
    assert found is not None
    return found[CARD_NAME]


def assert_published(hub: Hub, package: Package, publication: Publication) -> None:
    """What counts is at the tag: the card there is the receipt's, whatever the package's is."""
    assert card_at(hub, f"sha-{package.sha12}") == card_at(hub)
    assert HubDestination("hf://acme", "tiny").verify(publication)
    hub.requests.clear()
    again = publish(package, 2)
    assert again.receipt.files == publication.receipt.files
    assert hub.writes == []


def test_a_card_that_nobody_edited_is_the_next_exports(hub: Hub, make: Make) -> None:
    publish(make(1), 1)
    package = make(2)
    assert_published(hub, package, publish(package, 2))
    assert card_at(hub) == card_of(package)


def test_words_around_the_section_stay_and_the_section_is_the_next_exports(hub: Hub, make: Make) -> None:
    first, second = make(1), make(2)
    publish(first, 1)
    mark = MARKER.encode()
    above, below = b"# Our style\n\nHow we use it.\n\n", b"\n## Thanks\n\nto Ada.\n"
    hub.put(REPO, {CARD_NAME: card_of(first).replace(mark, above + mark) + below})
    assert_published(hub, second, publish(second, 2))
    assert card_at(hub) == card_of(second).replace(mark, above + mark) + below


def test_words_inside_the_section_go_with_it(hub: Hub, make: Make) -> None:
    first, second = make(1), make(2)
    publish(first, 1)
    hub.put(REPO, {CARD_NAME: card_of(first).replace(b"seed 1", b"seed 7")})
    assert_published(hub, second, publish(second, 2))
    assert card_at(hub) == card_of(second)


def test_front_matter_that_a_person_edited_stays(hub: Hub, make: Make) -> None:
    first, second = make(1), make(2)
    publish(first, 1)
    hub.put(REPO, {CARD_NAME: card_of(first).replace(b"- lora\n", b"- lora\n- ours\nlicense: mit\n")})
    assert_published(hub, second, publish(second, 2))
    assert card_at(hub).startswith(b"---\ntags:\n- lora\n- ours\nlicense: mit\n---\n")
    assert b"seed 2" in card_at(hub)
    assert b"seed 1" not in card_at(hub)


@pytest.mark.parametrize("edited", [b"# All my own\n", b"# Mine\n\n<!-- adapterline -->\n\nthe end is gone\n", b""])
def test_a_card_without_the_section_stays_for_ever(hub: Hub, make: Make, edited: bytes) -> None:
    publish(make(1), 1)
    hub.put(REPO, {CARD_NAME: edited})
    for day, seed in ((2, 2), (3, 3)):
        package = make(seed)
        publication = publish(package, day)
        assert card_at(hub) == card_at(hub, f"sha-{package.sha12}") == edited
        assert HubDestination("hf://acme", "tiny").verify(publication)


def test_a_card_that_was_there_before_adapterline_stays(hub: Hub, make: Make) -> None:
    hub.put(REPO, {CARD_NAME: b"# Mine\n"})
    package = make()
    assert_published(hub, package, publish(package, 2))
    assert card_at(hub) == b"# Mine\n"


def test_an_edit_after_a_release_leaves_the_version_as_it_was(hub: Hub, make: Make) -> None:
    package = make()
    publication = publish(package, 2)
    edited = card_of(package) + b"\nA word more.\n"
    hub.put(REPO, {CARD_NAME: edited})
    assert HubDestination("hf://acme", "tiny").verify(publication)
    publish(package, 2)
    assert card_at(hub) == edited
    assert card_at(hub, f"sha-{package.sha12}") == card_of(package)


def test_an_image_that_a_person_shows_stays(hub: Hub, make: Make) -> None:
    publish(make(1), 1)
    image = "images/0123456789abcdef.png"
    hub.put(REPO, {CARD_NAME: f"# Mine\n\n![a picture]({image})\n".encode(), image: b"png"})
    hub.put(REPO, {"images/fedcba9876543210.png": b"of an older export"})
    publish(make(2), 2)
    there = hub.content(REPO, "main")
    assert there is not None
    assert images_shown(there[CARD_NAME]) == (image,)
    assert there[image] == b"png"
    assert "images/fedcba9876543210.png" not in there


def test_a_pull_request_offers_the_merged_card(hub: Hub, make: Make, tmp_path: Path) -> None:
    first, second = make(1), make(2)
    publish(first, 1)
    hub.put(REPO, {CARD_NAME: card_of(first) + b"\nA word more.\n"})
    publish(second, 2, pull_request=True)
    assert card_at(hub, "refs/pr/1") == card_of(second) + b"\nA word more.\n"
