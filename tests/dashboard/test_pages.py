"""What is on the pages: the same as in the index, at addresses that say it all, as valid HTML."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from urllib.parse import urlencode

import httpx
import pytest

from adapterline.lineage.answers import Sort, VersionFilter
from tests.dashboard.reading import XHTML, links, parsed, rows, text_of
from tests.dashboard.seeded import Seeded, every_page


def shown(client: httpx.Client, path: str) -> list[str]:
    """The digits of the versions in the table at an address, in their order."""
    answer = client.get(path)
    assert answer.status_code == 200, answer.text
    if "<tbody>" not in answer.text:
        return []
    return [cells[1] for cells in rows(parsed(answer.text))]


def test_every_page_is_valid_html_and_every_link_on_it_leads_somewhere(client: httpx.Client, seeded: Seeded) -> None:
    asked = set[str]()
    for name, path in every_page(seeded).items():
        answer = client.get(path)
        assert answer.status_code == (404 if name == "problem" else 200), path
        root = parsed(answer.text)
        for link in links(root):
            if not link.startswith(("http://", "https://", "#")):
                asked.add(httpx.URL(str(answer.url)).join(link).raw_path.decode())
            elif link.startswith("#"):
                assert any(each.attrib.get("id") == link[1:] for each in root.iter()), link
    some = {path for kind in _kinds(asked).values() for path in sorted(kind)[:6]}
    assert len(some) > 50
    assert {path: status for path in some if (status := client.get(path).status_code) not in (200, 307)} == {}


def _kinds(paths: set[str]) -> dict[tuple[str, int, tuple[str, ...]], set[str]]:
    """Addresses by the page that answers them."""
    found: dict[tuple[str, int, tuple[str, ...]], set[str]] = {}
    for path in paths:
        url = httpx.URL(path)
        kind = url.path.split("/")[1], url.path.count("/"), tuple(sorted(url.params))
        found.setdefault(kind, set()).add(path)
    return found


@pytest.mark.parametrize("sort", ["created", "finished", "name", "size"])
@pytest.mark.parametrize("order", ["asc", "desc"])
def test_the_table_has_what_the_index_has_in_its_order_page_by_page(
    client: httpx.Client, seeded: Seeded, sort: Sort, order: str
) -> None:
    expected = seeded.index.versions(sort=sort, descending=order == "desc", limit=100)
    there = [
        digits
        for page in (1, 2)
        for digits in shown(client, f"/adapters?{urlencode({'sort': sort, 'order': order, 'page': page})}")
    ]
    assert there == [version.sha12 for version in expected.versions]
    assert len(there) == expected.total == 61


@pytest.mark.parametrize(
    "wanted",
    [
        {"search": "portrait"},
        {"family": "flux"},
        {"base": "Wan-AI/*"},
        {"alias": "production"},
        {"run_id": "zen-garden-006"},
        {"checkpoint": "checkpoint-600"},
        {"name": "team-?-*", "family": "flux"},
        {"since": "2026-05-03T00:00:00Z", "until": "2026-05-04T00:00:00Z"},
    ],
)
def test_a_filter_gives_what_the_index_gives_with_it(
    client: httpx.Client, seeded: Seeded, wanted: dict[str, str]
) -> None:
    expected = [each.sha12 for each in seeded.index.versions(VersionFilter.model_validate(wanted)).versions]
    assert 0 < len(expected) < 30
    assert shown(client, f"/adapters?{urlencode(wanted)}") == expected


def test_a_day_is_a_day_in_utc_and_what_a_form_leaves_empty_filters_nothing(client: httpx.Client) -> None:
    day = shown(client, "/adapters?since=2026-05-03&until=2026-05-04&search=&family=&base=&page=1&sort=created")
    assert len(day) == 6
    assert day == shown(client, "/adapters?since=2026-05-03T00:00:00Z&until=2026-05-04T00:00:00Z")


def test_a_form_without_javascript_asks_for_all_that_a_link_does(client: httpx.Client) -> None:
    """The order is chosen by a link; the form that is sent next keeps it, and begins at the first page."""
    root = parsed(client.get("/adapters?family=flux&sort=size&order=asc&page=1").text)
    form = next(each for each in root.iter(f"{XHTML}form"))
    assert (form.attrib["method"], form.attrib["action"]) == ("get", "/adapters")
    fields = {}
    for each in root.iter():
        inside = each in list(form.iter()) or each.attrib.get("form") == form.attrib["id"]
        if inside and each.tag == f"{XHTML}input":
            fields[each.attrib["name"]] = each.attrib["value"]
        if inside and each.tag == f"{XHTML}select":
            chosen = [option.attrib["value"] for option in each if "selected" in option.attrib]
            fields[each.attrib["name"]] = (chosen or [""])[0]
    assert fields["family"] == "flux"
    assert "page" not in fields
    assert shown(client, f"/adapters?{urlencode(fields)}") == shown(client, "/adapters?family=flux&sort=size&order=asc")


def test_htmx_gets_the_table_alone_and_the_address_of_the_whole_page(client: httpx.Client) -> None:
    query = {"search": "team", "family": "", "order": "asc", "sort": "size"}
    part = client.get("/adapters", params=query, headers={"HX-Request": "true"})
    assert part.headers["HX-Push-Url"] == "/adapters?search=team&sort=size&order=asc"
    assert "HX-Request" in part.headers["Vary"]
    assert "<html" not in part.text
    whole = client.get(part.headers["HX-Push-Url"])
    assert whole.headers["Vary"] == "HX-Request"
    assert rows(parsed(f"<!doctype html><title>x</title>{part.text}")) == rows(parsed(whole.text))
    # To go back in the history is to see the page.
    history = {"HX-Request": "true", "HX-History-Restore-Request": "true"}
    assert "<html" in client.get("/adapters", headers=history).text


def test_a_name_has_its_versions_and_a_version_its_proof_files_and_places(client: httpx.Client, seeded: Seeded) -> None:
    manifest = seeded.shown.manifest
    assert manifest
    versions = client.get(f"/adapters/{manifest.name}")
    assert len(rows(parsed(versions.text))) == 11
    text = text_of(parsed(client.get(seeded.path).text))
    for part in (
        manifest.digest,
        manifest.files[0].sha256,
        str(manifest.files[0].tensors_sha256),
        manifest.source.digest,
        "effect (relative change of the weight)",
        "3.1e-070.0005passed",
        "no base weights",  # why a check was not run
        "fold-scale: alpha/rank 0.5 into the factors",
        "s3://adapters/loras-sd15/studio-portrait/" + manifest.digest[:12],
        f"pipe.load_lora_weights('acme/studio-portrait', weight_name='{manifest.files[0].path}', "
        f"revision='sha-{manifest.digest[:12]}')",
        "Rank of each component. text_encoder: rank 8, 24 modules; unet: rank 8, 32, 128 modules",
        "Prefect: wise-otter",
        "a photo of sks dog seed 0",
    ):
        assert part in text, part


def test_a_version_is_found_by_alias_and_by_any_digits_and_has_one_address(
    client: httpx.Client, seeded: Seeded
) -> None:
    manifest = seeded.shown.manifest
    assert manifest
    for way in (manifest.digest, manifest.digest[:8]):
        answer = client.get(f"/adapters/{manifest.name}/{way}")
        assert (answer.status_code, answer.headers["location"]) == (307, seeded.path)
    assert client.get("/adapters/anime-lines/production").headers["location"].startswith("/adapters/anime-lines/")
    assert client.get(f"/adapters/zen-garden/{manifest.digest[:12]}").status_code == 404
    assert client.get("/adapters/zen-*").status_code == 404


def test_the_drawing_leads_from_the_dataset_to_the_places_and_the_list_says_the_same(
    client: httpx.Client, seeded: Seeded
) -> None:
    root = parsed(client.get(f"{seeded.path}/lineage").text)
    svg = next(each for each in root.iter() if each.tag.endswith("}svg"))
    drawn = [text_of(title) for title in svg.iter() if title.tag.endswith("}title")]
    kinds = [title.partition(":")[0] for title in drawn]
    chain = ["dataset", "resumed from", "training run", "checkpoint", "version before", "adapter"]
    assert kinds == [*chain, "place", "place", "place"]
    assert len([each for each in svg.iter() if each.tag.endswith("}path")]) == 8
    listed = next(root.iter(f"{XHTML}dl"))
    assert [text_of(each) for each in listed if each.tag == f"{XHTML}dt"] == kinds
    before = next(each.attrib["href"] for each in svg.iter() if each.attrib.get("href", "").startswith("/adapters/"))
    above = parsed(client.get(f"{before}/lineage").text)
    assert "training went on to studio-portrait" in text_of(above)


def test_runs_are_filtered_by_outcome_and_a_run_says_what_became_of_it(client: httpx.Client, seeded: Seeded) -> None:
    refused = rows(parsed(client.get("/runs?outcome=refused").text))
    assert len(refused) == 6
    assert all("refused" in row[1] for row in refused)
    run = text_of(parsed(client.get(f"/runs/{seeded.shown.id}").text))
    for part in ("exported", seeded.shown.checkpoint, "wise-otter", "sd-scripts 0.9.1", "latest moved"):
        assert part in run, part
    why = text_of(parsed(client.get(f"/runs/{0xE000:012x}").text))
    assert "step-900.bin is a pickle with os.system in it. Expected tensors alone." in why
    assert "Exit code 3" in why


def test_failures_are_grouped_by_what_they_ended_with_the_most_frequent_first(client: httpx.Client) -> None:
    root = parsed(client.get("/failures").text)
    heads = [text_of(each) for each in root.iter(f"{XHTML}h2")]
    assert heads == [
        "FamilyError refused 3",
        "CheckpointError refused 3",
        "MachineError failed 2",
        "PublishError failed 2",
    ]
    assert "pass the right --base" in text_of(root)
    one = parsed(client.get("/failures?name=broken-1").text)
    assert "3 runs" in text_of(one)


def test_a_digest_of_whatever_kind_tells_its_version(client: httpx.Client, seeded: Seeded) -> None:
    manifest = seeded.shown.manifest
    assert manifest
    version = f"studio-portrait {manifest.digest[:12]}"
    for digest, what in (
        (manifest.digest, "the version"),
        (manifest.files[0].sha256[:8].upper(), "the file pytorch_lora_weights.safetensors"),
        (f" sha256:{manifest.files[0].tensors_sha256}\n", "the tensors of pytorch_lora_weights.safetensors"),
        (manifest.source.digest[:20], "its checkpoint checkpoint-6100"),
    ):
        found = rows(parsed(client.get("/which", params={"digest": digest}).text))
        assert [row[:2] for row in found] == [[version, what]]
    assert client.get("/which?digest=00000000").status_code == 404
    wrong = client.get("/which?digest=no-digest")
    assert wrong.status_code == 422
    assert "8 to 64 hexadecimal digits" in wrong.text


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        ("/nowhere", 404, "There is no such page"),
        ("/adapters/nobody", 404, "has no adapter"),
        ("/runs/nobody", 404, "has no run"),
        ("/adapters?page=0", 422, "greater than or equal to 1"),
        ("/adapters?sort=colour", 422, "sort"),
        ("/adapters?since=yesterday", 422, "since"),
        ("/adapters?colour=red", 422, "colour"),
    ],
)
def test_what_cannot_be_is_a_page_like_any_other(client: httpx.Client, path: str, status: int, says: str) -> None:
    answer = client.get(path)
    root = parsed(answer.text)
    assert answer.status_code == status
    assert says in text_of(root)
    assert any(each.attrib.get("aria-label") == "Pages" for each in root.iter())


def test_a_page_that_is_not_there_says_how_many_there_are(client: httpx.Client) -> None:
    text = client.get("/adapters?page=9").text
    assert "There is no page 9: 61 versions are on 2." in text
    assert 'href="/adapters?page=2"' in text


def test_static_files_are_kept_for_ever_and_pages_are_not(client: httpx.Client) -> None:
    page = client.get("/adapters")
    assert page.headers["Cache-Control"] == "no-cache"
    style = re.search(r'href="(/static/[^"]+/style.css)"', page.text)
    assert style
    assert client.get(style[1]).headers["Cache-Control"] == "public, max-age=31536000, immutable"
    assert client.get(re.sub(r"/[0-9a-f]{16}/", "/0123456789abcdef/", style[1])).status_code == 404


def test_a_name_shows_how_its_versions_moved_and_a_version_how_far_it_is(client: httpx.Client, seeded: Seeded) -> None:
    drifts = seeded.index.drifts("studio-portrait")
    root = parsed(client.get("/adapters/studio-portrait").text)
    norm, cosine = (text_of(next(svg.iter())) for svg in root.iter() if svg.tag.endswith("}svg"))
    unet = [each for each in drifts if each.component == "unet"]
    assert f"unet: {', '.join(f'{each.norm:.4g}' for each in unet)}." in norm
    assert f"unet: {', '.join(f'{each.cosine:.4g}' for each in unet)}." in cosine
    table = [table for table in root.iter(f"{XHTML}table") if "How far each version is" in text_of(table)]
    assert len(list(table[0].iter(f"{XHTML}tr"))) == 1 + len(drifts)
    version = text_of(parsed(client.get(seeded.path).text))
    assert f"Compared with studio-portrait {seeded.shown.previous[:12] if seeded.shown.previous else ''}" in version
    assert "blocks.4.attn.to_q" in version
    far = next(each for each in seeded.index.versions(limit=100).versions if each.run_id == "brick-toys-050")
    assert "cosine 0.120, expected 0.5 or more" in client.get(f"/adapters/brick-toys/{far.sha12}").text


def test_the_health_of_some_days_is_the_indexs_and_their_last_is_whole(client: httpx.Client, seeded: Seeded) -> None:
    found = seeded.index.health(5, datetime(2026, 5, 7, 23, 59, 59, 999999, tzinfo=UTC))
    root = parsed(client.get("/health?days=5&until=2026-05-07").text)
    text = text_of(root)
    assert found.outcomes.success_ratio
    assert f"{found.outcomes.success_ratio:.1%}" in text
    table = [[text_of(cell) for cell in row] for row in next(root.iter(f"{XHTML}tbody"))]
    assert [row[:7] for row in table] == [
        [f"{day.day}", *map(str, day.outcomes.model_dump().values())] for day in reversed(found.days)
    ]
    charts = [text_of(next(svg.iter())) for svg in root.iter() if svg.tag.endswith("}svg")]
    assert f"succeeded: {', '.join(str(day.outcomes.succeeded) for day in found.days)}." in charts[0]
    assert len(charts) == 3
    assert "63 found: 6 exported, 54 skipped, 1 unfinished, 1 refused, 1 failed" in text
    assert "studio-portrait" in text  # the last export, whenever it was
    assert client.get("/health?days=0").status_code == client.get("/health?until=never").status_code == 422
    assert client.get("/health").status_code == 200


def test_prometheus_scrapes_it(client: httpx.Client) -> None:
    answer = client.get("/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert "adapterline_versions 61.0" in answer.text
