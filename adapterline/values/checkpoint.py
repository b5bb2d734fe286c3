"""What was found: a checkpoint whose tensors are read when asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class TensorInfo:
    """What a container says of a tensor without reading it."""

    dtype: str  # as safetensors spells it: F32, BF16, ...
    shape: tuple[int, ...]


@dataclass(frozen=True)
class StoredEmbedding:
    """What was trained for a new token, as a checkpoint has it: a vector, or [n, width] of them.

    `encoder` is what the checkpoint calls the text encoder (clip_l, clip_g, t5), its number among those of the pipeline
    ("0"), or "" where it says neither. `info` is of what `read` gives; `where` names file and key.
    """

    token: str
    encoder: str
    info: TensorInfo
    read: Callable[[], torch.Tensor]
    where: str


@dataclass(frozen=True)
class Source:
    """A checkpoint whose files are hashed and whose dialect is known; its tensors are read when asked for.

    `tensors` holds the keys after wrappers (`module.`, `_orig_mod.`) were peeled. `read(key)` gives a tensor that is
    memory-mapped where the container allows it; `scalar(key)` the value of one of one element, without torch where the
    file is safetensors. `configs` has a PEFT configuration by component prefix ("" for the
    whole file). `digest` covers every file that the container reads, by its path relative to `root`.
    """

    uri: str
    path: Path  # where it lies on this machine
    root: Path
    files: tuple[tuple[str, str], ...]  # (path relative to root, sha256), sorted
    digest: str
    modified_at: datetime
    container: str
    dialect: str
    tensors: Mapping[str, TensorInfo]
    read: Callable[[str], torch.Tensor]
    scalar: Callable[[str], float]
    header: Mapping[str, str] = field(default_factory=dict)
    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    stated_base: str | None = None  # a Hub id that the checkpoint names; never a path
    step: int | None = None
    embeddings: tuple[StoredEmbedding, ...] = ()

    @property
    def name(self) -> str:
        """The last part of its URI: what may be said of it in public."""
        return self.uri.rstrip("/").rpartition("/")[2]
