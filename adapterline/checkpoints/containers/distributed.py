"""A folder of `torch.distributed.checkpoint`: `.metadata`, and tensors in pieces in `*.distcp`, by any number of ranks.

torch's own reader unpickles `.metadata`, which runs what is in there. Here it is read as data:

    state_dict_metadata   {name: size, dtype, and the offsets and sizes of the pieces}
    storage_data          {(name, offset): file, offset in the file, length}     each piece is an archive of torch.save
    planner_data          {name: path in the nested state dict}

Names that belong to an optimizer have no effect, and what was saved as bytes (numbers, settings) is not looked at.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from adapterline.checkpoints.containers.base import Contents, NotMyKindError, Wish
from adapterline.checkpoints.containers.files import is_plain_name, reading, refuse_where_final, step_of
from adapterline.checkpoints.containers.leaves import contents_of
from adapterline.checkpoints.containers.nested import find_state_dict
from adapterline.checkpoints.containers.pickles import Global, Made, printable, read_pickle
from adapterline.checkpoints.containers.tensors import DTYPES, SIZES, Unread, is_shape
from adapterline.checkpoints.containers.torch_archive import Stored, Unfit, read_archive
from adapterline.errors import CheckpointError, CheckpointIncompleteError

if TYPE_CHECKING:
    import torch

METADATA: Final = ".metadata"
#: Of one tensor: as many as there are ranks. Those cut along several dimensions are compared in pairs.
MAX_PIECES: Final = 100_000
MAX_PIECES_IN_PAIRS: Final = 1_000

Offsets = tuple[int, ...]


class DistributedFolder:
    """Reads checkpoints of torch.distributed.checkpoint, as FSDP and accelerate write them."""

    name = "dcp"

    def open(self, path: Path, wish: Wish) -> Contents:
        """See `Container.open`."""
        named = path.is_file() and (path.name == METADATA or path.suffix == ".distcp")
        folder = path.parent if named else path
        if not folder.is_dir():
            raise NotMyKindError("not a folder")
        if not (folder / METADATA).is_file():
            if any(folder.glob("*.distcp")):
                raise _unfinished(folder, f"no {METADATA}, which is written last")
            raise NotMyKindError(f"no {METADATA} in it")
        refuse_where_final(folder)
        if wish.step is not None:
            raise NotMyKindError("a step was asked for, and such a folder has none")
        index = _Index(folder)
        found = find_state_dict(folder.name, index.tree(), wish.weights)
        leaves = {key: index.assemble(leaf) for key, leaf in found.items() if isinstance(leaf, _Claim)}
        files = {piece.path for leaf in leaves.values() for piece in leaf.pieces}
        contents = contents_of(self.name, folder, sorted({folder / METADATA, *files}), leaves)
        return replace(contents, step=step_of(folder))


@dataclass(frozen=True)
class Piece:
    """A part of a tensor: where in it, how large, and the archive that holds it (bytes)."""

    offsets: Offsets
    sizes: Offsets
    path: Path
    start: int
    length: int


@dataclass(frozen=True)
class Assembled(Unread):
    """A tensor that lies in pieces which cover it exactly."""

    name: str
    dtype: str
    shape: Offsets
    pieces: tuple[Piece, ...]

    def load(self) -> torch.Tensor:
        """The tensor: memory-mapped if it is one piece, else put together."""
        import torch

        if len(self.pieces) == 1:
            return self._piece(self.pieces[0]).load()
        parts = [(piece, self._piece(piece).load()) for piece in self.pieces]
        whole = torch.empty(self.shape, dtype=parts[0][1].dtype)
        for piece, part in parts:
            places = zip(piece.offsets, piece.sizes, strict=True)
            whole[tuple(slice(offset, offset + size) for offset, size in places)] = part
        return whole

    def _piece(self, piece: Piece) -> Stored:
        stored = read_archive(piece.path, piece.start, piece.length)
        if not isinstance(stored, Stored) or stored.shape != piece.sizes or stored.dtype != self.dtype:
            found = f"{stored.dtype} {list(stored.shape)}" if isinstance(stored, Stored) else "no dense tensor"
            raise CheckpointError(
                f"{piece.path.name} has {found} for a piece of {printable(self.name)!r}.",
                expected=f"{self.dtype} {list(piece.sizes)}, as {METADATA} says",
                remedy="These files are of different saves: copy the folder again.",
            )
        return stored


class _Index:
    """What `.metadata` says, checked."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sizes: dict[str, int] = {}
        with reading(folder / METADATA):
            data = (folder / METADATA).read_bytes()
        metadata = read_pickle(data, METADATA)
        if not isinstance(metadata, Made) or not metadata.name.endswith(".Metadata"):
            raise self._broken("it is no Metadata object")
        tensors, stored, paths = (
            metadata.get(name) for name in ("state_dict_metadata", "storage_data", "planner_data")
        )
        if not isinstance(tensors, dict) or not isinstance(stored, dict):
            raise self._broken("it lacks state_dict_metadata or storage_data")
        self._tensors: dict[Any, Any] = tensors
        self._paths: dict[Any, Any] = paths if isinstance(paths, dict) else {}
        self._stored = self._places(stored)

    def tree(self) -> dict[str, Any]:
        """The nested state dict, with a leaf for each tensor."""
        root: dict[str, Any] = {}
        for name, entry in self._tensors.items():
            if not isinstance(name, str) or not isinstance(entry, Made):
                raise self._broken("a name or an entry is of no known form")
            if entry.name.endswith(".BytesStorageMetadata"):
                continue
            path = self._paths.get(name)
            parts = path if isinstance(path, tuple) and path else (name,)
            if not all(isinstance(part, str) for part in parts):  # a list: no state dict is one
                continue
            node: Any = root
            for part in parts[:-1]:
                node = node.setdefault(part, {})
                if not isinstance(node, dict):
                    raise self._broken(f"{printable(name)!r} lies inside a tensor")
            if parts[-1] in node:
                raise self._broken(f"{printable(name)!r} lies where another tensor does")
            node[parts[-1]] = self._leaf(name, entry)
        return root

    def _leaf(self, name: str, entry: Made) -> _Claim | Unfit:
        shape, pieces, properties = entry.get("size"), entry.get("chunks"), entry.get("properties")
        if not is_shape(shape) or not isinstance(pieces, list) or not isinstance(properties, Made):
            raise self._broken(f"the entry of {printable(name)!r} is of no known form")
        state = properties.state
        kind = state[0] if isinstance(state, tuple) and state else properties.get("dtype")
        dtype = DTYPES.get(kind.name) if isinstance(kind, Global) else None
        if dtype is None:
            return Unfit(f"is {printable(getattr(kind, 'name', kind.__class__.__name__))}")
        if 0 in shape:
            return Unfit(f"is empty: {list(shape)}")
        if len(pieces) > MAX_PIECES:
            raise self._broken(f"{printable(name)!r} is in {len(pieces)} pieces")
        return _Claim(self, name, dtype, shape, pieces)

    def assemble(self, claim: _Claim) -> Assembled:
        """The tensor, once its pieces are found and cover it. Those of an optimizer are never asked for."""
        pieces = tuple(self._piece(claim, chunk) for chunk in claim.chunks)
        if not _cover(claim.shape, pieces):
            raise self._broken(f"the pieces of {printable(claim.name)!r} overlap, or leave holes in it")
        return Assembled(claim.name, claim.dtype, claim.shape, pieces)

    def _piece(self, claim: _Claim, chunk: Any) -> Piece:
        offsets, sizes = (chunk.get("offsets"), chunk.get("sizes")) if isinstance(chunk, Made) else (None, None)
        if not is_shape(offsets) or not is_shape(sizes) or not len(offsets) == len(sizes) == len(claim.shape):
            raise self._broken(f"a piece of {printable(claim.name)!r} is of no known form")
        if any(offset + size > whole for offset, size, whole in zip(offsets, sizes, claim.shape, strict=True)):
            raise self._broken(f"a piece of {printable(claim.name)!r} exceeds it")
        place = self._stored.get((claim.name, offsets)) or self._stored.get((claim.name, None))
        if place is None:
            raise self._broken(f"it does not say where {printable(claim.name)!r} lies")
        path, start, length = self._place(place)
        if math.prod(sizes) * SIZES[claim.dtype] > length:
            raise self._broken(f"a piece of {printable(claim.name)!r} claims more elements than it has bytes for")
        return Piece(offsets, sizes, path, start, length)

    def _places(self, stored: dict[Any, Any]) -> dict[tuple[str, Offsets | None], Made]:
        places: dict[tuple[str, Offsets | None], Made] = {}
        for key, value in stored.items():
            name, offset = (key.get("fqn"), key.get("offset")) if isinstance(key, Made) else (None, None)
            if not isinstance(name, str) or not (offset is None or is_shape(offset)) or not isinstance(value, Made):
                raise self._broken("an entry of storage_data is of no known form")
            if (name, offset) in places:
                raise self._broken(f"{printable(name)!r} lies in two places")
            places[name, offset] = value
        return places

    def _place(self, place: Made) -> tuple[Path, int, int]:
        file, start, length = (place.get(name) for name in ("relative_path", "offset", "length"))
        if not is_plain_name(file):
            raise self._broken(f"a file is named {printable(file)!r}")
        if not is_shape((start, length)):
            raise self._broken("an offset or a length is no number")
        if place.get("transform_descriptors"):
            raise self._broken("its tensors were transformed (compressed, encrypted) when they were written")
        if file not in self._sizes:
            if not (self._folder / file).is_file():
                raise _unfinished(self._folder, f"no {file}, which {METADATA} names")
            self._sizes[file] = (self._folder / file).stat().st_size
        if start + length > self._sizes[file]:
            raise _unfinished(self._folder, f"{file} only in part: {self._sizes[file]} bytes")
        return self._folder / file, start, length

    def _broken(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"{METADATA} in {self._folder.name} cannot be read: {what}.",
            expected="what torch.distributed.checkpoint.save writes",
            remedy="Save it again, or save the adapter's state dict alone, best as .safetensors.",
        )


@dataclass(frozen=True)
class _Claim(Unread):
    """What the metadata says of a tensor, before its pieces are looked for."""

    index: _Index
    name: str
    dtype: str
    shape: Offsets
    chunks: list[Any]

    def load(self) -> torch.Tensor:
        return self.index.assemble(self).load()


def _cover(shape: Offsets, pieces: tuple[Piece, ...]) -> bool:
    """Do the pieces, none of which exceeds it, cover the shape exactly once? Yes, if they are disjoint and enough."""
    if sum(math.prod(piece.sizes) for piece in pieces) != math.prod(shape):
        return False
    pieces = tuple(piece for piece in pieces if 0 not in piece.sizes)  # a rank may have nothing
    cut = [axis for axis, size in enumerate(shape) if any(piece.sizes[axis] != size for piece in pieces)]
    if len(cut) <= 1:  # one rank's rows after the other's
        ranges = sorted((piece.offsets[axis], piece.sizes[axis]) for piece in pieces for axis in cut)
        starts = itertools.accumulate((size for _, size in ranges), initial=0)
        return len(pieces) == max(1, len(ranges)) and all(
            offset == start for (offset, _), start in zip(ranges, starts, strict=False)
        )
    return len(pieces) <= MAX_PIECES_IN_PAIRS and all(
        any(
            one.offsets[axis] + one.sizes[axis] <= other.offsets[axis]
            or other.offsets[axis] + other.sizes[axis] <= one.offsets[axis]
            for axis in cut
        )
        for one, other in itertools.combinations(pieces, 2)
    )


def _unfinished(folder: Path, what: str) -> CheckpointIncompleteError:
    return CheckpointIncompleteError(
        f"{folder.name} has {what}.",
        expected=f"{METADATA} and every .distcp file of every rank",
        remedy="If the run is still saving, wait; otherwise copy the folder again, with the files of all ranks.",
    )
