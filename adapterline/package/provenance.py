"""Where an export comes from, as an in-toto statement with SLSA's predicate: a function of the manifest.

https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md, https://slsa.dev/spec/v1.0/provenance. Equal
manifests have equal statements: who ran it, when and where is not in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from adapterline.digests import sha256_of_bytes
from adapterline.values import Manifest, canonical_json

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
#: What the parameters below mean.
BUILD_TYPE = "urn:adapterline:export:v1"
BUILDER = "urn:adapterline"
_COMMIT = re.compile(r"[0-9a-f]{40}")


def make_provenance(manifest: Manifest, data: bytes | None = None) -> bytes:
    """The bytes of `provenance.json`. Its subjects are the files of the bundle, and the manifest itself.

    `data` is the manifest as it was written, if this is not the version that wrote it.
    """
    files = {file.path: file.sha256 for file in manifest.files}
    files["manifest.json"] = sha256_of_bytes(manifest.to_bytes() if data is None else data)
    version = manifest.tools.get("adapterline", "unknown")
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": path, "digest": {"sha256": sha256}} for path, sha256 in sorted(files.items())],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": _parameters(manifest),
                "resolvedDependencies": list(_dependencies(manifest)),
            },
            "runDetails": {"builder": {"id": BUILDER, "version": {"adapterline": version}}},
        },
    }
    return canonical_json(statement)


def _parameters(manifest: Manifest) -> dict[str, Any]:
    return {
        "name": manifest.name,
        "layouts": list(dict.fromkeys(file.layout for file in manifest.files)),
        "leftOut": list(manifest.left_out),
        "step": manifest.source.step,
        "trainingRun": manifest.training_run.run_id if manifest.training_run else None,
    }


def _dependencies(manifest: Manifest) -> Iterator[dict[str, Any]]:
    """The checkpoint, the base, the training code: each with what is known of it.

    Two digests are adapterline's own, and say so: of a checkpoint of several files (see `Source.digest`), and of a base
    of which only the configurations were read.
    """
    source, base, run = manifest.source, manifest.base, manifest.training_run
    yield {"name": f"checkpoint {source.name}", "digest": {"adapterlineSource": source.digest}}
    found: dict[str, Any] = {"name": "base", "digest": {"adapterlineArchitecture": base.architecture}}
    if base.model != "unknown":
        revision = "" if base.revision == "unknown" else f"@{base.revision}"
        found["uri"] = f"pkg:huggingface/{base.model}{revision}"
    if _COMMIT.fullmatch(base.revision):
        found["digest"]["gitCommit"] = base.revision
    yield found
    if run and run.code:
        place, _, revision = run.code.rpartition("@")
        if _COMMIT.fullmatch(revision):
            yield {"name": f"code {place}", "digest": {"gitCommit": revision}}
        elif "://" in run.code:
            yield {"name": "code", "uri": run.code}
