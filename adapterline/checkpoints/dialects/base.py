"""What a dialect is: how one kind of file spells module names and states scales."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from adapterline.checkpoints.forms import REFUSED
from adapterline.errors import CheckpointError, ConversionError
from adapterline.values import TensorInfo

#: (module as the checkpoint spells it, the number that alpha is divided by, if the factors tell it) -> the factor on
#: the change that the factors make
ScaleRule = Callable[[str, int | None], float]
#: What a key calls the model that denoises, whatever its name in the pipeline: `lora_unet_`, `diffusion_model.`
DENOISER = "denoiser"
#: The part of a tensor of the base's own weights, in a state dict of the whole model.
BASE_WEIGHT = "base weight"
#: The part of a norm's weight, whole, which takes the place of the base's.
NORM = "norm"


class Readable(Protocol):
    """What a dialect looks at, after wrappers were peeled off the keys: `Contents` and `Source` have it."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """dtype and shape by key."""
        ...

    @property
    def header(self) -> Mapping[str, str]:
        """The texts of a safetensors header."""
        ...

    @property
    def configs(self) -> Mapping[str, Mapping[str, Any]]:
        """PEFT configurations by component, or "" for all."""
        ...

    @property
    def scalar(self) -> Callable[[str], float]:
        """The value of a tensor of one element, read without torch where the file is safetensors."""
        ...


@dataclass(frozen=True)
class Entry:
    """Where one tensor belongs.

    `component` is a component's name, a role that the base decides (DENOISER, or a text encoder's name in ComfyUI), or
    None where the key does not say it. `part` is one of `forms`.
    """

    component: str | None
    module: str
    part: str


@dataclass(frozen=True)
class Stated:
    """A LoraConfig that is about one component, and where it was found."""

    config: Mapping[str, Any]
    where: str


class Dialect(Protocol):
    """Reads the keys of one kind of file."""

    name: str

    def entries(self, readable: Readable) -> dict[str, Entry]:
        """Where every tensor belongs, by key.

        NotMyKindError: these keys are another dialect's. CheckpointError: they are of this one, and something in the
        file is no part of an adapter; ConversionError: it is part of one that cannot be exported. Both are the answer
        unless another dialect reads the whole file.
        """
        ...

    def scale_rule(self, readable: Readable, component: str | None) -> ScaleRule | None:
        """How the checkpoint states the scales of a component; None if it does not."""
        ...

    def stated(self, readable: Readable, component: str | None) -> Stated | None:
        """The LoraConfig that the checkpoint has for a component; None if it has none."""
        ...


def stated_beside(readable: Readable, component: str | None) -> Stated:
    """The adapter_config.json of a component, or the one for all. CheckpointError if there is neither."""
    for name in (component or "", ""):
        if name in readable.configs:
            return Stated(readable.configs[name], f"{name}/adapter_config.json" if name else "adapter_config.json")
    raise CheckpointError(
        f"No adapter_config.json is there for {component}.", expected="one for every component that has tensors"
    )


def collect(readable: Readable, entry_of: Callable[[str], Entry | None]) -> dict[str, Entry]:
    """Every key's entry.

    CheckpointError for keys that have none, and for two keys of the same part; ConversionError for adapter types whose
    effect no LoRA file carries.
    """
    entries = {key: entry_of(key) for key in readable.tensors}
    if strange := sorted(key for key, entry in entries.items() if entry is None):
        if why := refusal_of(strange):
            raise why
        raise CheckpointError(
            f"{len(strange)} of {len(entries)} tensors are no part of a LoRA layer: {strange[0]!r}"
            f"{_guess(strange[0])}{', ...' if len(strange) > 1 else ''}.",
            expected="lora_A, lora_B, their bias and magnitude alone, so that nothing that was trained is lost",
            remedy="If they were trained, a LoRA file cannot carry them; otherwise save the adapter without them.",
        )
    found = {key: entry for key, entry in entries.items() if entry is not None}
    by_entry: dict[Entry, str] = {}
    for key, entry in found.items():
        if entry in by_entry:
            raise CheckpointError(
                f"{by_entry[entry]!r} and {key!r} are the same part of the same layer in two spellings.",
                expected="one of them",
                remedy="Save the adapter again: a loader would take either, and drop the other.",
            )
        by_entry[entry] = key
    return found


def refusal_of(keys: list[str]) -> ConversionError | None:
    """Why an adapter with these tensors cannot be exported, if one of them tells it."""
    for key in keys:
        for suffix, reason in REFUSED.items():
            if key.endswith(f".{suffix}"):
                return ConversionError(
                    f"{key!r}: {reason}.",
                    expected="an adapter that adds to the weights of its layers",
                    remedy="Train LoRA, LoHa, LoKr or DoRA on the outputs, or merge it into the base.",
                )
    return None


def alpha_rule(
    readable: Readable, entries: Mapping[str, Entry], component: str | None, *, without: ScaleRule
) -> ScaleRule:
    """alpha / rank by the alpha tensor of each module, and 1 where no factor tells a rank: both are then whole
    (lycoris.modules.lokr, "use scale = 1"). `without` is the rule of a component that has no alpha tensor at all.

    CheckpointError if some modules have one and others do not, or if one is no number other than zero.
    """
    alphas = {
        entry.module: key for key, entry in entries.items() if entry.part == "alpha" and entry.component == component
    }
    if not alphas:
        return without

    def rule(module: str, rank: int | None) -> float:
        if rank is None:
            return 1.0  # ai-toolkit's alpha is 9999999999 then, infinite in float16
        if module not in alphas:
            raise CheckpointError(
                f"{module} has no alpha tensor, and {len(alphas)} other layers have.",
                expected="one for every layer, or none at all",
                remedy="The checkpoint is not whole; save it again.",
            )
        alpha = readable.scalar(alphas[module])
        if not (alpha and abs(alpha) < float("inf")):
            raise CheckpointError(f"The alpha of {module} is {alpha:g}.", expected="a number other than zero")
        return alpha / rank

    return rule


#: What tells that a tensor belongs to an adapter of another type (peft.tuners, lycoris.modules).
_OTHER_TYPES = {
    "hada_": "LoHa", "lokr_": "LoKr", "oft_": "OFT", "boft_": "BOFT", "ia3_": "IA3", "vera_": "VeRA",
    "lora_E": "AdaLoRA", "lora_embedding_": "LoRA on an embedding", "dora_scale": "LyCORIS DoRA",
    "base_layer": "the base model's own weights", "modules_to_save": "a module trained whole",
    ".alpha": "an alpha tensor", "processor": "an attention processor of diffusers before 0.20",
}  # fmt: skip


def _guess(key: str) -> str:
    return next((f" ({kind})" for mark, kind in _OTHER_TYPES.items() if mark in key), "")
