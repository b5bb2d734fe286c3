"""Readers of files and folders. They know nothing of keys: that is for `dialects/`."""

from __future__ import annotations

from pathlib import Path

from adapterline.checkpoints.containers.base import Container, Contents, NotMyKindError, Wish
from adapterline.checkpoints.containers.distributed import DistributedFolder
from adapterline.checkpoints.containers.files import cut_off, mistaken
from adapterline.checkpoints.containers.peft_folder import PeftFolder
from adapterline.checkpoints.containers.safetensors import SafetensorsFile
from adapterline.checkpoints.containers.sharded import ShardedFile
from adapterline.checkpoints.containers.torch_zip import SUFFIXES, TorchFile
from adapterline.checkpoints.containers.training_folder import TrainingFolder
from adapterline.checkpoints.containers.zero import ZeroFolder
from adapterline.checkpoints.embeddings import with_embeddings_beside
from adapterline.errors import CheckpointError, CheckpointIncompleteError, from_os_error

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
    """The contents of a file or folder. CheckpointError, with what is read, if no reader takes it."""
    try:
        return _open(path, wish)
    except OSError as error:
        raise from_os_error(
            error, f"Looking for a checkpoint in {path.name[:100]}", otherwise=CheckpointError
        ) from error


def _open(path: Path, wish: Wish) -> Contents:
    if not path.exists():
        raise CheckpointIncompleteError(
            f"{str(path)!r} does not exist.",
            expected="a checkpoint file or folder",
            remedy="Correct the path; a repository of the Hub is written hf://org/name.",
        )
    if path.is_file() and path.stat().st_size == 0:
        raise cut_off(f"{path.name} is empty.", "a checkpoint")
    for container in CONTAINERS:
        try:
            contents = container.open(path, wish)
        except NotMyKindError:
            continue
        if path.is_file() or container.name == TrainingFolder.name:  # which knows its steps
            return contents
        return with_embeddings_beside(contents, path, None)
    raise _unknown(path)


def _unknown(path: Path) -> CheckpointError:
    """The refusal of what no reader takes: folders are always taken."""
    if path.is_file() and (other := mistaken(path)):
        return other
    said = f"its name ends in {path.suffix!r}" if path.suffix else "its name has no ending"
    if not path.is_file():
        said = "it is neither a file nor a folder"
    return CheckpointError(
        f"{path.name} is of no kind that can be read: {said}.",
        expected=f"a folder, or a file that ends in .safetensors, .index.json, {', '.join(SUFFIXES)}",
        remedy="Name the file or the folder that the trainer saved the adapter to.",
    )
