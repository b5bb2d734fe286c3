"""SimpleTuner's raw webhooks (`webhook_type: raw`): documentation/api/WEBHOOKS.md and helpers/webhooks/events.py.

Its end, the stage `training_complete`, names no path. The stage `model_save` before it does, in its message alone, and
each `training.checkpoint` does.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from adapterline.errors import EventError
from adapterline.events.training_completed import TrainingCompleted
from adapterline.events.translators.base import Surroundings, completed, get, moment, needed, run_of

_SENDER = "SimpleTuner"
_SAVED = "Model saved to "


def translate(payload: Any, around: Surroundings) -> tuple[TrainingCompleted, ...]:
    """The run, once it is complete: its last checkpoint is what an earlier message told."""
    kind = needed(payload, "type", sender=_SENDER, kind=str)
    job = str(get(payload, "job_id") or "")
    if kind == "training.checkpoint":
        if path := get(payload, "checkpoint", "path"):
            around.remember(job, _absolute(path))
        return ()
    if kind != "lifecycle.stage" or get(payload, "stage", "status") != "completed":
        return ()
    stage, message = get(payload, "stage", "key"), get(payload, "message")
    if stage == "model_save" and isinstance(message, str) and message.startswith(_SAVED):
        around.remember(job, _absolute(message.removeprefix(_SAVED)))
    if stage != "training_complete":
        return ()
    if (checkpoint := around.recall(job)) is None:
        raise EventError(
            f"SimpleTuner's job {job!r} is complete, and none of its checkpoints was told of.",
            expected="a training.checkpoint, or the stage model_save, before training_complete",
            remedy="Set log_level to info in its webhook configuration; the next sweep finds this run.",
        )
    run = run_of(_SENDER, run_id=job or None, finished_at=moment(get(payload, "timestamp")), trainer="SimpleTuner")
    return (completed(_SENDER, checkpoint=checkpoint, run=run),)


def _absolute(path: Any) -> str:
    if not isinstance(path, str) or not PurePosixPath(path).is_absolute():
        raise EventError(
            f"SimpleTuner tells of the path {path!r:.200}, which is another one in every folder.",
            expected="an absolute path",
            remedy="Set an absolute output_dir.",
        )
    return path
