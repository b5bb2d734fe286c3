"""What Prefect's server is told, over HTTP: unlike `prefect.events.emit_event` this says whether it arrived."""

from __future__ import annotations

import hashlib
import logging
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from adapterline.dashboard.links import run_url
from adapterline.errors import AdapterlineError, MachineError
from adapterline.events import TrainingCompleted
from adapterline.settings import Settings
from adapterline.sweeps.runs import Descriptor, describe

if TYPE_CHECKING:
    from adapterline.audits import AuditedVersion
    from adapterline.values import DriftFromLatest, LineageRecord

#: A message of a platform could not be understood; an automation may alert on it.
NOT_UNDERSTOOD: Final = "training.run.not-understood"
#: A published version is not what was published, or cannot be read.
DRIFTED: Final = "adapter.drifted"
#: What an export does to the weights is far from what the one before it did.
EFFECT_DRIFTED: Final = "adapter.effect-drifted"
_JOB = "adapterline-job-"  # of variables: the last checkpoint of each job of a trainer whose end names none
_FORGOTTEN = timedelta(days=30)
log = logging.getLogger("adapterline.prefect_events")


def send(event: dict[str, Any]) -> None:
    """Tells Prefect of one event. MachineError if there is no server, transient if it cannot be reached."""
    from prefect.client.orchestration import get_client

    with _server_errors("The event was not taken by"), get_client(sync_client=True) as client:
        client.request("POST", "/events", json=[event]).raise_for_status()


def told(record: LineageRecord) -> None:
    """Tells Prefect what became of an export: `adapter.exported`, `adapter.refused`, `adapter.failed`, ...

    A server that this process started for itself is not told: it ends with it.
    """
    from prefect.settings import PREFECT_API_URL

    if not PREFECT_API_URL.value():
        return
    manifest = record.manifest
    payload = {
        "record": record.id,
        "outcome": record.outcome,
        "name": record.name,
        "checkpoint": record.checkpoint,
        "run_id": record.run.run_id if record.run else None,
        "digest": manifest.digest if manifest else None,
        "family": manifest.family if manifest else None,
        "published": [each.url for each in record.publications],
        "dashboard": run_url(Settings(), record.id),
        "error": record.error_type,
        "message": record.error,
    }
    _tell(_event_of(record, f"adapter.{record.outcome}", payload))
    if record.outcome == "exported" and record.drift and record.drift.beyond:
        _tell(_event_of(record, EFFECT_DRIFTED, payload | {"drift": _without_layers(record.drift)}))


def _event_of(record: LineageRecord, event: str, payload: dict[str, Any]) -> dict[str, Any]:
    version = f".{record.manifest.digest[:12]}" if record.manifest else ""
    run = record.flow_run
    return {
        "id": str(uuid.uuid4()),
        "event": event,
        "occurred": datetime.now(UTC).isoformat(),
        "resource": {
            "prefect.resource.id": f"adapterline.adapter.{record.name or 'unnamed'}{version}",
            "prefect.resource.name": record.name or "unnamed",
        },
        "related": [{"prefect.resource.id": f"prefect.flow-run.{run.id}", "prefect.resource.role": "flow-run"}]
        if run
        else [],
        "payload": payload,
    }


def _without_layers(drift: DriftFromLatest) -> dict[str, Any]:
    """A thousand layers are no event."""
    return drift.model_dump(mode="json", exclude={"components": {"__all__": {"modules"}}})


def drifted(version: AuditedVersion) -> None:
    """Tells Prefect what an audit found wrong with a version. That nobody could be told is only logged."""
    _tell(
        {
            "id": str(uuid.uuid4()),
            "event": DRIFTED,
            "occurred": datetime.now(UTC).isoformat(),
            "resource": {
                "prefect.resource.id": f"adapterline.adapter.{version.name}.{version.digest[:12]}",
                "prefect.resource.name": f"{version.name} {version.digest[:12]}",
            },
            "related": [],
            "payload": version.model_dump(mode="json"),
        }
    )


def _tell(event: dict[str, Any]) -> None:
    try:
        send(event)
    except MachineError as unreached:
        log.warning("%s", unreached)


class Prefect:
    """`adapterline.events.receiver.Told`: runs that ended become events, and jobs are remembered as variables.

    Variables are there at once, outlive the receiver, and are the same for several of them.
    """

    def complete(self, event: TrainingCompleted) -> str:
        """Tells of a run that ended."""
        send(event.to_event())
        return str(event.id)

    def refused(self, sender: str, error: AdapterlineError, message: str) -> None:
        """Tells of a message that could not be understood. That nobody could be told of it is only logged."""
        _tell(
            {
                "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"adapterline/{NOT_UNDERSTOOD}/{sender}/{message}")),
                "event": NOT_UNDERSTOOD,
                "occurred": datetime.now(UTC).isoformat(),
                "resource": {"prefect.resource.id": f"adapterline.listener.{sender}"},
                "related": [],
                "payload": {"sender": sender, "error": type(error).__name__, "message": str(error)[:2000]},
            }
        )

    def remember(self, job: str, checkpoint: str) -> None:
        """Keeps the last checkpoint of a job."""
        from prefect.variables import Variable

        with _server_errors("The job's checkpoint could not be kept by"):
            Variable.set(_variable(job), {"job": job, "checkpoint": checkpoint}, tags=["adapterline"], overwrite=True)

    def recall(self, job: str) -> str | None:
        """The last checkpoint of a job. What was kept longer ago than a month is forgotten on the way."""
        from prefect.client.orchestration import get_client
        from prefect.variables import Variable

        with _server_errors("The job's checkpoint could not be had from"):
            with get_client(sync_client=True) as client:
                for kept in client.read_variables():
                    updated = kept.updated or datetime.now(UTC)
                    if kept.name.startswith(_JOB) and updated < datetime.now(UTC) - _FORGOTTEN:
                        client.delete_variable_by_name(kept.name)
            found: Any = Variable.get(_variable(job))
        return str(found["checkpoint"]) if found else None

    def describe(self, uri: str) -> Descriptor:
        """What lies in the run's `training-run.json`."""
        return describe(uri)


def _variable(job: str) -> str:
    """Names of variables have lower-case letters, digits and dashes alone."""
    return _JOB + hashlib.sha256(job.encode()).hexdigest()[:24]


@contextmanager
def _server_errors(what: str) -> Iterator[None]:
    import httpx
    from prefect.settings import PREFECT_API_URL

    if not PREFECT_API_URL.value():
        raise MachineError(
            "PREFECT_API_URL is not set: nobody would be told.",
            expected="the URL of the Prefect server that the deployment is on",
            remedy="Set PREFECT_API_URL, or use a Prefect profile.",
        )
    try:
        yield
    except httpx.HTTPError as error:
        raise MachineError(
            f"{what} {PREFECT_API_URL.value()}: {str(error).splitlines()[0][:200]}.",
            expected="a Prefect server",
            remedy="Check PREFECT_API_URL and the server, then notify again: it is the same event.",
            transient=True,
        ) from error
