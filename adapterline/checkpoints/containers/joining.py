"""Several files as one container."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from adapterline.checkpoints.containers.base import Contents
from adapterline.checkpoints.containers.nested import prefixed
from adapterline.errors import CheckpointError

if TYPE_CHECKING:
    import torch


def join_components(container: str, root: Path, parts: Mapping[str, Contents]) -> Contents:
    """The contents of one part for each component, with the component in front of the keys."""
    places = [(prefixed(name, key), part, key) for name, part in parts.items() for key in part.tensors]
    return join(
        container,
        root,
        (file for part in parts.values() for file in part.files),
        places,
        configs={name: part.configs[""] for name, part in parts.items() if "" in part.configs},
        stated_base=next((part.stated_base for part in parts.values() if part.stated_base), None),
    )


def join(
    container: str,
    root: Path,
    files: Iterable[Path],
    places: Iterable[tuple[str, Contents, str]],
    **said: object,
) -> Contents:
    """The contents of (key, the part that it lies in, the key there). CheckpointError if a key occurs twice."""
    readers: dict[str, tuple[Contents, str]] = {}
    for key, part, inner in places:
        if key in readers:
            raise CheckpointError(
                f"{root.name} has {key!r} in two files.",
                expected="one tensor under one name",
                remedy="Save the adapter again, or name the file to export.",
            )
        readers[key] = part, inner

    def read(key: str) -> torch.Tensor:
        part, inner = readers[key]
        return part.read(inner)

    def scalar(key: str) -> float:
        part, inner = readers[key]
        return part.scalar(inner)

    return Contents(
        container=container,
        root=root,
        files=tuple(files),
        tensors={key: part.tensors[inner] for key, (part, inner) in readers.items()},
        read=read,
        scalar=scalar,
        **said,  # type: ignore[arg-type]
    )
