"""The dashboard in a real browser: with JavaScript and without, on a phone, in the dark, and judged by axe-core."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from tests.dashboard.browsing import chromium
from tests.dashboard.conftest import TOKEN
from tests.dashboard.seeded import Seeded, every_page

pytestmark = pytest.mark.slow

AXE = (Path(__file__).parent / "axe" / "axe.min.js").read_text()
Open = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def open_page(browser: Browser, url: str) -> Iterator[Open]:
    """A page at a path of the dashboard. At the end there was no error, no violation and no other origin."""
    contexts: list[BrowserContext] = []
    wrong: list[str] = []

    def open_(path: str, base: str = url, width: int = 1280, height: int = 800, **options: Any) -> Page:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(f"{page.url}: {error}"))
        page.on("console", lambda said: wrong.append(f"{page.url}: {said.text}") if said.type == "error" else None)
        page.on("request", lambda asked: wrong.append(asked.url) if not asked.url.startswith(base) else None)
        page.goto(f"{base}{path}")
        return page

    yield open_
    for context in contexts:
        context.close()
    # What a browser says itself of a page that is not there, and of a token that is wrong.
    assert [each for each in wrong if not re.search(r"nobody.*status of 404|login.*status of 401", each)] == []


def versions(page: Page) -> list[str]:
    return page.locator("#results tbody tr td:nth-child(2)").all_inner_texts()


def test_with_javascript_the_table_alone_is_swapped_and_the_address_follows(open_page: Open, url: str) -> None:
    page = open_page("/adapters")
    page.evaluate("window.isSamePage = true")
    expect(page.locator("#count")).to_have_text("1 to 50 of 61 versions")
    page.get_by_label("Search").press_sequentially("team")
    expect(page.locator("#count")).to_have_text("1 to 20 of 20 versions")
    expect(page).to_have_url(f"{url}/adapters?search=team")
    page.get_by_role("link", name="size").click()
    expect(page.get_by_role("columnheader", name="size")).to_have_attribute("aria-sort", "descending")
    expect(page).to_have_url(f"{url}/adapters?search=team&sort=size")
    page.get_by_text("Filter", exact=True).click()
    page.get_by_label("Family").select_option("flux")
    expect(page.locator("#count")).to_have_text("1 to 10 of 10 versions")
    expect(page).to_have_url(f"{url}/adapters?family=flux&search=team&sort=size")
    sorted_ = versions(page)
    assert page.evaluate("window.isSamePage")
    page.reload()
    assert versions(page) == sorted_
    page.go_back()
    expect(page).to_have_url(f"{url}/adapters?search=team&sort=size")
    expect(page.locator("#count")).to_have_text("1 to 20 of 20 versions")
    expect(page.get_by_label("Search")).to_have_value("team")


def test_pages_of_the_list_are_swapped_too(open_page: Open, url: str) -> None:
    page = open_page("/adapters")
    first = versions(page)
    page.evaluate("window.isSamePage = true")
    page.get_by_role("link", name="Next").click()
    expect(page.locator("#count")).to_have_text("51 to 61 of 61 versions")
    expect(page).to_have_url(f"{url}/adapters?page=2")
    assert not set(versions(page)) & set(first)
    assert page.evaluate("window.isSamePage")


def test_runs_are_filtered_as_soon_as_something_is_chosen(open_page: Open, url: str) -> None:
    page = open_page("/runs")
    page.get_by_label("Outcome").select_option("refused")
    expect(page.locator("#count")).to_have_text("1 to 6 of 6 runs")
    page.get_by_label("Adapter").fill("broken-0")
    page.keyboard.press("Enter")
    expect(page.locator("#count")).to_have_text("1 to 2 of 2 runs")
    expect(page).to_have_url(f"{url}/runs?outcome=refused&name=broken-0")


def test_without_javascript_the_same_form_and_links_do_the_same(open_page: Open) -> None:
    page = open_page("/adapters", java_script_enabled=False)
    page.get_by_label("Search").fill("team")
    page.get_by_role("button", name="Show").click()
    expect(page.locator("#count")).to_have_text("1 to 20 of 20 versions")
    page.get_by_role("link", name="size").click()
    expect(page.get_by_role("columnheader", name="size")).to_have_attribute("aria-sort", "descending")
    page.get_by_text("Filter", exact=True).click()
    page.get_by_label("Family").select_option("flux")
    page.get_by_role("button", name="Show").click()
    expect(page.locator("#count")).to_have_text("1 to 10 of 10 versions")
    assert "sort=size" in page.url
    page.get_by_role("link", name="Show all").click()
    page.get_by_role("link", name="Next").click()
    expect(page.locator("#count")).to_have_text("51 to 61 of 61 versions")


@pytest.mark.parametrize("javascript", [True, False])
def test_from_the_list_to_a_version_its_drawing_and_the_one_before_it(
    open_page: Open, seeded: Seeded, url: str, javascript: bool
) -> None:
    assert seeded.shown.manifest
    page = open_page("/adapters", java_script_enabled=javascript)
    page.get_by_role("link", name=seeded.shown.manifest.digest[:12]).click()
    expect(page).to_have_url(f"{url}{seeded.path}")
    image = page.get_by_role("img", name="a photo of sks dog")
    image.scroll_into_view_if_needed()
    expect(image).to_have_js_property("complete", True)
    expect(image).to_have_js_property("naturalWidth", 512)
    page.get_by_role("link", name="Where it comes from and where it went").click()
    page.locator("svg.graph a", has_text="version before").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("studio-portrait")
    assert page.url.startswith(f"{url}/adapters/studio-portrait/")
    assert page.url != f"{url}{seeded.path}"


def test_from_the_failures_to_a_run_by_keyboard(open_page: Open, url: str) -> None:
    page = open_page("/adapters")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="To the content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    page.get_by_role("navigation", name="Pages").get_by_role("link", name="Failures").focus()
    page.keyboard.press("Enter")
    expect(page).to_have_url(f"{url}/failures")
    expect(page.get_by_role("link", name="Failures")).to_have_attribute("aria-current", "page")
    page.locator("main a").first.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="FamilyError")).to_be_visible()


def test_a_person_signs_in_and_out(open_page: Open, guarded: str) -> None:
    page = open_page("/runs?outcome=failed", base=guarded)
    page.get_by_label("Token").fill("no, not this one")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_have_text("This is not the token.")
    page.get_by_label("Token").fill(TOKEN)
    page.get_by_role("button", name="Sign in").click()
    expect(page).to_have_url(f"{guarded}/runs?outcome=failed")
    expect(page.locator("#count")).to_have_text("1 to 4 of 4 runs")
    page.get_by_role("button", name="Sign out").click()
    expect(page).to_have_url(f"{guarded}/login")
    page.goto(f"{guarded}/adapters")
    expect(page.get_by_label("Token")).to_be_visible()


def test_a_link_from_another_site_opens_the_page_for_whoever_is_signed_in(
    browser: Browser, url: str, guarded: str
) -> None:
    """A SameSite=Strict cookie does not come along from there: localhost is another site than 127.0.0.1."""
    page = browser.new_page()
    page.goto(f"{guarded}/login")
    page.get_by_label("Token").fill(TOKEN)
    page.get_by_role("button", name="Sign in").click()
    expect(page).to_have_url(f"{guarded}/adapters")
    page.goto(f"{url.replace('127.0.0.1', 'localhost')}/adapters")
    page.evaluate(
        "url => { const a = document.createElement('a'); a.href = url; a.id = 'there'; a.text = 'there';"
        " document.body.prepend(a); }",
        f"{guarded}/runs?outcome=failed",
    )
    page.locator("#there").click()
    expect(page).to_have_url(f"{guarded}/runs?outcome=failed")
    expect(page.locator("#count")).to_have_text("1 to 4 of 4 runs")
    page.close()


def test_no_page_scrolls_sideways_on_a_phone(open_page: Open, seeded: Seeded, url: str) -> None:
    page = open_page("/adapters", width=360, height=740)
    for path in every_page(seeded).values():
        page.goto(f"{url}{path}")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, path


def test_in_the_dark_it_is_dark(open_page: Open) -> None:
    def ground(scheme: str) -> int:
        page = open_page("/adapters", color_scheme=scheme)
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(map(int, re.findall(r"\d+", colour)[:3]))

    assert ground("dark") < 100 < 700 < ground("light")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_axe_finds_nothing(open_page: Open, seeded: Seeded, url: str, guarded: str, scheme: str, width: int) -> None:
    page = open_page("/adapters?family=flux", color_scheme=scheme, width=width)
    found = {"filtered": _violations(page)}
    for name, path in every_page(seeded).items():
        page.goto(f"{url}{path}")
        found[name] = _violations(page)
    login = open_page("/login", base=guarded, color_scheme=scheme, width=width)
    found["login"] = _violations(login)
    assert {name: each for name, each in found.items() if each} == {}


def _violations(page: Page) -> list[str]:
    page.evaluate(AXE)
    results = page.evaluate("axe.run({resultTypes: ['violations']})")
    return [
        f"{each['impact']} {each['id']}: {each['help']}: {each['nodes'][0]['html'][:200]}"
        for each in results["violations"]
    ]
