"""Where an export comes from, as an in-toto statement with SLSA's predicate: a function of the manifest.

https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md, https://slsa.dev/spec/v1.0/provenance. Equal
manifests have equal statements: who ran it, when and where is not in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from adapterline.digests import sha256_of_bytes
from adapterline.validation.files import MANIFEST_NAME
from adapterline.values import Manifest, canonical_json

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
#: What the parameters below mean.
BUILD_TYPE = "urn:adapterline:export:v1"
BUILDER = "urn:adapterline"
_COMMIT = re.compile(r"[0-9a-f]{40}")


def make_provenance(manifest: Manifest) -> bytes:
    """The bytes of the statement. Its subjects are the files of the bundle, and the manifest itself."""
    version = manifest.tools.get("adapterline", "unknown")
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": _subjects(manifest, manifest.to_bytes()),
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": _parameters(manifest),
                "resolvedDependencies": [*_materials(manifest), *_code(manifest)],
            },
            "runDetails": {"builder": {"id": BUILDER, "version": {"adapterline": version}}},
        },
    }
    return canonical_json(statement)


def contradiction(provenance: bytes, manifest: Manifest, manifest_bytes: bytes) -> str:
    """What `provenance` says otherwise than the manifest beside it; "" if nothing.

    Its files, checkpoint and base are compared, and not its bytes: another version may say more.
    """
    try:
        statement = json.loads(provenance)
        kind, subjects = (statement["_type"], statement["predicateType"]), statement["subject"]
        materials = statement["predicate"]["buildDefinition"]["resolvedDependencies"]
        other = [material["name"] for material in _materials(manifest) if material not in materials]
    except (ValueError, TypeError, KeyError):
        return "it is no in-toto statement of SLSA provenance"
    if kind != (STATEMENT_TYPE, PREDICATE_TYPE):
        return f"it is of the type {kind[0]}, {kind[1]}"
    if subjects != _subjects(manifest, manifest_bytes):
        return "its subjects are other files"
    return f"it does not name the {other[0]}" if other else ""


def _subjects(manifest: Manifest, manifest_bytes: bytes) -> list[dict[str, Any]]:
    files = {file.path: file.sha256 for file in manifest.files} | {MANIFEST_NAME: sha256_of_bytes(manifest_bytes)}
    return [{"name": path, "digest": {"sha256": sha256}} for path, sha256 in sorted(files.items())]


def _parameters(manifest: Manifest) -> dict[str, Any]:
    return {
        "name": manifest.name,
        "layouts": list(dict.fromkeys(file.layout for file in manifest.files)),
        "leftOut": list(manifest.left_out),
        "step": manifest.source.step,
        "trainingRun": manifest.training_run.run_id if manifest.training_run else None,
    }


def _materials(manifest: Manifest) -> Iterator[dict[str, Any]]:
    """The checkpoint and the base, with what is known of them.

    Two digests are adapterline's own, and say so: of a checkpoint of several files (see `Source.digest`), and of a base
    of which only the configurations were read.
    """
    source, base = manifest.source, manifest.base
    yield {"name": f"checkpoint {source.name}", "digest": {"adapterlineSource": source.digest}}
    found: dict[str, Any] = {"name": "base", "digest": {"adapterlineArchitecture": base.architecture}}
    if base.model != "unknown":
        revision = "" if base.revision == "unknown" else f"@{base.revision}"
        found["uri"] = f"pkg:huggingface/{base.model}{revision}"
    if _COMMIT.fullmatch(base.revision):
        found["digest"]["gitCommit"] = base.revision
    yield found


def _code(manifest: Manifest) -> Iterator[dict[str, Any]]:
    """The training code, where it is known by a commit or an address."""
    run = manifest.training_run
    if run and run.code:
        place, _, revision = run.code.rpartition("@")
        if _COMMIT.fullmatch(revision):
            yield {"name": f"code {place}", "digest": {"gitCommit": revision}}
        elif "://" in run.code:
            yield {"name": "code", "uri": run.code}
