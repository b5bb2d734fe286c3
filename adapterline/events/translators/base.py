"""What a translator is, and what it may ask of the world around it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar

from pydantic import ValidationError

from adapterline.errors import EventError, UsageError
from adapterline.events.training_completed import TrainingCompleted
from adapterline.sweeps.runs import Descriptor
from adapterline.values import TrainingRun

Found = TypeVar("Found")
#: Numbers above it are milliseconds: as seconds it is the year 5138, as milliseconds the year 1973.
_MILLISECONDS = 1e11


class Surroundings(Protocol):
    """What lies outside of a message."""

    def remember(self, job: str, checkpoint: str) -> None:
        """Keeps the last checkpoint of a job, also over a restart."""

    def recall(self, job: str) -> str | None:
        """The last checkpoint of a job."""

    def describe(self, uri: str) -> Descriptor:
        """What lies in the run's `training-run.json`; an empty one if there is none."""


Translator = Callable[[Any, Surroundings], tuple[TrainingCompleted, ...]]


def completed(sender: str, **fields: Any) -> TrainingCompleted:
    """The value; EventError, which says by whom, for what cannot be."""
    try:
        return TrainingCompleted(**fields)
    except (ValidationError, UsageError) as error:
        told = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise EventError(
            f"What {sender} says of a run cannot be: {told.removeprefix('Value error, ')}.",
            expected="a checkpoint, and a name that may be one",
            remedy="Correct what the sender is configured with.",
        ) from error


def run_of(sender: str, **fields: Any) -> TrainingRun:
    """The training run; EventError for what cannot be."""
    try:
        return TrainingRun(**{name: value for name, value in fields.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        raise EventError(
            f"What {sender} says of a run cannot be: {'.'.join(map(str, first['loc']))}, {first['msg']}.",
            remedy="Correct what the sender is configured with.",
        ) from error


def get(payload: Any, *path: str) -> Any:
    """What lies at this path of a JSON document; None where the document ends before."""
    for part in path:
        payload = payload.get(part) if isinstance(payload, dict) else None
    return payload


def needed(payload: Any, *path: str, sender: str, kind: type[Found]) -> Found:
    """The same; EventError unless it is there and of this kind."""
    found = get(payload, *path)
    if not isinstance(found, kind) or found == "":
        raise EventError(
            f"A message of {sender} has {found!r:.100} at {'.'.join(path)}.",
            expected=f"a {kind.__name__}",
            remedy="Look at what the sender really sends.",
        )
    return found


def moment(told: Any) -> datetime | None:
    """A time as platforms write it: ISO 8601, seconds or milliseconds since 1970, as a number or as text."""
    if told is None or told == "" or isinstance(told, bool):
        return None
    try:
        number = float(told)
    except (TypeError, ValueError):
        try:
            found = datetime.fromisoformat(str(told))
        except ValueError:
            return None
        return found if found.tzinfo else found.replace(tzinfo=UTC)
    try:
        return datetime.fromtimestamp(number / 1000 if number > _MILLISECONDS else number, UTC)
    except (ValueError, OverflowError, OSError):
        return None
