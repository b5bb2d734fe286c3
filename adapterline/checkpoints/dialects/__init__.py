"""Readers of keys and scales. They know nothing of files: that is for `containers/`."""

from __future__ import annotations

from adapterline.checkpoints.containers.base import NotMyKindError
from adapterline.checkpoints.dialects.base import Dialect, Entry, Readable
from adapterline.checkpoints.dialects.diffusers import Diffusers
from adapterline.checkpoints.dialects.peft import Peft
from adapterline.errors import CheckpointError

#: Exactly one may match.
DIALECTS: tuple[Dialect, ...] = (Diffusers(), Peft())


def dialect_named(name: str) -> Dialect:
    """The dialect of this name. KeyError if there is none."""
    return {dialect.name: dialect for dialect in DIALECTS}[name]


def identify(readable: Readable) -> tuple[Dialect, dict[str, Entry]]:
    """The one dialect that the keys are of, and where each tensor belongs.

    CheckpointError, with every candidate's reason, if none or several match.
    """
    if not readable.tensors:
        raise CheckpointError("The checkpoint has no tensors.", expected="an adapter")
    matches, reasons = [], []
    for dialect in DIALECTS:
        try:
            matches.append((dialect, dialect.entries(readable)))
        except NotMyKindError as reason:
            reasons.append(f"{dialect.name}: {reason}")
    if len(matches) == 1:
        return matches[0]
    if matches:
        names = ", ".join(dialect.name for dialect, _ in matches)
        raise CheckpointError(f"The keys can be read in more than one way: {names}.", expected="one")
    first = min(readable.tensors)
    if not any("lora" in key.lower() for key in readable.tensors):
        raise CheckpointError(
            f"No adapter is in there: none of its {len(readable.tensors)} tensors ({first!r}, ...) is LoRA's. It looks "
            "like the weights of a whole model.",
            expected="a LoRA adapter",
            remedy="Name the file or the folder that the trainer saved the adapter to.",
        )
    raise CheckpointError(
        f"The keys ({first!r}, ...) are of no known kind ({'; '.join(reasons)}).",
        expected=f"keys as {' or '.join(dialect.name for dialect in DIALECTS)} writes them",
    )
