"""What the proof says of a changed copy, and whether it is right to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from adapterline.deltas import LowRank
from adapterline.errors import CheckpointError
from adapterline.validation import describe, validate_file
from adapterline.validation.files import MANIFEST_NAME
from adapterline.values import ValidationReport
from tests.line import Exported
from tests.mutants.adapters import Good
from tests.mutants.copy import Copy, NotApplicableError
from tests.mutants.edits import ANOTHER_WAY, KEEPING, SMALLEST, Edit, name_of
from tests.mutants.witness import loads_the_same
from tests.publishing import manifest_of

#: What may come of an edit. What is not in GOOD is a mistake of the proof.
CAUGHT, KEPT, WITHIN, SAME, NOT_APPLICABLE = "caught", "kept", "within the bound", "same after all", "not applicable"
SURVIVED, UNNAMED, REFUSED = "survived", "unnamed", "refused"
GOOD = (CAUGHT, KEPT, WITHIN, SAME, NOT_APPLICABLE)


@dataclass(frozen=True)
class Verdict:
    """What came of an edit, and what the proof said."""

    outcome: str
    said: str = ""

    @property
    def is_good(self) -> bool:
        return self.outcome in GOOD


@dataclass(frozen=True)
class Trial:
    """A good export that is proven, in one mode: `beside` has its manifest beside it."""

    good: Good
    mode: str
    exported: Exported
    manifest: bytes

    @classmethod
    def of(cls, good: Good, mode: str, folder: Path) -> Trial:
        """Exports it into `folder`."""
        exported = good.export(mode, folder)
        return cls(good, mode, exported, manifest_of(exported, "good").to_bytes())

    def judge(self, edit: Edit, folder: Path) -> Verdict:
        """Changes a copy in `folder`, an empty one, and proves it."""
        copy = Copy.of(self.exported, f"{self.good.name} {self.mode} {name_of(edit)}")
        try:
            named = edit(copy) or ()
        except NotApplicableError:
            return Verdict(NOT_APPLICABLE)
        copy.write(folder)
        failures, said = self._prove(folder)
        if edit in KEEPING:
            return Verdict(REFUSED if failures else KEPT, said)
        if failures:
            missing = [name for name in named if name not in said and not self._names_file_of(name, said)]
            return Verdict(UNNAMED if missing else CAUGHT, said if not missing else f"{missing} in: {said}")
        if edit in SMALLEST and not self._is_strict(named):
            return Verdict(WITHIN)
        if edit in ANOTHER_WAY and loads_the_same(self.good.case, self.exported, folder):
            return Verdict(SAME)
        return Verdict(SURVIVED, f"changed: {named}")

    def _prove(self, folder: Path) -> tuple[bool, str]:
        """(does something fail besides a digest, what is said of it)."""
        if self.mode == "beside":
            (folder / MANIFEST_NAME).write_bytes(self.manifest)
        path = folder if self.mode == "beside" else folder / self.exported.bundle.loads[0].weight_name
        try:
            report = validate_file(path, self.exported.base, self.exported.source, self.exported.options)
        except CheckpointError as error:
            return True, str(error)
        if self.mode == "beside":
            _check_digest(report, folder, self.exported)
        failures = [check for check in report.failures if not check.name.endswith("has its digest")]
        return bool(failures), "; ".join(map(describe, failures))

    def _names_file_of(self, component: str, said: str) -> bool:
        """Of a whole component that is wrong, its file may be named."""
        described = self.exported.base.family.component(component)
        return described is not None and described.file in said

    def _is_strict(self, named: tuple[str, ...]) -> bool:
        """Nothing was rounded in these modules, or only in the way that this tool does."""
        deltas: Mapping[str, object] = {
            module: delta for found in self.exported.adapter.components.values() for module, delta in found.items()
        }
        return all(self._is_exact(deltas[module]) for module in named)

    def _is_exact(self, delta: object) -> bool:
        if not isinstance(delta, LowRank):
            return False
        return self.mode != "portable" or math.frexp(delta.scale)[0] == 0.5


def _check_digest(report: ValidationReport, folder: Path, exported: Exported) -> None:
    """A changed byte never passes where a manifest lies beside it."""
    for file in exported.bundle.files:
        path = folder / file.path
        same = path.is_file() and path.read_bytes() == (exported.folder / file.path).read_bytes()
        (check,) = (check for check in report.checks if check.name == f"{file.path} has its digest")
        assert check.passed == same, check
