"""PEFT's adapter types: the ones that can be exported, and why the others cannot.

A type can be exported if its tensors and its configuration alone determine the change of every weight.
"""

from __future__ import annotations

from typing import Final

from adapterline.checkpoints.form import Form
from adapterline.checkpoints.peft_types.base import PeftType
from adapterline.checkpoints.peft_types.blocks import C3A, GRALORA, MISS
from adapterline.checkpoints.peft_types.lora import ADALORA, DELORA, LORA
from adapterline.checkpoints.peft_types.lycoris import LOHA, LOKR
from adapterline.checkpoints.peft_types.randlora import RANDLORA
from adapterline.checkpoints.peft_types.shared import PVERA, UNILORA, VBLORA, VERA
from adapterline.checkpoints.peft_types.sparse import FOURIERFT, SHIRA, SUPERTUNING, WAVEFT
from adapterline.checkpoints.scales import Config
from adapterline.errors import CheckpointError, ConversionError

PEFT_TYPES: Final[dict[str, PeftType]] = {
    kind.name: kind
    for kind in (
        LORA, ADALORA, DELORA, LOHA, LOKR, VERA, PVERA, VBLORA, UNILORA, GRALORA, MISS, C3A, RANDLORA, FOURIERFT,
        WAVEFT, SHIRA, SUPERTUNING,
    )
}  # fmt: skip
#: The forms that no other trainer has.
PEFT_FORMS: Final[tuple[Form, ...]] = tuple(form for kind in PEFT_TYPES.values() for form in kind.forms)

_ROTATES = "it multiplies the weights of the base by rotations"
_MULTIPLIES = "its change is a function of the weights of the base"
_DECOMPOSES = "its matrices come from a decomposition of the base weights"
_PROMPT = "it trains inputs of a language model, and changes no weight"
#: Why the other types cannot be exported.
REASONS: Final[dict[str, str]] = {
    "OFT": _ROTATES, "BOFT": _ROTATES, "HRA": "it multiplies the weights of the base by reflections",
    "ROAD": "it rotates the outputs of a layer", "PSOFT": _DECOMPOSES, "IA3": "it rescales the weights of the base",
    "HIRA": "it multiplies the weights of the base, element by element", "GLORA": _MULTIPLIES, "PEANUT": _MULTIPLIES,
    "DEFT": "it projects the weights of the base", "FROD": "it replaces the weights of the base",
    "TINYLORA": "the file does not say which of its vectors a layer uses", "OSF": _DECOMPOSES, "ADAMSS": _DECOMPOSES,
    "LILY": "what it adds depends on the whole batch of inputs", "POLY": "what it adds depends on the task",
    "XLORA": "what it adds depends on the inputs", "LN_TUNING": "it trains norms, for which a LoRA file has no place",
    "BEFT": "it trains biases, for which a LoRA file has no place", "SHADOW": "it adds layers of its own to the model",
    "TRAINABLE_TOKENS": "it trains rows of an embedding, for which a LoRA file has no place",
    "ADAPTION_PROMPT": _PROMPT, "PROMPT_TUNING": _PROMPT, "MULTITASK_PROMPT_TUNING": _PROMPT, "P_TUNING": _PROMPT,
    "PREFIX_TUNING": _PROMPT, "CPT": _PROMPT, "CARTRIDGE": _PROMPT,
}  # fmt: skip


def peft_type_of(config: Config, where: str) -> PeftType:
    """The type that a configuration names; LoRA if it names none.

    ConversionError for a type that no LoRA file can carry, CheckpointError for one that is not known.
    """
    name = str(config.get("peft_type", "LORA"))
    if name in PEFT_TYPES:
        return PEFT_TYPES[name]
    known = ", ".join(sorted(PEFT_TYPES))
    if reason := REASONS.get(name):
        raise ConversionError(
            f"{where} says that this is a {name!r} adapter: {reason}.",
            expected=f"one of {known}",
            remedy="Merge it into the base, or train one of these.",
        )
    raise CheckpointError(
        f"{where} says that this is a {name[:40]!r} adapter.",
        expected=f"one of {known}",
        remedy="This version does not know what its tensors mean.",
    )
