"""What an audit found."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from pydantic import Field

from adapterline.values.base import Sha256, Value

State = Literal["drifted", "unreadable", "whole", "gone"]
Proof = Literal["effect", "structure", "none"]
#: In the order in which a person wants to know.
STATES: tuple[State, ...] = ("drifted", "unreadable", "whole", "gone")


class AuditedVersion(Value):
    """A version at a destination, or an alias there."""

    destination: str
    name: str
    digest: Sha256
    aliases: tuple[str, ...] = Field((), description="what points to it")
    state: State = Field(
        description="unreadable: no server, permission or manifest; gone: recorded, and not there any more, as pruned"
    )
    found: tuple[str, ...] = Field((), description="what is not as it was published, or why it could not be seen")
    proof: Proof = Field(
        "none", description="effect: compared with the checkpoint; structure: it loads whole, finite and alive"
    )
    not_run: dict[str, str] = Field(default_factory=dict, description="what was not looked at, and why")


class AuditReport(Value):
    """All versions that were looked at. `skipped` counts those that the sample left out."""

    versions: tuple[AuditedVersion, ...]
    skipped: int = 0

    @property
    def counts(self) -> dict[State, int]:
        """How many of each, all states named."""
        found = Counter(version.state for version in self.versions)
        return {state: found[state] for state in STATES}

    @property
    def failed(self) -> bool:
        """Is anything not as it was published, or could it not be seen?"""
        return self.counts["drifted"] + self.counts["unreadable"] > 0

    def line(self) -> str:
        """The counts in words."""
        return ", ".join(f"{count} {state}" for state, count in self.counts.items())


def audit_markdown(report: AuditReport) -> str:
    """For a person: what is wrong first, what is whole counted."""
    left_out = f"; {report.skipped} more were left out by the sample" if report.skipped else ""
    lines = [f"**{report.line()}**{left_out}", ""]
    shown = [version for version in report.versions if version.state != "whole"]
    if shown:
        lines += ["| | destination | name | version | aliases | what |", "|---|---|---|---|---|---|"]
        lines += [_row(version) for version in sorted(shown, key=lambda version: STATES.index(version.state))]
    proofs = Counter(version.proof for version in report.versions if version.state == "whole")
    lines += [
        "",
        f"Of the whole ones {proofs['effect']} have the effect of their checkpoint, {proofs['structure']} load",
    ]
    lines[-1] += f" as they should, {proofs['none']} have their bytes alone."
    return "\n".join(lines)


def _row(version: AuditedVersion) -> str:
    what = "; ".join(version.found)
    cells = (version.state, version.destination, version.name, version.digest[:12], ", ".join(version.aliases), what)
    texts = (" ".join(str(cell).split()).replace("|", "\\|").replace("<", "&lt;") for cell in cells)
    return f"| {' | '.join(texts)} |"
