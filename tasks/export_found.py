"""export-found: one checkpoint that a sweep found, exported here or by a deployment.

Its result is kept by Prefect under the content of the checkpoint and all that was asked for: a sweep reads and exports
nothing twice, and a refusal is told once. A refusal counts for this version of adapterline alone, and a failure, or a
checkpoint that is not finished, for nothing.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from importlib.metadata import version
from typing import Any, cast

from prefect import task
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments import run_deployment

from adapterline import errors
from adapterline.errors import AdapterlineError, CheckpointIncompleteError, RefusedError, UsageError
from adapterline.request import name_of
from adapterline.sweeps import FoundRun, SweepItem
from adapterline.values import FORMAT_VERSION, ExportOptions, LineageRecord, digest_of
from tasks.policy import TAGS, say


def _cache_key(context: Any, parameters: dict[str, Any]) -> str | None:
    run: FoundRun = parameters["run"]
    options: ExportOptions = parameters["options"]
    try:
        content = run.digest()
    except AdapterlineError:
        return None
    return digest_of(
        [
            ["format", FORMAT_VERSION, version("adapterline")],
            ["content", run.uri, content],
            ["asked", parameters["step"], parameters["base"], sorted(parameters["to"])],
            ["options", options.model_dump(mode="json")],
        ]
    )


@task(
    name="export-found",
    task_run_name="export-{run.uri}",
    timeout_seconds=12 * 3600,
    tags=TAGS,
    cache_key_fn=_cache_key,
    persist_result=True,
    result_serializer="json",
)
def export_found(
    run: FoundRun,
    step: int | None,
    base: str | None,
    to: tuple[str, ...],
    options: ExportOptions,
    deployment: str | None,
    here: AbstractContextManager[Any],
) -> SweepItem:
    """The item of the summary; raises what is no answer for another night: failures, and what is still being written.

    `deployment` None: the export runs in this process, in `here`, which lets so many in at once; else as a run of that
    deployment, with its destinations and as its work pool allows.
    """
    said = run.descriptor()
    parameters: dict[str, Any] = {
        "checkpoint": run.uri,
        "base": said.base or base,
        "name": said.name or name_of(None, run.uri),
        "run": said.run,
    }
    try:
        if deployment is None:
            with here:
                record = _export_here(parameters, to, _at(options, step))
        else:
            return _export_there(deployment, parameters, options, step)
    except CheckpointIncompleteError:
        raise
    except (RefusedError, UsageError) as error:
        return _refused(run.uri, step, str(error))
    assert record.manifest is not None
    there = bool(record.publications) and all(place.receipt.published for place in record.publications)
    return SweepItem(
        checkpoint=run.uri,
        step=step,
        outcome="skipped" if there or record.outcome == "already-exported" else "exported",
        name=record.name,
        digest=record.manifest.digest,
        why="published already" if there or record.outcome == "already-exported" else "",
    )


def _export_here(parameters: dict[str, Any], to: tuple[str, ...], options: ExportOptions) -> LineageRecord:
    from flows.export import export_adapter

    record: LineageRecord = export_adapter(**parameters, to=to, options=options)
    return record


def _export_there(deployment: str, parameters: dict[str, Any], options: ExportOptions, step: int | None) -> SweepItem:
    run = parameters["run"]
    given = parameters | {"run": run.model_dump(mode="json") if run else None}
    if step is not None:
        given["options"] = _at(options, step).model_dump(mode="json")
    flow_run = cast(FlowRun, run_deployment(deployment, parameters=given))
    state = cast(State[Any], flow_run.state)
    say(f"export-found: {parameters['checkpoint']}, {state.name}")
    common = {"checkpoint": parameters["checkpoint"], "step": step, "name": parameters["name"]}
    if state.is_completed():
        return SweepItem(outcome="exported", why=f"by flow run {flow_run.name}", **common)
    message = (state.message or "").removeprefix("Flow run encountered an exception: ")
    kind = getattr(errors, message.partition(":")[0], None)
    if isinstance(kind, type) and issubclass(kind, RefusedError | UsageError):
        if issubclass(kind, CheckpointIncompleteError):
            raise CheckpointIncompleteError(message)
        return _refused(parameters["checkpoint"], step, message.partition(": ")[2])
    raise AdapterlineError(f"Flow run {flow_run.name} ended {state.name}: {message or 'it says nothing'}.")


def _at(options: ExportOptions, step: int | None) -> ExportOptions:
    return options if step is None else options.model_copy(update={"step": step})


def _refused(uri: str, step: int | None, why: str) -> SweepItem:
    return SweepItem(checkpoint=uri, step=step, outcome="refused", why=why)
