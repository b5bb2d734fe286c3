"""Amazon SageMaker's "Training Job State Change", as EventBridge delivers it, several times for each change.

docs.aws.amazon.com/sagemaker/latest/dg/automating-sagemaker-with-eventbridge.html. The event does not name the model:
it lies where DescribeTrainingJob's ModelArtifacts would say, below the output path and the job's name.
"""

from __future__ import annotations

from typing import Any

from adapterline.events.training_completed import TrainingCompleted
from adapterline.events.translators.base import Surroundings, completed, get, moment, needed, run_of

_SENDER = "SageMaker"
_TYPE = "SageMaker Training Job State Change"
#: The job's tags that say what the job itself cannot.
_CHECKPOINT, _NAME, _BASE, _MODEL = (f"adapterline:{what}" for what in ("checkpoint", "name", "base", "base-model"))


def recognizes(payload: Any) -> bool:
    """Is it SageMaker's?"""
    return bool(get(payload, "source") == "aws.sagemaker")


def translate(payload: Any, around: Surroundings) -> tuple[TrainingCompleted, ...]:
    """The run, once its job is Completed. Its tags may name checkpoint, name and base (`adapterline:name`)."""
    if get(payload, "detail-type") != _TYPE or get(payload, "detail", "TrainingJobStatus") != "Completed":
        return ()
    detail = payload["detail"]
    job = needed(detail, "TrainingJobName", sender=_SENDER, kind=str)
    tags = _tags(get(detail, "Tags"))
    run = run_of(
        _SENDER,
        run_id=job,
        finished_at=moment(get(detail, "TrainingEndTime")),
        base_model=tags.get(_MODEL),
        trainer="SageMaker",
    )
    checkpoint = tags.get(_CHECKPOINT) or _artifacts(detail, job)
    return (completed(_SENDER, checkpoint=checkpoint, name=tags.get(_NAME), base=tags.get(_BASE), run=run),)


def _artifacts(detail: Any, job: str) -> str:
    if told := get(detail, "ModelArtifacts", "S3ModelArtifacts"):
        return str(told).rstrip("/")
    output = needed(detail, "OutputDataConfig", "S3OutputPath", sender=_SENDER, kind=str).rstrip("/")
    packed = get(detail, "OutputDataConfig", "CompressionType") != "NONE"
    return f"{output}/{job}/output/{'model.tar.gz' if packed else 'model'}"


def _tags(told: Any) -> dict[str, str]:
    """Of an event a mapping, of DescribeTrainingJob's relatives a list of Key and Value."""
    rows = told.items() if isinstance(told, dict) else [(get(row, "Key"), get(row, "Value")) for row in told or ()]
    return {key: value for key, value in rows if isinstance(key, str) and isinstance(value, str) and value}
