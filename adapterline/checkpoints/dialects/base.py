"""What a dialect is: how one kind of file spells module names and states scales."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from adapterline.errors import CheckpointError
from adapterline.values import TensorInfo

#: The tensors of a LoRA layer: A, B, DoRA's magnitude and lora_B's bias.
Part = Literal["a", "b", "magnitude", "bias"]
#: (module as the checkpoint spells it, rank) -> the factor on B @ A
ScaleRule = Callable[[str, int], float]


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


@dataclass(frozen=True)
class Entry:
    """Where one tensor belongs. `component` is None where the key does not say it."""

    component: str | None
    module: str
    part: Part


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
        file is no part of a LoRA layer; that is final.
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
    """Every key's entry. CheckpointError for keys that have none, and for two keys of the same part."""
    entries = {key: entry_of(key) for key in readable.tensors}
    if strange := sorted(key for key, entry in entries.items() if entry is None):
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


#: What tells that a tensor belongs to an adapter of another type (peft.tuners, lycoris.modules).
_OTHER_TYPES = {
    "hada_": "LoHa", "lokr_": "LoKr", "oft_": "OFT", "boft_": "BOFT", "ia3_": "IA3", "vera_": "VeRA",
    "lora_E": "AdaLoRA", "lora_embedding_": "LoRA on an embedding", "dora_scale": "LyCORIS DoRA",
    "base_layer": "the base model's own weights", "modules_to_save": "a module trained whole",
    ".alpha": "an alpha tensor", "processor": "an attention processor of diffusers before 0.20",
}  # fmt: skip


def _guess(key: str) -> str:
    return next((f" ({kind})" for mark, kind in _OTHER_TYPES.items() if mark in key), "")
