"""Readers of files and folders. They know nothing of keys: that is for `dialects/`."""

from __future__ import annotations

from pathlib import Path

from adapterline.checkpoints.containers.base import Container, Contents, NotMyKindError, Wish
from adapterline.checkpoints.containers.distributed import DistributedFolder
from adapterline.checkpoints.containers.peft_folder import PeftFolder
from adapterline.checkpoints.containers.safetensors import SafetensorsFile
from adapterline.checkpoints.containers.sharded import ShardedFile
from adapterline.checkpoints.containers.torch_zip import TorchFile
from adapterline.checkpoints.containers.training_folder import TrainingFolder
from adapterline.checkpoints.containers.zero import ZeroFolder
from adapterline.checkpoints.embeddings import with_embeddings_beside
from adapterline.errors import CheckpointError, from_os_error

#: In the order in which they are asked; the first that does not say "not my kind" decides.
CONTAINERS: tuple[Container, ...] = (
    PeftFolder(),
    DistributedFolder(),
    ZeroFolder(),
    TrainingFolder(),
    ShardedFile(),
    SafetensorsFile(),
    TorchFile(),
)


def open_container(path: Path, wish: Wish) -> Contents:
    """The contents of a file or folder. CheckpointError, with what each reader said, if none reads it."""
    try:
        return _open(path, wish)
    except OSError as error:
        raise from_os_error(
            error, f"Looking for a checkpoint in {path.name[:100]}", otherwise=CheckpointError
        ) from error


def _open(path: Path, wish: Wish) -> Contents:
    if not path.exists():
        raise CheckpointError(f"{str(path)!r} does not exist.", expected="a checkpoint file or folder")
    if path.is_file() and path.stat().st_size == 0:
        raise CheckpointError(f"{path.name} is empty.", expected="a checkpoint")
    reasons = []
    for container in CONTAINERS:
        try:
            contents = container.open(path, wish)
        except NotMyKindError as reason:
            reasons.append(f"{container.name}: {reason}")
            continue
        if path.is_file() or container.name == TrainingFolder.name:  # which knows its steps
            return contents
        return with_embeddings_beside(contents, path, None)
    raise CheckpointError(f"{path.name} is no checkpoint that can be read ({'; '.join(reasons)}).")
