"""Every error that adapterline raises on purpose, and what a caller may conclude from it.

    AdapterlineError                    exit code 1: a bug, unless it is one of these
    ├── SweepFailedError            1   something that a sweep tried failed; the rest was done
    ├── UsageError                  2   the request itself is wrong: a name, an option, a URI
    │   ├── EventError                  what a platform sent does not say which run ended
    │   └── UnknownLineageError         the lineage index has nothing of that name, digest or file
    ├── RefusedError                3   the input will not be exported, and a retry changes nothing
    │   ├── CheckpointError             it cannot be read, or does not say what it means
    │   │   └── CheckpointIncompleteError   it is still being written, or not there yet: try again later
    │   ├── FamilyError                 the base, or the pair of base and checkpoint, is not supported
    │   └── ConversionError             its effect cannot be carried exactly by what was asked for
    ├── ValidationFailedError       4   the exported file does not do what was trained; has the whole report
    ├── AuditFailedError            4   something published is not what was published; has the whole report
    ├── PublishError                5   a destination is unreachable, forbids, fails or holds something else
    └── MachineError                6   this machine: disk full, no Prefect API, a missing program

A message says what was found, what was expected and what to do. Errors of the libraries below are mapped to these at
the boundary, with the original as `__cause__`.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from adapterline.audits import AuditReport
    from adapterline.sweeps import SweepSummary
    from adapterline.values import ValidationReport


class AdapterlineError(Exception):
    """Base of all. `transient` is True where the same call may succeed later without any change of the input."""

    exit_code: ClassVar[int] = 1

    def __init__(self, found: str, *, expected: str = "", remedy: str = "", transient: bool = False) -> None:
        self.found = found
        self.expected = expected
        self.remedy = remedy
        self.transient = transient
        super().__init__(_paragraph(found, expected, remedy))

    def __reduce__(self) -> tuple[Any, ...]:
        # Prefect pickles what a task raises; keyword arguments are not in `args`.
        return _rebuild, (type(self), self.__dict__.copy())


class SweepFailedError(AdapterlineError):
    """Something that a sweep tried failed, for another reason than being refused. The rest was done."""

    exit_code = 1

    def __init__(self, found: str, *, summary: SweepSummary, expected: str = "", remedy: str = "") -> None:
        super().__init__(found, expected=expected, remedy=remedy)
        self.summary = summary


class UsageError(AdapterlineError):
    """The request itself is wrong, whatever the checkpoint holds."""

    exit_code = 2


class EventError(UsageError):
    """What a platform sent should tell of a run that ended, and does not say what an export has to know."""


class UnknownLineageError(UsageError):
    """The lineage index knows nothing of that name, digest, run, checkpoint or file."""


class RefusedError(AdapterlineError):
    """The input will not be exported, and a retry changes nothing."""

    exit_code = 3


class CheckpointError(RefusedError):
    """The checkpoint cannot be read safely, or does not determine an adapter."""


class CheckpointIncompleteError(CheckpointError):
    """The checkpoint is still being written, or not there yet. The same call may succeed later."""


class FamilyError(RefusedError):
    """The base is not one that adapterline knows, or the checkpoint was not trained on it."""


class ConversionError(RefusedError):
    """What the checkpoint does cannot be carried exactly by what was asked for."""


class ValidationFailedError(AdapterlineError):
    """The exported file does not do what was trained. `report` has every check."""

    exit_code = 4

    def __init__(self, found: str, *, report: ValidationReport, expected: str = "", remedy: str = "") -> None:
        super().__init__(found, expected=expected, remedy=remedy)
        self.report = report


class AuditFailedError(AdapterlineError):
    """Something that was published is not there as it was published, or could not be looked at. See `report`."""

    exit_code = 4

    def __init__(self, found: str, *, report: AuditReport, expected: str = "", remedy: str = "") -> None:
        super().__init__(found, expected=expected, remedy=remedy)
        self.report = report


class PublishError(AdapterlineError):
    """A destination is unreachable, forbids, fails, or already holds something else under this name."""

    exit_code = 5


class MachineError(AdapterlineError):
    """This machine cannot do it: disk full, no Prefect API, a program that is not installed."""

    exit_code = 6


def from_os_error(error: OSError, doing: str, *, otherwise: type[AdapterlineError] = MachineError) -> AdapterlineError:
    """The typed form of an `OSError` met while `doing` something ("writing the adapter to …").

    A full disk, an exhausted quota and a read-only file system are `MachineError` wherever they occur; anything else is
    `otherwise`.
    """
    reason = error.strerror or str(error)
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return MachineError(
                f"{doing}: {reason}.", expected="free space", remedy="Free some, or set ADAPTERLINE_SCRATCH elsewhere."
            )
        case errno.EROFS:
            return MachineError(f"{doing}: {reason}.", expected="a writable file system")
        case errno.EACCES | errno.EPERM:
            return otherwise(f"{doing}: {reason}.", expected="access to it", remedy="Check the owner and the mode.")
        case errno.ENOENT:
            return otherwise(
                f"{doing}: {reason}.",
                expected="a path that is there",
                remedy="Check whether something moves or deletes it.",
            )
    return otherwise(f"{doing}: {reason}.", transient=error.errno in _TRANSIENT)


_TRANSIENT = {errno.EIO, errno.EAGAIN, errno.EINTR, errno.ESTALE, errno.ETIMEDOUT, errno.EBUSY}


def _paragraph(found: str, expected: str, remedy: str) -> str:
    parts = [found.rstrip()]
    if expected:
        parts.append(f"Expected {expected.rstrip('.')}.")
    if remedy:
        parts.append(remedy.rstrip())
    return " ".join(parts)


def _rebuild(kind: type[AdapterlineError], state: dict[str, Any]) -> AdapterlineError:
    error = kind.__new__(kind)
    error.__dict__.update(state)
    Exception.__init__(error, _paragraph(error.found, error.expected, error.remedy))
    return error
