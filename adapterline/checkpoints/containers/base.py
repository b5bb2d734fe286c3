"""What a container gives, and how a reader says that a path is not its kind."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from adapterline.errors import CheckpointError
from adapterline.values import TensorInfo

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Contents:
    """The tensors and texts of a container, under the keys that are written there.

    `files` are all files that were read, absolute; they are what the source's digest covers. `configs` has PEFT
    configurations by the prefix of the keys that they are about ("" for all).
    """

    container: str
    root: Path
    files: tuple[Path, ...]
    tensors: Mapping[str, TensorInfo]
    read: Callable[[str], torch.Tensor]
    header: Mapping[str, str] = field(default_factory=dict)
    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    stated_base: str | None = None
    step: int | None = None


@dataclass(frozen=True)
class Wish:
    """What the user said about which part of a folder to read."""

    step: int | None = None


#: What diffusers calls its final file, in its order of preference (diffusers.loaders.lora_base).
FINAL_NAMES = ("pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin")
#: What accelerate and the diffusers trainers call the folder of an intermediate state.
STEP = re.compile(r"checkpoint-(\d{1,18})")


class NotMyKindError(Exception):
    """This reader does not read such a path; the message says why. Others are asked."""


class Container(Protocol):
    """A reader of one kind of file or folder."""

    name: str

    def open(self, path: Path, wish: Wish) -> Contents:
        """NotMyKindError: ask another. CheckpointError: it is this kind, and broken or ambiguous: that is final."""
        ...


def bad_key(key: str) -> CheckpointError | None:
    """The refusal of a tensor name that no trainer writes and that could do harm downstream, or None."""
    if key and len(key) <= 1024 and key.isprintable() and ".." not in key and "/" not in key and "\\" not in key:
        return None
    return CheckpointError(
        f"A tensor is named {key[:80]!r}.",
        expected="printable names of at most 1024 characters, without path parts",
        remedy="This is not a file that a trainer wrote; do not use it.",
    )
