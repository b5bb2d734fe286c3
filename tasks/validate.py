"""validate: the exported files are loaded as a consumer loads them, and their effect is compared with the source's."""

from __future__ import annotations

from typing import Any

from prefect import task

from adapterline import checkpoints, validation
from adapterline.digests import sha256_of_file
from adapterline.families.base import Base
from adapterline.scratch import Scratch
from adapterline.validation.embeddings import tokenizers_digest
from adapterline.validation.weights import weights_stamp
from adapterline.values import FORMAT_VERSION, Bundle, ExportOptions, Source, ValidationReport, digest_of
from tasks.policy import TAGS


def _cache_key(context: Any, parameters: dict[str, Any]) -> str | None:
    """By digests that are taken from the files now: a cached report is never believed of a file that has changed."""
    bundle, source, base, options = (parameters[name] for name in ("bundle", "source", "base", "options"))
    folder = parameters["scratch"].folder(bundle.digest)
    try:
        now = [[file.path, sha256_of_file(folder / file.path)] for file in bundle.files]
    except OSError:
        return None
    return digest_of(
        [
            ["format", FORMAT_VERSION],
            ["bundle", bundle.digest, now, [load.model_dump(mode="json") for load in bundle.loads]],
            ["source", source.digest],
            ["base", base.architecture, base.pipeline, tokenizers_digest(base), weights_stamp(base)],
            ["options", options.model_dump(mode="json", exclude={"adapter_config"})],
            ["tools", sorted(validation.tool_versions().items())],
        ]
    )


@task(
    name="validate",
    task_run_name="validate",
    timeout_seconds=3600,
    tags=TAGS,
    cache_key_fn=_cache_key,
    persist_result=True,
    result_serializer="json",
)
def validate(bundle: Bundle, source: Source, base: Base, options: ExportOptions, scratch: Scratch) -> ValidationReport:
    """See `adapterline.validation.validate_bundle`. ValidationFailedError, with the report, if a check fails."""
    again = checkpoints.reopen(source, options)
    report = validation.validate_bundle(bundle, scratch.folder(bundle.digest), again, base, options)
    validation.require(report, bundle.files[0].path)
    return report
