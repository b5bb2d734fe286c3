"""The JSON API: the index's answers, described by an OpenAPI document that they keep."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from pydantic import BaseModel

from adapterline.lineage.answers import RunFilter, VersionFilter
from adapterline.schemas import API, api_bytes
from tests.dashboard.reading import parsed, rows
from tests.dashboard.seeded import Seeded


def asked(client: httpx.Client, path: str, status: int = 200) -> Any:
    answer = client.get(path)
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/json"
    return answer.json()


def as_json(value: BaseModel) -> Any:
    return value.model_dump(mode="json")


def test_every_answer_is_the_indexs_own(client: httpx.Client, seeded: Seeded) -> None:
    index, manifest = seeded.index, seeded.shown.manifest
    assert manifest
    name, sha12 = manifest.name, manifest.digest[:12]
    for path, expected in (
        (
            "versions?limit=7&offset=3&sort=size&order=asc",
            index.versions(sort="size", descending=False, limit=7, offset=3),
        ),
        ("versions?family=flux&search=brick", index.versions(VersionFilter(family="flux", search="brick"))),
        (f"versions/{name}/{sha12}", index.show(f"{name}@{sha12}")),
        (f"versions/{name}/latest", index.show(f"{name}@{sha12}")),
        (f"lineage?of={manifest.digest}", index.show(manifest.digest)),
        ("runs?outcome=failed", index.runs(RunFilter(outcome="failed"))),
        (f"runs/{seeded.shown.id}", index.run(seeded.shown.id)),
        ("failures?limit=4", index.failures(limit=4)),
        (f"which?digest={sha12}", index.digests(sha12)),
        ("counts", index.counts()),
        ("health?days=5&until=2026-05-07", index.health(5, datetime(2026, 5, 7, 23, 59, 59, 999999, tzinfo=UTC))),
    ):
        assert asked(client, f"/api/v1/{path}") == as_json(expected), path


def test_a_table_of_a_page_and_the_api_have_the_same_rows(client: httpx.Client) -> None:
    query = "search=team&sort=name&order=asc"
    there = asked(client, f"/api/v1/versions?{query}")
    page = rows(parsed(client.get(f"/adapters?{query}").text))
    assert [row[1] for row in page] == [version["digest"][:12] for version in there["versions"]]
    assert there["total"] == len(page) == 20


@pytest.mark.parametrize(
    ("path", "status", "error"),
    [
        ("versions/nobody/latest", 404, "UnknownLineageError"),
        ("runs/nobody", 404, "UnknownLineageError"),
        ("lineage?of=nobody", 404, "UnknownLineageError"),
        ("which?digest=xyz", 422, "UsageError"),
        ("lineage", 422, "UsageError"),
        ("versions?limit=501", 422, "UsageError"),
        ("versions?colour=red", 422, "UsageError"),
        ("nowhere", 404, "UsageError"),
    ],
)
def test_an_error_is_the_command_lines_document(client: httpx.Client, path: str, status: int, error: str) -> None:
    document = asked(client, f"/api/v1/{path}", status)
    assert set(document) == {"error", "message", "found", "expected", "remedy"}
    assert document["error"] == error
    assert document["found"] in document["message"]


def test_the_openapi_document_describes_every_answer(client: httpx.Client, seeded: Seeded) -> None:
    document = asked(client, "/api/openapi.json")
    assert all(set(methods) == {"get"} for methods in document["paths"].values())
    assert seeded.shown.manifest
    values = {
        "name": seeded.shown.manifest.name,
        "version": "latest",
        "record": seeded.shown.id,
        "of": seeded.shown.id,
        "digest": seeded.shown.manifest.digest,
    }
    for path, methods in document["paths"].items():
        operation = methods["get"]
        needed = {each["name"]: values[each["name"]] for each in operation.get("parameters", ()) if each["required"]}
        answer = client.get(path.format(**values), params={k: v for k, v in needed.items() if f"{{{k}}}" not in path})
        assert answer.status_code == 200, path
        schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
        validator = jsonschema.Draft202012Validator({**schema, "components": document["components"]})
        validator.validate(answer.json())


def test_the_openapi_document_that_is_kept_is_the_one_that_is_served(client: httpx.Client) -> None:
    kept = (Path(__file__).parents[2] / "docs" / "schemas" / API).read_bytes()
    assert kept == api_bytes(), "The API changed: run `python -m adapterline.schemas docs/schemas`."
    assert json.loads(kept) == asked(client, "/api/openapi.json")


def test_the_reference_page_has_every_call(client: httpx.Client) -> None:
    page = client.get("/api").text
    for path in asked(client, "/api/openapi.json")["paths"]:
        assert f"GET {path}<" in page
