"""A sender that the settings describe, and no file of ours knows."""

from __future__ import annotations

from pydantic import Field, field_validator

from adapterline.values.base import Value

#: The fields of `TrainingRun` that a message may say.
OF_THE_RUN = ("run_id", "finished_at", "step", "base_model", "dataset", "code", "trainer")


class Sender(Value):
    """A platform that is not known here; every field but the last two is a JMESPath expression over its JSON."""

    when: str | None = Field(None, description="true for a message that ends a run; without it, every message does")
    checkpoint: str
    name: str | None = None
    base: str | None = None
    run_id: str | None = None
    finished_at: str | None = None
    step: str | None = None
    base_model: str | None = None
    dataset: str | None = None
    code: str | None = None
    trainer: str | None = None
    secret_env: str | None = Field(None, description="the variable that has this sender's own secret")
    signature_header: str | None = Field(
        None, description="the header with the HMAC-SHA256 of the body, in hex, which takes the place of the secret"
    )

    @field_validator("when", "checkpoint", "name", "base", *OF_THE_RUN)
    @classmethod
    def _is_expression(cls, text: str | None) -> str | None:
        import jmespath
        from jmespath.exceptions import JMESPathError

        try:
            return text if text is None or jmespath.compile(text) else None
        except JMESPathError as error:
            raise ValueError(f"{text!r} is no JMESPath: {str(error).splitlines()[0]}") from error
