"""The provenance is an in-toto statement with SLSA's predicate, and says no more than the manifest."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
from in_toto_attestation.v1.statement import Statement

from adapterline.package.provenance import make_provenance
from adapterline.values import Manifest, TrainingRun
from tests.packages import make_package

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return make_package(tmp_path / "package", configs={"peft/unet/adapter_config.json": b"{}\n"}).manifest


def dependencies(manifest: Manifest) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(make_provenance(manifest))["predicate"]["buildDefinition"][
        "resolvedDependencies"
    ]
    return found


def test_the_libraries_of_in_toto_read_it_and_find_nothing_missing(manifest: Manifest) -> None:
    document = json.loads(make_provenance(manifest))
    statement = Statement([], "", {})
    statement.pb = json_format.ParseDict(document, type(statement.pb)())
    statement.validate()
    predicate = json_format.ParseDict(document["predicate"], provenance_pb2.Provenance())
    assert predicate.build_definition.build_type
    assert predicate.run_details.builder.id
    for dependency in predicate.build_definition.resolved_dependencies:
        assert dependency.uri or dependency.digest


def test_its_subjects_are_the_files_and_the_manifest(manifest: Manifest) -> None:
    subjects = {each["name"]: each["digest"]["sha256"] for each in json.loads(make_provenance(manifest))["subject"]}
    assert subjects == {file.path: file.sha256 for file in manifest.files} | {
        "manifest.json": hashlib.sha256(manifest.to_bytes()).hexdigest()
    }


def test_its_materials_are_the_checkpoint_the_base_at_its_commit_and_the_code(manifest: Manifest) -> None:
    base = manifest.base.model_copy(update={"model": "acme/base", "revision": COMMIT})
    run = TrainingRun(code=f"https://github.com/acme/train@{COMMIT}")
    known = manifest.model_copy(update={"base": base, "training_run": run})
    assert dependencies(known) == [
        {"name": "checkpoint checkpoint-7", "digest": {"adapterlineSource": manifest.source.digest}},
        {
            "name": "base",
            "uri": f"pkg:huggingface/acme/base@{COMMIT}",
            "digest": {"adapterlineArchitecture": base.architecture, "gitCommit": COMMIT},
        },
        {"name": "code https://github.com/acme/train", "digest": {"gitCommit": COMMIT}},
    ]
    assert [each["name"] for each in dependencies(manifest)] == ["checkpoint checkpoint-7", "base"]
    assert "uri" not in dependencies(manifest)[1]


def test_equal_manifests_have_equal_provenance(manifest: Manifest) -> None:
    again = Manifest.model_validate_json(manifest.to_bytes())
    assert make_provenance(again) == make_provenance(manifest)
