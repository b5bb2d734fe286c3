"""From tensors that have not been read yet to the contents of a container."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from adapterline.checkpoints.containers.base import Contents, Wish, is_ema_name, only_ema, scalar_of
from adapterline.checkpoints.containers.nested import Leaf, find_state_dict
from adapterline.checkpoints.containers.torch_archive import read_archive
from adapterline.errors import CheckpointError


def contents_of(container: str, root: Path, files: Iterable[Path], leaves: Mapping[str, Leaf]) -> Contents:
    """The contents. CheckpointError if the tensors have more bytes than the files: copying them would fill memory."""
    files = tuple(files)
    total = sum(leaf.nbytes for leaf in leaves.values())
    if total > sum(file.stat().st_size for file in files):
        raise CheckpointError(
            f"The tensors in {files[-1].name} share memory: they have {total} bytes in all, more than the file.",
            expected="tensors with bytes of their own",
            remedy="Save the adapter again, best as .safetensors.",
        )
    return Contents(
        container=container,
        root=root,
        files=files,
        tensors={key: leaf.info for key, leaf in leaves.items()},
        read=lambda key: leaves[key].load(),
        scalar=lambda key: scalar_of(key, leaves[key].load()),
    )


def open_state_dict(container: str, path: Path, wish: Wish) -> Contents:
    """The contents of a file of torch.save: see `nested` for which of its state dicts, and when it is refused."""
    averaged = is_ema_name(path)
    if averaged and wish.weights == "raw":
        raise only_ema(path.name)
    leaves = find_state_dict(path.name, read_archive(path), "all" if averaged else wish.weights)
    return contents_of(container, path.parent, (path,), leaves)
