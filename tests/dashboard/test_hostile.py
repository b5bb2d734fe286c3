"""Names, errors and URLs that come from checkpoints, events and records: shown, and nothing more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from adapterline.dashboard.access import Access
from adapterline.dashboard.links import href, hub_url, run_url, version_url, without_secrets
from adapterline.errors import UsageError
from adapterline.lineage import Index
from adapterline.settings import Settings
from adapterline.values import ComponentSummary, FlowRun, LineageRecord, SourceSummary, TrainingRun, Transform
from tests.dashboard.reading import links, parsed, text_of
from tests.dashboard.seeded import add, manifest_of, publication_of
from tests.dashboard.served import served
from tests.lineage.recorded import record_of

MARKUP = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7*7 }}"
SIGNED = "https://user:s3cret@host.example/x.tar?X-Amz-Signature=s3cret&a=1#f"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Index, LineageRecord]:
    index = Index(f"sqlite:///{tmp_path_factory.mktemp('hostile')}/i.sqlite")
    before = manifest_of(1, "hostile", "sd15", "unknown", "StableDiffusionPipeline", {"unet": 4})
    manifest = before.model_copy(
        update={
            "source": SourceSummary(name=MARKUP, digest="ab" * 32, container="safetensors", dialect=MARKUP),
            "training_run": TrainingRun(
                run_id=MARKUP, dataset="javascript:alert(1)", code=SIGNED, trainer="\u202eevil\x1b[31m\x00"
            ),
            "components": {
                MARKUP: ComponentSummary(rank=[], alpha=[], modules=1, adapter_type=MARKUP, dtype=MARKUP, parameters=1)
            },
            "transforms": (Transform(kind=MARKUP, detail=SIGNED, component=MARKUP),),
            "trigger": (MARKUP,),
            "left_out": (MARKUP,),
        }
    )
    publication = publication_of(manifest, "s3://adapters/loras").model_copy(update={"url": "javascript:alert(1)"})
    flow = FlowRun(id=MARKUP, name=MARKUP, url="data:text/html,<script>alert(1)</script>")
    record = add(index, manifest, (publication,), 1, 1, flow_run=flow)
    error = f"{MARKUP} at {SIGNED} and s3://key:s3cret@bucket/a."
    refusal = record_of(
        None, day=3, id="../x?y", checkpoint=SIGNED, name="hostile", error=error, error_type=MARKUP, exit_code=3
    )
    index.add(refusal)
    return index, record


@pytest.fixture(scope="module")
def client(made: tuple[Index, LineageRecord]) -> Iterator[httpx.Client]:
    with served(made[0], Access()) as url, httpx.Client(base_url=url) as client:
        yield client


@pytest.fixture
def paths(made: tuple[Index, LineageRecord]) -> list[str]:
    _, record = made
    assert record.manifest
    version = f"/adapters/hostile/{record.manifest.digest[:12]}"
    lists = ["/adapters", "/adapters/hostile", "/runs", "/failures", "/health", "/which?digest=abababab"]
    return [*lists, version, f"{version}/lineage", f"/runs/{record.id}", "/runs/..%2Fx%3Fy"]


def test_what_looks_like_markup_is_text(client: httpx.Client, paths: list[str]) -> None:
    echoes = [f"/{page}?{httpx.QueryParams({key: MARKUP})}" for page, key in (("adapters", "search"), ("runs", "name"))]
    echoes += [f"/which?{httpx.QueryParams(digest=MARKUP)}", f"/failures?{httpx.QueryParams(name=MARKUP)}"]
    echoes += [f"/adapters?{httpx.QueryParams(sort=MARKUP)}", f"/adapters?{httpx.QueryParams({MARKUP: 'x'})}"]
    seen = 0
    for path in [*paths, *echoes]:
        answer = client.get(path)
        assert answer.status_code in (200, 404, 422), path
        root = parsed(answer.text)
        for each in root.iter():
            assert not [name for name in each.attrib if name.startswith("on")], path
            assert not (each.tag.endswith("}script") and "src" not in each.attrib), path
        seen += "<script>alert(1)</script>" in text_of(root) or MARKUP in answer.text
        seen += "{{ 7*7 }}" in answer.text
        assert "49" not in text_of(root).split()
    assert seen > 8  # it was there, as text


def test_links_lead_to_this_server_or_to_the_web(client: httpx.Client, paths: list[str]) -> None:
    for path in paths:
        for link in links(parsed(client.get(path).text)):
            assert link.startswith(("/", "#", "?", "https://", "http://")), (path, link)
            assert not link.startswith("//")


def test_no_user_no_password_and_no_signature_of_a_url_is_told(client: httpx.Client, paths: list[str]) -> None:
    api = ["/api/v1/runs", "/api/v1/failures", "/api/v1/versions/hostile/latest", "/api/v1/lineage?of=hostile"]
    told = 0
    for path in [*paths, *api, "/api/v1/runs/..%2Fx%3Fy"]:
        text = client.get(path).text
        assert "s3cret" not in text, path
        told += "host.example/x.tar" in text
    assert told > 5


def test_what_turns_a_line_or_a_terminal_is_shown_as_such(client: httpx.Client, paths: list[str]) -> None:
    for path in paths:
        assert not set(client.get(path).text) & set("\u202e\x1b\x00")


def test_a_link_goes_to_the_web_and_carries_nothing_secret() -> None:
    for good in ("https://a.example", "http://127.0.0.1:4200/runs/flow-run/1", "https://huggingface.co/a/b/tree/sha-1"):
        assert href(good) == good
    for bad in (
        None,
        "",
        "javascript:alert(1)",
        "JaVaScRiPt:alert(1)",
        " javascript:alert(1)",
        "java\nscript:alert(1)",
        "data:text/html,x",
        "file:///etc/passwd",
        "//evil.example",
        "https://",
        "https:evil",
        "https://user@host.example",
        "https://a.example/?token=1",
        "https://[broken",
        "https:\\\\evil.example",
    ):
        assert href(bad) is None, bad


def test_of_a_url_its_user_and_its_query_are_left_out_and_nothing_else_of_a_text() -> None:
    assert without_secrets("see s3://k:p@b/x and https://a/b?sig=1, or user@host?") == (
        "see s3://…@b/x and https://a/b?…, or user@host?".replace("?…,", "?…")
    )
    for kept in ("hf://acme/tiny@sha-1", "no url?", "a@b", "https://git.example/a@1", "/adapters?page=2"):
        assert without_secrets(kept) == kept


def test_a_place_on_the_hub_has_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    assert hub_url("hf://acme/tiny@sha-1") == "https://huggingface.co/acme/tiny/tree/sha-1"
    assert hub_url("hf://acme/tiny@refs/pr/1") == "https://huggingface.co/acme/tiny/tree/refs%2Fpr%2F1"
    assert hub_url("s3://bucket/x") is None


def test_pages_have_addresses_for_others_where_the_settings_say_where_they_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert version_url(Settings(), "tiny", "ab" * 32) is None
    monkeypatch.setenv("ADAPTERLINE_DASHBOARD_URL", "https://ml.example/lora/")
    assert version_url(Settings(), "tiny", "ab" * 32) == "https://ml.example/lora/adapters/tiny/abababababab"
    assert run_url(Settings(), "../x") == "https://ml.example/lora/runs/..%2Fx"
    for wrong in ("ml.example", "ftp://ml.example", "https://user:pw@ml.example", "https://ml.example/?a=b"):
        monkeypatch.setenv("ADAPTERLINE_DASHBOARD_URL", wrong)
        with pytest.raises(UsageError, match="ADAPTERLINE_DASHBOARD_URL"):
            Settings()


def test_a_token_that_is_too_short_is_refused_and_not_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ADAPTERLINE_DASHBOARD_TOKEN", "hunter2")
    with pytest.raises(UsageError, match="fewer than 16") as caught:
        Settings()
    assert "hunter2" not in str(caught.value)
