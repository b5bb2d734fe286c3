"""What platforms send when a training run ends, made `TrainingCompleted`: one platform a file.

A translator takes the parsed JSON and gives the runs that ended by it: none for what only goes by, EventError for what
should name one and does not.
"""

from __future__ import annotations

from typing import Any

from adapterline.errors import EventError
from adapterline.events.sender import Sender
from adapterline.events.translators import kubernetes, s3, sagemaker, simpletuner
from adapterline.events.translators.base import Surroundings, Translator
from adapterline.events.translators.generic import translator_of
from adapterline.events.translators.sns import unwrapped

__all__ = ["TRANSLATORS", "Sender", "Surroundings", "Translator", "recognize", "translator_of", "unwrapped"]

#: By the name that stands in the receiver's path: `POST /events/simpletuner`.
TRANSLATORS: dict[str, Translator] = {
    "simpletuner": simpletuner.translate,
    "sagemaker": sagemaker.translate,
    "s3": s3.translate,
    "kubernetes": kubernetes.translate,
}
#: Those whose messages say who they are from, so that one queue may carry them together.
_RECOGNIZED = {"sagemaker": sagemaker.recognizes, "s3": s3.recognizes, "kubernetes": kubernetes.recognizes}


def recognize(payload: Any) -> str:
    """The name of the translator that a message of a queue is for. EventError if it is none's, or does not say."""
    for name, recognizes in _RECOGNIZED.items():
        if recognizes(payload):
            return name
    raise EventError(
        "A message of the queue is of no platform that is known.",
        expected=f"one of {', '.join(_RECOGNIZED)}",
        remedy="Name the sender that the queue is for: --sqs-sender.",
    )
