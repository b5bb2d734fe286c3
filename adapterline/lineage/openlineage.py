"""Each run as events of OpenLineage (https://openlineage.io/spec, version 2-0-2), for catalogues that gather lineage.

What a run read and wrote, what was proven of it, and where it lies, with the facets of the specification. What it has
no facet for is `adapterline_adapter`, whose schema is docs/schemas/openlineage-adapter-v1.json.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Final

import attr
from filelock import FileLock
from openlineage.client import OpenLineageClient
from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState
from openlineage.client.facet_v2 import (
    DatasetFacet,
    dataset_version_dataset,
    error_message_run,
    job_type_job,
    lifecycle_state_change_dataset,
    output_statistics_output_dataset,
    parent_run,
    processing_engine_run,
    schema_dataset,
    source_code_location_job,
    symlinks_dataset,
    test_run,
)
from openlineage.client.serde import Serde
from openlineage.client.transport.file import FileConfig, FileTransport
from openlineage.client.transport.noop import NoopConfig, NoopTransport

from adapterline.lineage.adapter_facet import ADAPTER_FACET, AdapterFacet
from adapterline.lineage.places import place_of
from adapterline.values import ComponentSummary, LineageRecord, Manifest, Publication

PRODUCER: Final = f"urn:adapterline:{version('adapterline')}"
#: As OpenLineage's integrations with other schedulers name it.
NAMESPACE: Final = "OPENLINEAGE_NAMESPACE"
_JOB = "export-adapter"
_ENDS = {
    "exported": RunState.COMPLETE,
    "already-exported": RunState.COMPLETE,
    "validated": RunState.COMPLETE,
    "waiting": RunState.ABORT,
    "refused": RunState.FAIL,
    "failed": RunState.FAIL,
}
_WEB = re.compile(r"https?://\S+", re.IGNORECASE)


@attr.define
class _AdapterDatasetFacet(DatasetFacet):
    # Fields of a facet are those of its class; their names and kinds are AdapterFacet's.
    _additional_skip_redact: ClassVar[list[str]] = []

    @staticmethod
    def _get_schema() -> str:
        return ADAPTER_FACET


def events_of(record: LineageRecord) -> tuple[RunEvent, RunEvent]:
    """The start of a run, and its end. The same record gives the same events, so that they can be sent again."""
    start = _event(RunState.START, record.started_at.isoformat(), record, _job_run(record, {}), outputs=[])
    run = _job_run(record, _run_facets(record))
    end = _event(_ENDS[record.outcome], record.ended_at.isoformat(), record, run, outputs=list(_outputs(record)))
    return start, end


def as_json(event: RunEvent) -> str:
    """One line, as the library's own transports write it."""
    return str(Serde.to_json(event))


def emit(record: LineageRecord, file: str) -> str | None:
    """Sends both events where OpenLineage's own configuration says, else to `file`, a line each.

    `file` "off": nowhere, without such a configuration. If that fails, says why: no export hangs on it.
    """
    # Both are told when the run is over: nobody else would tell the end of a run whose process was killed, and what
    # runs now Prefect knows. The times are the run's own.
    try:
        if _is_configured():
            client = OpenLineageClient()
            for event in events_of(record):
                client.emit(event)
            client.close(timeout=10)
        elif file != "off":
            _append(record, Path(file).expanduser())
    except Exception as error:  # of any transport, which may be anybody's
        return f"{type(error).__name__}: {_without_secrets(str(error))[:300]}"
    return None


def _is_configured() -> bool:
    """By OPENLINEAGE_*, OPENLINEAGE__* or openlineage.yml? https://openlineage.io/docs/client/python/configuration."""
    if os.environ.get("OPENLINEAGE_URL") or os.environ.get("OPENLINEAGE_DISABLED", "").strip().lower() == "true":
        return True
    found = OpenLineageClient(transport=NoopTransport(NoopConfig())).config.transport
    return bool(found and found.get("type"))


def _append(record: LineageRecord, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    client = OpenLineageClient(transport=FileTransport(FileConfig(log_file_path=str(file), append=True)))
    with FileLock(f"{file}.lock", timeout=10):  # a long line is written in several pieces
        for event in events_of(record):
            client.emit(event)


# --- runs and jobs ----------------------------------------------------------------------------------------------------


def _event(kind: RunState, at: str, record: LineageRecord, run: Run, outputs: list[OutputDataset]) -> RunEvent:
    name = f"{_JOB}.{record.name}" if record.name else _JOB
    facets: dict[str, Any] = {
        "jobType": job_type_job.JobTypeJobFacet(
            processingType="BATCH", integration="ADAPTERLINE", jobType="EXPORT", producer=PRODUCER
        )
    }
    training = record.known_run
    if training and training.code and (url := _WEB.match(training.code)):
        facets["sourceCodeLocation"] = source_code_location_job.SourceCodeLocationJobFacet(
            type="git", url=_without_secrets(url[0]), producer=PRODUCER
        )
    return RunEvent(
        eventTime=at,
        eventType=kind,
        run=run,
        job=Job(namespace=_namespace(), name=name, facets=facets),
        inputs=list(_inputs(record)),
        outputs=outputs,
        producer=PRODUCER,
    )


def _job_run(record: LineageRecord, facets: dict[str, Any]) -> Run:
    if record.flow_run and (parent := _uuid(record.flow_run.id)):
        facets["parent"] = parent_run.ParentRunFacet(
            run=parent_run.Run(runId=parent),
            job=parent_run.Job(namespace="prefect", name=_JOB),
            producer=PRODUCER,
        )
    return Run(runId=str(uuid.uuid5(uuid.NAMESPACE_URL, f"{PRODUCER.rpartition(':')[0]}:{record.id}")), facets=facets)


def _run_facets(record: LineageRecord) -> dict[str, Any]:
    facets: dict[str, Any] = {}
    tools = dict(record.manifest.tools) if record.manifest else {}
    facets["processing_engine"] = processing_engine_run.ProcessingEngineRunFacet(
        version=tools.get("adapterline", version("adapterline")), name="adapterline", producer=PRODUCER
    )
    if record.error is not None:
        facets["errorMessage"] = error_message_run.ErrorMessageRunFacet(
            message=_without_secrets(f"{record.error_type or 'Error'}: {record.error}"),
            programmingLanguage="PYTHON",
            producer=PRODUCER,
        )
    report = record.report or (record.manifest.validation if record.manifest else None)
    if report is not None:
        facets["test"] = test_run.TestRunFacet(
            tests=[
                *(
                    test_run.TestExecution(
                        name=f"{check.name} of {check.component}" if check.component else check.name,
                        status="pass" if check.passed else "fail",
                        severity="error",
                        type=check.name,
                        expected=str(check.limit),
                        actual=str(check.observed),
                        params={"component": check.component} if check.component else None,
                    )
                    for check in report.checks
                ),
                *(
                    test_run.TestExecution(name=name, status="skip", type=name, description=why)
                    for name, why in report.not_run.items()
                ),
            ],
            producer=PRODUCER,
        )
    return facets


# --- data sets --------------------------------------------------------------------------------------------------------


def _inputs(record: LineageRecord) -> Iterator[InputDataset]:
    """The checkpoint, the model that it was trained on, and what it was trained with."""
    manifest, training = record.manifest, record.known_run
    yield _input(record.checkpoint, manifest.source.digest if manifest else None)
    if manifest and manifest.base.model != "unknown":
        revision = manifest.base.revision
        yield _input(f"hf://{manifest.base.model}", None if revision == "unknown" else revision)
    elif training and training.base_model:
        model, _, revision = training.base_model.partition("@")
        yield _input(f"hf://{model}", revision or None)
    if training and training.dataset:
        yield _input(training.dataset, None)


def _input(uri: str, at: str | None) -> InputDataset:
    namespace, name = _named(uri)
    return InputDataset(namespace=namespace, name=name, facets=_version(at) if at else {})


def _outputs(record: LineageRecord) -> Iterator[OutputDataset]:
    """The adapter, by its name; where it lies are further names of it."""
    manifest = record.manifest
    if manifest is None or not (record.publications or _ENDS[record.outcome] == RunState.COMPLETE):
        return
    changed = lifecycle_state_change_dataset.LifecycleStateChange
    facets: dict[str, Any] = {
        **_version(manifest.digest),
        "schema": schema_dataset.SchemaDatasetFacet(
            fields=[_field(*item) for item in manifest.components.items()], producer=PRODUCER
        ),
        "symlinks": symlinks_dataset.SymlinksDatasetFacet(
            identifiers=[_symlink(each) for each in record.publications], producer=PRODUCER
        ),
        "adapterline_adapter": _adapter_facet(record, manifest),
    }
    if record.outcome == "exported":
        facets["lifecycleStateChange"] = lifecycle_state_change_dataset.LifecycleStateChangeDatasetFacet(
            lifecycleStateChange=changed.OVERWRITE if record.previous else changed.CREATE, producer=PRODUCER
        )
    statistics = output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(
        size=sum(file.size for file in manifest.files), fileCount=len(manifest.files), producer=PRODUCER
    )
    yield OutputDataset(
        namespace=_namespace(), name=manifest.name, facets=facets, outputFacets={"outputStatistics": statistics}
    )


def _version(at: str) -> dict[str, Any]:
    return {"version": dataset_version_dataset.DatasetVersionDatasetFacet(datasetVersion=at, producer=PRODUCER)}


def _field(name: str, summary: ComponentSummary) -> schema_dataset.SchemaDatasetFacetFields:
    stated = summary.model_dump(mode="json")
    return schema_dataset.SchemaDatasetFacetFields(
        name=name,
        type=f"{summary.adapter_type} rank {stated['rank']}",
        description=f"alpha {stated['alpha']}, {summary.modules} modules, {summary.parameters} parameters, "
        f"{stated['dtype']}",
    )


def _symlink(publication: Publication) -> symlinks_dataset.Identifier:
    namespace, name = _named(publication.receipt.location)
    return symlinks_dataset.Identifier(namespace=namespace, name=name, type="LOCATION")


def _adapter_facet(record: LineageRecord, manifest: Manifest) -> Any:
    facet = AdapterFacet(
        record=record.id,
        outcome=record.outcome,
        family=manifest.family,
        pipeline=manifest.base.pipeline,
        architecture=manifest.base.architecture,
        digest=manifest.digest,
        source_digest=manifest.source.digest,
        source_container=manifest.source.container,
        source_dialect=manifest.source.dialect,
        components=manifest.components,
        transforms=manifest.transforms,
        left_out=manifest.left_out,
        loads=manifest.loads,
        consumers=manifest.consumers,
        files={file.path: file.sha256 for file in manifest.files},
        parents=manifest.training_run.parents if manifest.training_run else (),
        previous=record.previous,
        published={_without_users(place_of(each.receipt)): each.latest for each in record.publications},
        drift={name: each.cosine for name, each in record.drift.components.items()} if record.drift else {},
    )
    stated = facet.model_dump(mode="json", exclude_none=True)  # as the library leaves it out
    return _AdapterDatasetFacet(producer=PRODUCER).with_additional_properties(**stated)


def _named(uri: str) -> tuple[str, str]:
    """Namespace and name by https://openlineage.io/docs/spec/naming; for what it has no rule, the scheme and the rest.

    `s3://bucket` and the key; `file` and a path; `hf` and `organization/name`; of a mere name, our own namespace.
    """
    # Elsewhere than on the web, ? and # are characters of keys and paths like any other.
    uri = _without_secrets(uri) if _WEB.match(uri) else _without_users(uri)
    scheme, found, rest = uri.partition("://")
    if not found:
        return ("file" if "/" in uri else _namespace()), uri
    if scheme == "file":
        return "file", rest
    if scheme == "hf":
        return "hf", rest.partition("@")[0].rstrip("/")
    host, _, path = rest.partition("/")
    return f"{scheme}://{host}", path or "/"


_USER = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^\s/'\"]*@", re.IGNORECASE)
_QUERY = re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s?#'\"]*)[?#][^\s'\"]*", re.IGNORECASE)


def _without_secrets(text: str) -> str:
    """Addresses without user and password, and without query and fragment, where signatures and tokens are."""
    return _QUERY.sub(r"\1", _without_users(text))


def _without_users(text: str) -> str:
    return _USER.sub(r"\1", text)


def _namespace() -> str:
    return os.environ.get(NAMESPACE) or "adapterline"


def _uuid(text: str) -> str | None:
    try:
        return str(uuid.UUID(text))
    except ValueError:
        return None
