"""What was proven."""

from __future__ import annotations

from pydantic import Field

from adapterline.values.base import Sha256, Value


class Check(Value):
    """One thing that was checked, over all modules of a component."""

    name: str
    component: str | None = None
    observed: float | str
    limit: float | str
    passed: bool
    modules: tuple[str, ...] = Field((), description="the modules that failed")
    detail: str = ""


class ValidationReport(Value):
    """Every check, also those that passed."""

    bundle_digest: Sha256
    source_digest: Sha256 | None = None
    checks: tuple[Check, ...]
    versions: dict[str, str] = {}

    @property
    def passed(self) -> bool:
        """True if there was a check and none failed."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if not check.passed)
