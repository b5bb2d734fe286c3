"""Reading checkpoints: a container gives tensors under keys, wrappers are peeled off, a dialect says what they are."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from adapterline.checkpoints.archives import is_archive, unpack
from adapterline.checkpoints.containers import open_container
from adapterline.checkpoints.containers.base import Contents, Wish
from adapterline.checkpoints.containers.files import reading
from adapterline.checkpoints.containers.peft_folder import read_config
from adapterline.checkpoints.dialects import identify
from adapterline.checkpoints.dialects.base import Dialect, Readable
from adapterline.checkpoints.embeddings import with_embeddings_inside
from adapterline.checkpoints.evidence import evidence_of, stated_base
from adapterline.checkpoints.wrappers import peel
from adapterline.digests import sha256_of_file
from adapterline.errors import CheckpointError, UsageError
from adapterline.values import ExportOptions, Source, digest_of

if TYPE_CHECKING:
    import torch

#: What a remote prefix is asked for: nothing else can be part of an adapter.
_WANTED = (
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".json", "README.md", "config.yaml", ".sig"),
    *(".distcp", ".metadata", "latest"),
)
#: States of other things than the model, by file name, and the folder of a distributed optimizer.
_STATES = re.compile(r"(?:.*/)?(?:(?:optimizer|scheduler|random_states|training_args)[^/]*|optimizer(?:_\d+)?/[^/]+)")


def load_checkpoint(
    uri: str, options: ExportOptions, folder: Path, dialect_of: Callable[[Readable], Dialect] | None = None
) -> Source:
    """Opens the checkpoint at `uri`: a path, `s3://bucket/key-or-prefix`, or `hf://org/name[@revision][/path]`.

    What is remote is fetched into `folder`, which must outlive the source, and a tar archive is unpacked there. Every
    file that is read is hashed.
    `dialect_of` decides the dialect; by default the only one that reads all of it.
    CheckpointError (transient where another try may help) if it cannot be read or is of no known kind.
    """
    path = fetch(uri, folder)
    if is_archive(path):
        path = unpack(path, folder / "unpacked", is_wanted)
    contents = open_container(path, Wish(step=options.step, weights=options.weights))
    return _source(uri, path, _with_config(contents, options), dialect_of)


def reopen(source: Source, options: ExportOptions) -> Source:
    """The same checkpoint, read anew from where it lies. CheckpointError if it is no longer what it was."""
    contents = _with_config(open_container(source.path, Wish(step=options.step, weights=options.weights)), options)
    again = _source(source.uri, source.path, contents)
    if again.digest != source.digest:
        raise CheckpointError(
            f"{source.name} changed during the export: its digest was {source.digest[:12]} and is {again.digest[:12]}.",
            expected="a checkpoint that nobody writes to",
            remedy="Run the export again once the training run has ended.",
            transient=True,
        )
    return again


def fetch(uri: str, folder: Path) -> Path:
    """The local path of what `uri` names, fetched into `folder` if it is remote."""
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme == "file":
        return Path(rest if separator else uri).expanduser()
    if scheme == "s3":
        from adapterline.checkpoints.fetch_s3 import fetch_s3

        return fetch_s3(uri, folder, wanted=is_wanted)
    if scheme == "hf":
        from adapterline.checkpoints.fetch_hub import fetch_hub

        return fetch_hub(uri, folder)
    raise UsageError(
        f"{uri!r} cannot be read: {scheme!r} is no known scheme.",
        expected="a path, s3://bucket/key or hf://org/name",
        remedy="Copy the checkpoint to one of these places.",
    )


def is_wanted(key: str) -> bool:
    """Can a file of this name be part of an adapter? Optimizer and random states are not fetched."""
    return key.endswith(_WANTED) and not _STATES.fullmatch(key)


def sha256_of(path: Path) -> str:
    """The sha256 of a file's bytes. CheckpointError if it cannot be read."""
    with reading(path):
        return sha256_of_file(path)


def _with_config(contents: Contents, options: ExportOptions) -> Contents:
    """The contents with the PEFT configuration that the user names for a checkpoint that has none."""
    if options.adapter_config is None:
        return contents
    if contents.configs:
        raise UsageError(
            "--adapter-config was given for a checkpoint that has its own configuration.",
            expected="a checkpoint that has none",
            remedy="Leave --adapter-config out: what the checkpoint says counts.",
        )
    path = Path(options.adapter_config).expanduser()
    if not path.is_file():
        raise UsageError(
            f"--adapter-config names {path.name!r}, which is no file.",
            expected="the adapter_config.json that PEFT saved with the adapter",
            remedy="Correct the path, or pass --alpha.",
        )
    return replace(contents, configs={"": read_config(path)}, files=(*contents.files, path))


def _source(
    uri: str, path: Path, contents: Contents, dialect_of: Callable[[Readable], Dialect] | None = None
) -> Source:
    files = _digests(contents)
    contents = with_embeddings_inside(contents)
    peeled = peel(contents.tensors)
    view = replace(
        contents,
        tensors={key: contents.tensors[written] for key, written in peeled.items()},
        scalar=lambda key: contents.scalar(peeled[key]),
    )
    dialect = dialect_of(view) if dialect_of else identify(view)[0]
    source = Source(
        uri=uri,
        path=path,
        root=contents.root,
        files=files,
        digest=digest_of([list(row) for row in files]),
        modified_at=datetime.fromtimestamp(max(file.stat().st_mtime for file in contents.files), UTC),
        container=contents.container,
        dialect=dialect.name,
        tensors=view.tensors,
        read=_reader(contents, peeled),
        scalar=lambda key: contents.scalar(peeled[key]),
        header=contents.header,
        configs=contents.configs,
        stated_base=contents.stated_base,
        step=contents.step,
        embeddings=contents.embeddings,
    )
    return replace(source, stated_base=stated_base(evidence_of(source)))


def _reader(contents: Contents, peeled: dict[str, str]) -> Callable[[str], torch.Tensor]:
    return lambda key: contents.read(peeled[key])


def _digests(contents: Contents) -> tuple[tuple[str, str], ...]:
    """(relative path, sha256) of every file, sorted. A file outside the root is known by its name alone."""

    def relative(file: Path) -> str:
        inside = file.is_relative_to(contents.root)
        return file.relative_to(contents.root).as_posix() if inside else f"../{file.name}"

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        digests = pool.map(sha256_of, contents.files)
    return tuple(sorted(zip(map(relative, contents.files), digests, strict=True)))
