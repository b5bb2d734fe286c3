"""What to do about each kind of error, whatever its message says: as docs/errors.md has it."""

from __future__ import annotations

from typing import Final, NamedTuple


class Remedy(NamedTuple):
    """What an error of a kind means, and what to do."""

    means: str
    do: str


REMEDIES: Final = {
    "SweepFailedError": Remedy(
        "something that a sweep tried failed; the rest was done", "look at its summary; the next sweep tries again"
    ),
    "UsageError": Remedy("the request is wrong: an option, a name, a URI", "correct the command"),
    "EventError": Remedy(
        "what a platform sent should tell of a run that ended, and does not say what an export has to know",
        "correct what the sender sends",
    ),
    "UnknownLineageError": Remedy(
        "the lineage index knows no such name, digest, run, checkpoint or file",
        "look at adapterline lineage list; adapterline lineage reindex finds what it missed",
    ),
    "RefusedError": Remedy("the input will not be exported, and a retry changes nothing", "do what the message says"),
    "CheckpointError": Remedy(
        "it cannot be read safely, or does not say what it means",
        "do what the message says, or save the adapter in another way",
    ),
    "CheckpointIncompleteError": Remedy(
        "it is not there yet, still being written, or cut off", "try again when the training has ended"
    ),
    "FamilyError": Remedy(
        "the base is not supported, or the checkpoint was not trained on it", "pass the right --base"
    ),
    "ConversionError": Remedy(
        "its effect cannot be carried exactly by what was asked for",
        "leave a component out with --components, or train without it",
    ),
    "ValidationFailedError": Remedy(
        "the file does not do what was trained",
        "nothing was published; look at the checks, and report it if export wrote the file",
    ),
    "AuditFailedError": Remedy(
        "what was published is not there as it was published, or cannot be read",
        "find out who changed it; adapterline audit tells what",
    ),
    "PublishError": Remedy(
        "a destination is unreachable, forbids, fails, or holds something else",
        "see the message; run the same command again",
    ),
    "MachineError": Remedy(
        "this machine: disk full, no Prefect API, a missing program", "free space, start it, install it"
    ),
}
#: Of what no error of adapterline says.
OTHER: Final = Remedy("not foreseen: a bug", "report it, with the traceback in the run's log")
