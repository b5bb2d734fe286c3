"""The event that starts an export, in the form in which Prefect takes it at `POST /api/events`."""

from __future__ import annotations

import re
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from pydantic import Field, field_validator

from adapterline.errors import UsageError
from adapterline.values import TrainingRun, check_name
from adapterline.values.base import Value

EVENT: Final = "training.run.completed"
#: What the event's resource begins with; a trigger matches `adapterline.training-run.*`.
RESOURCE: Final = "adapterline.training-run"
#: Of nothing but the ids of these events.
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "adapterline/training.run.completed")


class TrainingCompleted(Value):
    """A training run left a checkpoint.

    This is all that an event may decide: where the export goes, and how it is made, is the deployment's.
    """

    checkpoint: str = Field(min_length=1, max_length=2000, description="a path, s3:// or hf://")
    base: str | None = Field(None, max_length=2000, description="the architecture to prove on")
    name: str | None = Field(None, description="the name to publish under; None: the checkpoint's")
    run: TrainingRun = TrainingRun()

    @field_validator("checkpoint")
    @classmethod
    def _is_clean(cls, checkpoint: str) -> str:
        if re.search(r"[\x00-\x1f\x7f]", checkpoint):
            raise ValueError("a checkpoint's URI has no control characters")
        return checkpoint

    @field_validator("name")
    @classmethod
    def _is_name(cls, name: str | None) -> str | None:
        try:
            return name if name is None else check_name(name)
        except UsageError as error:
            raise ValueError(str(error)) from error

    @property
    def id(self) -> uuid.UUID:
        """The same for the same run, checkpoint and name, however often and by whomever it is sent.

        Prefect takes an event of one id once, for as long as it remembers (about half an hour). After that, the export
        itself finds what is published already.
        """
        told = "\n".join((self.run.run_id or "", self.checkpoint, self.name or ""))
        return uuid.uuid5(_NAMESPACE, told)

    def to_event(self, occurred: datetime | None = None) -> dict[str, Any]:
        """The JSON of the event. Every field of the payload is there, so that a template finds it."""
        run = self.run.run_id or self.id.hex
        return {
            "id": str(self.id),
            "event": EVENT,
            "occurred": (occurred or datetime.now(UTC)).isoformat(),
            "resource": {
                "prefect.resource.id": f"{RESOURCE}.{re.sub(r'[^A-Za-z0-9._-]', '-', run)}",
                "prefect.resource.name": run,
            },
            "related": [],
            "payload": self.model_dump(mode="json"),
        }


def absolute(checkpoint: str) -> str:
    """A local path made absolute, since the export runs in another folder; URIs as they are."""
    return checkpoint if "://" in checkpoint else str(Path(checkpoint).expanduser().absolute())
