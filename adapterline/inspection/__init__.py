"""What a checkpoint is, told from its headers and one hashing pass; a `.safetensors` file is read without torch."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

from pydantic import Field

from adapterline.checkpoints import load_checkpoint, sha256_of
from adapterline.checkpoints.containers.torch_archive import read_archive
from adapterline.checkpoints.containers.torch_zip import SUFFIXES, TorchFile
from adapterline.checkpoints.dialects import dialect_named
from adapterline.checkpoints.evidence import evidence_of, guess
from adapterline.checkpoints.refused import refused_entries, refusing_dialect
from adapterline.checkpoints.trainers import trainer_of
from adapterline.deltas import DTYPES
from adapterline.errors import CheckpointError, RefusedError
from adapterline.inspection.components import InspectedComponent, in_numbers, name_of, refused_in_numbers
from adapterline.inspection.layers import layers_of
from adapterline.inspection.origin import Origin, origin_of
from adapterline.values import ExportOptions, Source, Value, digest_of

__all__ = ["InspectedComponent", "InspectedEmbedding", "Inspection", "inspect"]


class InspectedEmbedding(Value):
    """A new token, as one text encoder knows it."""

    token: str
    encoder: str = Field(description="what the checkpoint calls the text encoder; empty where it does not say")
    shape: tuple[int, ...]
    dtype: str


class Inspection(Value):
    """The answer of `adapterline inspect`."""

    path: str
    container: str
    dialect: str | None = Field(description="None: there are no keys")
    trainer: str | None
    family: str | None = Field(description="told or, with a warning that says so, guessed; never taken by an export")
    components: dict[str, InspectedComponent]
    embeddings: tuple[InspectedEmbedding, ...] = Field((), description="new tokens that were trained with the adapter")
    digest: str
    size: int = Field(description="bytes of the files that are read")
    files: tuple[str, ...]
    step: int | None
    base: str | None = Field(description="the Hub id that the checkpoint names")
    architecture: str | None = Field(
        description="alias of the shipped base that export proves on where the checkpoint names none"
    )
    evidence: tuple[str, ...]
    warnings: tuple[str, ...]


def inspect(path: str | Path, options: ExportOptions | None = None) -> Inspection:
    """Reads headers and hashes files; no tensor is loaded.

    An adapter that can be read and is not exported, because of its type, its settings or a tensor too many, is told all
    the same, with the reason among the warnings. CheckpointError, as `export` raises it, for what is no adapter, or is
    broken.
    """
    options = options or ExportOptions()
    with tempfile.TemporaryDirectory(prefix="adapterline-") as name:
        folder = Path(name)
        try:
            source = load_checkpoint(str(path), options, folder)
        except RefusedError as refusal:
            return _refused(str(path), options, folder, refusal)
        return _told(str(path), source, options)


def _told(path: str, source: Source, options: ExportOptions) -> Inspection:
    components = layers_of(dialect_named(source.dialect).entries(source))
    origin = origin_of(source, components, evidence_of(source))
    warnings = list(origin.warnings)
    found: dict[str, InspectedComponent] = {}
    for layers in components:
        name = name_of(layers, source, origin.family)
        name = str(layers.spelled) if name in found else name
        found[name] = in_numbers(source, name, layers, options, warnings)
    return _inspection(path, source, options, origin, found, warnings)


def _refused(path: str, options: ExportOptions, folder: Path, refusal: RefusedError) -> Inspection:
    """What can be told of what is refused. The refusal itself if that is nothing."""
    if empty := _empty_file(path, folder):
        return _of_nothing(path, empty, refusal)
    source = load_checkpoint(path, options, folder, refusing_dialect)
    components = layers_of(refused_entries(source))
    if source.tensors and not components:
        raise refusal
    origin = origin_of(source, components, evidence_of(source)) if components else Origin(None)
    found: dict[str, InspectedComponent] = {}
    for layers in components:
        name = name_of(layers, source, origin.family)
        found[str(layers.spelled) if name in found else name] = refused_in_numbers(source, layers)
    warnings = [f"It cannot be exported: {refusal}", *origin.warnings]
    return _inspection(path, source, options, origin, found, warnings)


def _empty_file(path: str, folder: Path) -> Path | None:
    """The file, or what was fetched of it, if it is one of torch.save that holds an empty state dict."""
    for file in (Path(path), folder / Path(path).name):
        with contextlib.suppress(OSError, CheckpointError):
            if file.suffix in SUFFIXES and file.is_file() and read_archive(file) == {}:
                return file
    return None


def _of_nothing(path: str, file: Path, refusal: RefusedError) -> Inspection:
    return Inspection(
        path=path,
        container=TorchFile.name,
        dialect=None,
        trainer=None,
        family=None,
        components={},
        digest=digest_of([[file.name, sha256_of(file)]]),
        size=file.stat().st_size,
        files=(file.name,),
        step=None,
        base=None,
        architecture=None,
        evidence=(),
        warnings=(f"It cannot be exported: {refusal}",),
    )


def _inspection(
    path: str,
    source: Source,
    options: ExportOptions,
    origin: Origin,
    components: dict[str, InspectedComponent],
    warnings: list[str],
) -> Inspection:
    evidence = evidence_of(source)
    guessed = None if source.stated_base else guess(evidence)
    return Inspection(
        path=path,
        container=source.container,
        dialect=source.dialect if source.tensors else None,
        trainer=trainer_of(source) if source.tensors else None,
        family=origin.family.name if origin.family else None,
        components=dict(sorted(components.items())),
        embeddings=tuple(
            InspectedEmbedding(
                token=each.token,
                encoder=each.encoder,
                shape=each.info.shape,
                dtype=DTYPES.get(each.info.dtype, each.info.dtype),
            )
            for each in source.embeddings
        ),
        digest=source.digest,
        size=sum(_place(source, name, options).stat().st_size for name, _ in source.files),
        files=tuple(name for name, _ in source.files),
        step=source.step,
        base=source.stated_base,
        architecture=guessed.base if guessed else None,
        evidence=(*origin.reasons, *map(str, sorted(evidence, key=lambda each: not each.families))),
        warnings=tuple(dict.fromkeys(warnings)),
    )


def _place(source: Source, name: str, options: ExportOptions) -> Path:
    outside = options.adapter_config is not None and name.startswith("../")
    return Path(str(options.adapter_config)) if outside else source.root / name
