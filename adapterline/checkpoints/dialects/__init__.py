"""Readers of keys and scales. They know nothing of files: that is for `containers/`."""

from __future__ import annotations

import re

from adapterline.checkpoints.containers.base import NotMyKindError
from adapterline.checkpoints.dialects.ai_toolkit import AiToolkit
from adapterline.checkpoints.dialects.attention_processors import AttentionProcessors
from adapterline.checkpoints.dialects.base import Dialect, Entry, Readable
from adapterline.checkpoints.dialects.comfy import Comfy
from adapterline.checkpoints.dialects.diffusers import Diffusers
from adapterline.checkpoints.dialects.kohya import Kohya
from adapterline.checkpoints.dialects.lycoris import Lycoris
from adapterline.checkpoints.dialects.original import Original
from adapterline.checkpoints.dialects.peft import Peft
from adapterline.checkpoints.dialects.xlabs import XLabs
from adapterline.errors import CheckpointError, ConversionError

#: Exactly one may match. Of several that refuse a file as broken the first is believed, so the particular ones, whose
#: keys others may take for their own with something strange among them, come before the general ones.
DIALECTS: tuple[Dialect, ...] = (
    XLabs(),
    AttentionProcessors(),
    Original(),
    Diffusers(),
    Peft(),
    Kohya(),
    Lycoris(),
    AiToolkit(),
    Comfy(),
)

#: What the keys of adapters have, of whatever type.
_ADAPTER = re.compile(r"lora|hada_|lokr_|oft|ia3_|vera_|lycoris|\.diff$|dora_scale", re.IGNORECASE)

_SAVE_PLAIN = "Save the adapter with PEFT's save_pretrained or diffusers' save_lora_weights."


def dialect_named(name: str) -> Dialect:
    """The dialect of this name. KeyError if there is none."""
    return {dialect.name: dialect for dialect in DIALECTS}[name]


def identify(readable: Readable) -> tuple[Dialect, dict[str, Entry]]:
    """The one dialect that the keys are of, and where each tensor belongs.

    CheckpointError, with every candidate's reason, if none or several match. What one dialect finds broken another may
    read whole, and then that one is right: every tensor has its place. If none does, the refusal stands. It stands in
    any case where there is a PEFT configuration, since the refusal may be about that and not about the keys.
    """
    if not readable.tensors:
        raise CheckpointError(
            "The checkpoint has no tensors.",
            expected="an adapter",
            remedy="Save it again; get_peft_model_state_dict finds nothing under a torch.compile wrapper.",
        )
    matches: list[tuple[Dialect, dict[str, Entry]]] = []
    reasons: list[str] = []
    refusals: list[CheckpointError | ConversionError] = []
    for dialect in DIALECTS:
        try:
            matches.append((dialect, dialect.entries(readable)))
        except NotMyKindError as reason:
            reasons.append(f"{dialect.name}: {reason}")
        except (CheckpointError, ConversionError) as refusal:
            refusals.append(refusal)
    if not matches and not readable.configs and _is_whole_model(readable, refusals):
        raise _whole_model(readable)
    if refusals and (readable.configs or not matches):
        raise refusals[0]
    if len(matches) == 1:
        return matches[0]
    if matches:
        names = ", ".join(dialect.name for dialect, _ in matches)
        raise CheckpointError(
            f"The keys can be read in more than one way: {names}.", expected="one", remedy=_SAVE_PLAIN
        )
    raise CheckpointError(
        f"The keys ({min(readable.tensors)!r}, ...) are of no known kind ({'; '.join(reasons)}).",
        expected=f"keys as {' or '.join(dialect.name for dialect in DIALECTS)} writes them",
        remedy=_SAVE_PLAIN,
    )


def _is_whole_model(readable: Readable, refusals: list[CheckpointError | ConversionError]) -> bool:
    """Is no tensor an adapter's, by its name or by what a dialect says of it?"""
    told = any(isinstance(refusal, ConversionError) for refusal in refusals)
    return not told and not any(_ADAPTER.search(key) for key in readable.tensors)


def _whole_model(readable: Readable) -> CheckpointError:
    return CheckpointError(
        f"No adapter is in there: none of its {len(readable.tensors)} tensors ({min(readable.tensors)!r}, ...) is "
        "LoRA's. It looks like the weights of a whole model.",
        expected="a LoRA adapter",
        remedy="Name the file or the folder that the trainer saved the adapter to.",
    )
