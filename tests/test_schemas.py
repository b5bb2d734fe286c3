from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from adapterline.schemas import API, SCHEMAS, schema_bytes
from adapterline.values import ExportOptions, LineageRecord, Manifest, TrainingRun
from tests.line import run_line
from tests.publishing import manifest_of

FOLDER = Path(__file__).parent.parent / "docs" / "schemas"


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Of a real export of a real training run, cut short."""
    from adapterline.demo.base import build_base
    from adapterline.demo.train import train

    folder = tmp_path_factory.mktemp("schemas")
    build_base(folder / "base")
    train(folder / "base", folder / "checkpoint", steps=1)
    return manifest_of(run_line(folder / "checkpoint", folder / "base", folder), "demo-lora")


@pytest.fixture(scope="module")
def record(manifest: Manifest) -> LineageRecord:
    now = datetime(2026, 5, 1, tzinfo=UTC)
    return LineageRecord(
        id="0123456789ab",
        key="0" * 64,
        outcome="validated",
        started_at=now,
        ended_at=now,
        checkpoint="checkpoint",
        name=manifest.name,
        to=(),
        options=ExportOptions(dtype="bfloat16"),
        run=TrainingRun(run_id="run-7", finished_at=now, step=4),
        manifest=manifest,
    )


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_published_schema_is_the_models(name: str) -> None:
    assert (FOLDER / name).read_bytes() == schema_bytes(SCHEMAS[name]), (
        "The model changed: run `python -m adapterline.schemas docs/schemas`, and see whether its version must change."
    )


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_field_of_a_schema_is_explained(name: str) -> None:
    schema = json.loads((FOLDER / name).read_text())
    unexplained = [
        f"{title}.{field}"
        for title, node in {"": schema, **schema["$defs"]}.items()
        for field, said in node.get("properties", {}).items()
        if not said.get("description")
    ]
    assert not unexplained


def test_there_is_no_schema_without_a_model() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {*SCHEMAS, API}


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_schema_is_valid_itself(name: str) -> None:
    schema = _schema(name)
    jsonschema.validators.validator_for(schema).check_schema(schema)


def test_the_bytes_of_a_manifest_are_valid(manifest: Manifest) -> None:
    jsonschema.validate(json.loads(manifest.to_bytes()), _schema("manifest-v1.json"))


def test_a_record_is_valid(record: LineageRecord) -> None:
    jsonschema.validate(record.model_dump(mode="json"), _schema("record-v1.json"))


def _unknown_field(document: dict[str, Any]) -> None:
    document["colour"] = "red"


def _short_digest(document: dict[str, Any]) -> None:
    document["digest"] = document["digest"][:12]


def _other_version(document: dict[str, Any]) -> None:
    document["schema"] = "adapterline/manifest/v2"


def _no_files(document: dict[str, Any]) -> None:
    del document["files"]


@pytest.mark.parametrize("spoil", [_unknown_field, _short_digest, _other_version, _no_files])
def test_what_is_no_manifest_is_invalid(manifest: Manifest, spoil: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads(manifest.to_bytes())
    spoil(document)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, _schema("manifest-v1.json"))


def _schema(name: str) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads((FOLDER / name).read_text())
    return schema
