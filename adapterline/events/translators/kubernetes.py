"""The end of a Kubernetes Job: the Job itself, as an API source sends it, or the Event of its completion.

The Job comes whole (Knative's ApiServerSource in its mode Resource), or below `body` (Argo Events' resource source).
The Event is that of reason Completed, as kubernetes-event-exporter posts it, with the Job's annotations in
`involvedObject`. The Job says in annotations what was trained:

    metadata:
      annotations: {adapterline/checkpoint: /mnt/runs/sks-dog, adapterline/name: sks-dog, adapterline/base: sd15}
"""

from __future__ import annotations

from typing import Any

from adapterline.errors import EventError
from adapterline.events.training_completed import TrainingCompleted
from adapterline.events.translators.base import Surroundings, completed, get, moment, run_of

_SENDER = "Kubernetes"


def recognizes(payload: Any) -> bool:
    """Is it Kubernetes'?"""
    return get(_object(payload), "kind") in ("Job", "Event") or get(payload, "involvedObject") is not None


def translate(payload: Any, around: Surroundings) -> tuple[TrainingCompleted, ...]:
    """The run, once its Job is complete. A Job without our annotation is none of ours."""
    found = _object(payload)
    if get(found, "kind") == "Job":
        if not _is_complete(found):
            return ()
        job, ended = get(found, "metadata"), get(found, "status", "completionTime")
    else:
        job, ended = get(found, "involvedObject"), get(found, "lastTimestamp") or get(found, "eventTime")
        if get(job, "kind") != "Job" or get(found, "reason") != "Completed":
            return ()
    notes = get(job, "annotations")
    said = {key.partition("/")[2]: str(value) for key, value in (notes or {}).items() if key.startswith("adapterline/")}
    if not said:
        return ()
    if "checkpoint" not in said:
        raise EventError(
            f"The Job {get(job, 'namespace')}/{get(job, 'name')} is complete and does not say what it left.",
            expected="an annotation adapterline/checkpoint",
            remedy="Add it to the Job's metadata.",
        )
    run = run_of(
        _SENDER,
        run_id=said.get("run-id") or get(job, "uid"),
        finished_at=moment(ended),
        base_model=said.get("base-model"),
        dataset=said.get("dataset"),
        code=said.get("code"),
    )
    return (completed(_SENDER, checkpoint=said["checkpoint"], name=said.get("name"), base=said.get("base"), run=run),)


def _object(payload: Any) -> Any:
    """The Kubernetes object, out of what Argo Events puts around it."""
    body = get(payload, "body")
    return body if get(body, "kind") else payload


def _is_complete(job: Any) -> bool:
    conditions = get(job, "status", "conditions") or ()
    return any(get(each, "type") == "Complete" and get(each, "status") == "True" for each in conditions)
