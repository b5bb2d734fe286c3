"""What was proven."""

from __future__ import annotations

from typing import Final

from pydantic import Field

from adapterline.values.base import Sha256, Value

#: What the names of checks begin with that need the base's weights: a model was run, images were rendered.
FORWARD: Final = "forward"
RENDER: Final = "render"


class Check(Value):
    """One thing that was checked, over all modules of a component."""

    name: str = Field(description="what was checked")
    consumer: str | None = Field(None, description="what loaded the file: diffusers, peft, or a reader of its rules")
    component: str | None = Field(None, description="of the pipeline; null: the file as a whole")
    observed: float | str = Field(description="the worst of all modules, or what was found")
    limit: float | str = Field(description="what it may be at most, or must be")
    passed: bool = Field(description="is it within the limit?")
    modules: tuple[str, ...] = Field((), description="the modules that failed")
    detail: str = Field("", description="more about what was found")


class ValidationReport(Value):
    """Every check, also those that passed."""

    bundle_digest: Sha256 = Field(description="of what was proven")
    source_digest: Sha256 | None = Field(None, description="of the checkpoint that it was compared with; null: none")
    checks: tuple[Check, ...] = Field(description="every one that ran")
    not_run: dict[str, str] = Field({}, description="what was not checked -> why; nothing is claimed of it")
    consumers: dict[str, tuple[str, ...]] = Field(
        {},
        description="path of a file -> what loaded it, and versions (diffusers==0.35.2) known to load its kind right",
    )
    versions: dict[str, str] = Field({}, description="package -> version, of what the proof hangs on")

    @property
    def passed(self) -> bool:
        """True if there was a check and none failed."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if not check.passed)

    def of_every_machine(self) -> ValidationReport:
        """What a manifest may say: less what hangs on the base's weights, on a GPU, and on how either adds."""
        kept = tuple(check for check in self.checks if not check.name.startswith((f"{FORWARD}: ", f"{RENDER}: ")))
        return self.model_copy(update={"checks": kept, "not_run": {}})
