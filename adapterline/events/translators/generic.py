"""Any other sender: where in its JSON things lie, as JMESPath (jmespath.org) in the settings.

[senders.acme]
when = "state == 'finished'"
checkpoint = "artifacts[-1].uri"
run_id = "run.id"
"""

from __future__ import annotations

from typing import Any

from adapterline.errors import EventError
from adapterline.events.sender import OF_THE_RUN, Sender
from adapterline.events.training_completed import TrainingCompleted
from adapterline.events.translators.base import Surroundings, Translator, completed, moment, run_of


def translator_of(name: str, sender: Sender) -> Translator:
    """The translator that the settings describe."""

    def translate(payload: Any, around: Surroundings) -> tuple[TrainingCompleted, ...]:
        if sender.when is not None and _found(payload, sender.when) in (None, False, "", [], {}):
            return ()
        checkpoint = _found(payload, sender.checkpoint)
        if not isinstance(checkpoint, str) or not checkpoint:
            raise EventError(
                f"A message of {name} has {checkpoint!r:.100} at {sender.checkpoint}.",
                expected="the checkpoint's URI",
                remedy=f"Correct checkpoint, or when, of senders.{name} in adapterline.toml.",
            )
        told = {field: _found(payload, path) for field in OF_THE_RUN if (path := getattr(sender, field)) is not None}
        told["finished_at"] = moment(told.get("finished_at"))
        given = {
            field: _found(payload, path) for field in ("name", "base") if (path := getattr(sender, field)) is not None
        }
        return (completed(name, checkpoint=checkpoint, run=run_of(name, **told), **given),)

    return translate


def _found(payload: Any, expression: str) -> Any:
    import jmespath
    from jmespath.exceptions import JMESPathError

    try:
        return jmespath.search(expression, payload)
    except JMESPathError as error:
        raise EventError(
            f"{expression!r} fails on a message: {str(error).splitlines()[0]}.",
            expected="an expression that fits what is sent",
            remedy="Correct it in adapterline.toml.",
        ) from error
