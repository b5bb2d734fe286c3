"""What a container gives, and how a reader says that a path is not its kind."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from adapterline.errors import CheckpointError
from adapterline.values import StoredEmbedding, TensorInfo

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Contents:
    """The tensors and texts of a container, under the keys that are written there.

    `files` are all files that were read, absolute; they are what the source's digest covers. `configs` has PEFT
    configurations by the prefix of the keys that they are about ("" for all). `scalar` gives the value of a tensor of
    one element, of a safetensors file without torch; CheckpointError if it has more, or is no real number.
    """

    container: str
    root: Path
    files: tuple[Path, ...]
    tensors: Mapping[str, TensorInfo]
    read: Callable[[str], torch.Tensor]
    scalar: Callable[[str], float]
    header: Mapping[str, str] = field(default_factory=dict)
    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    stated_base: str | None = None
    step: int | None = None
    embeddings: tuple[StoredEmbedding, ...] = ()


@dataclass(frozen=True)
class Wish:
    """What the user said about which part of a file or folder to read."""

    step: int | None = None
    weights: Literal["raw", "ema"] = "raw"


#: What diffusers calls its final file, in its order of preference (diffusers.loaders.lora_base).
FINAL_NAMES = ("pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin")
#: What accelerate and the diffusers trainers call the folder of an intermediate state.
STEP = re.compile(r"checkpoint[-_](\d{1,18})")
#: `ema` alone is SimpleTuner's and OneTrainer's folder; as a file's name it may be what somebody trained.
_EMA_NAME = re.compile(r".+[_.-]ema|ema_(model|weights|state(_dict)?|checkpoint)")

_ADAPTER = re.compile(r"lora|lokr|loha|hada_|dora_|oft_|boft_|glora|ia3_|vera_|lycoris", re.IGNORECASE)


class NotMyKindError(Exception):
    """This reader does not read such a path; the message says why. Others are asked."""


class Container(Protocol):
    """A reader of one kind of file or folder."""

    name: str

    def open(self, path: Path, wish: Wish) -> Contents:
        """NotMyKindError: ask another. CheckpointError: it is this kind, and broken or ambiguous: that is final."""
        ...


def scalar_of(key: str, tensor: torch.Tensor) -> float:
    """The value of a tensor of one element. CheckpointError if it has more, or is no real number."""
    if tensor.numel() != 1 or tensor.is_complex():
        raise not_a_scalar(key, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
    return float(tensor.item())


def not_a_scalar(key: str, dtype: str, shape: tuple[int, ...]) -> CheckpointError:
    """The refusal of a tensor that should be one number."""
    return CheckpointError(
        f"{key!r} is {dtype} {list(shape)}.",
        expected="one number, as an alpha is",
        remedy="Save the adapter again with the trainer that wrote it.",
    )


def only_ema(where: str) -> CheckpointError:
    """The refusal of EMA weights that nobody asked for."""
    return CheckpointError(
        f"{where} holds EMA weights only.",
        expected="the weights that were trained",
        remedy="To export the EMA weights, pass --weights ema.",
    )


def no_ema(where: str) -> CheckpointError:
    """The refusal where EMA weights were asked for and there are none."""
    return CheckpointError(
        f"{where} has no EMA weights.",
        expected="EMA weights, as --weights ema says",
        remedy="Leave --weights out to export the weights that were trained.",
    )


def is_ema_name(path: Path, *, alone: bool = False) -> bool:
    """Does a file's name say that EMA weights are in it, or its folder's: `lora_ema.safetensors`, `unet_ema/`, `ema/`?

    `alone`: the folder's name does not count.
    """
    folder = "" if alone else path.parent.name
    return bool(_EMA_NAME.fullmatch(path.stem) or _EMA_NAME.fullmatch(folder)) or folder == "ema"


def has_adapter_keys(keys: Iterable[str]) -> bool:
    """Is any of the keys spelled as adapters spell theirs?"""
    return any(_ADAPTER.search(key) for key in keys)


def bad_key(key: str) -> CheckpointError | None:
    """The refusal of a tensor name that no trainer writes and that could do harm downstream, or None."""
    if key and len(key) <= 1024 and key.isprintable() and ".." not in key and "/" not in key and "\\" not in key:
        return None
    return CheckpointError(
        f"A tensor is named {key[:80]!r}.",
        expected="printable names of at most 1024 characters, without path parts",
        remedy="This is not a file that a trainer wrote; do not use it.",
    )
