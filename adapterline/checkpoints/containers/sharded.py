"""A state dict in several files: `model.safetensors.index.json` or `pytorch_model.bin.index.json` beside its shards."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from adapterline.checkpoints.containers.base import Contents, NotMyKindError, Wish, bad_key
from adapterline.checkpoints.containers.files import read_json
from adapterline.checkpoints.containers.joining import join
from adapterline.checkpoints.containers.leaves import open_state_dict
from adapterline.checkpoints.containers.pickles import printable
from adapterline.checkpoints.containers.safetensors import SafetensorsFile
from adapterline.errors import CheckpointError, CheckpointIncompleteError

SUFFIX: Final = ".index.json"
MAX_INDEX: Final = 100_000_000
MAX_SHARDS: Final = 10_000
_SHARD = re.compile(r"[\w.-]{1,200}\.(safetensors|bin)")


class ShardedFile:
    """Reads the shards that an index names."""

    name = "sharded"

    def open(self, path: Path, wish: Wish) -> Contents:
        """See `Container.open`. CheckpointIncompleteError if a shard, or a tensor in it, is not there."""
        if not path.is_file():
            raise NotMyKindError("not a file")
        if not path.name.endswith((f".safetensors{SUFFIX}", f".bin{SUFFIX}")):
            raise NotMyKindError(f"its name does not end in .safetensors{SUFFIX} or .bin{SUFFIX}")
        weights = read_index(path)
        shards = {name: self._shard(path, name, wish) for name in sorted(set(weights.values()))}
        for key, name in weights.items():
            if key not in shards[name].tensors:
                raise _missing(path, f"{printable(key)!r}, which should be in {name}")
        extra = next((key for name, shard in shards.items() for key in shard.tensors if weights.get(key) != name), None)
        if extra is not None:
            raise CheckpointError(
                f"{path.name} does not name {printable(extra)!r}, which is in one of its files.",
                expected="every tensor in the index",
                remedy="These files are of different saves: copy them again.",
            )
        files = (path, *(path.parent / name for name in shards))
        return join(self.name, path.parent, files, ((key, shards[name], key) for key, name in weights.items()))

    def _shard(self, index: Path, name: str, wish: Wish) -> Contents:
        path = index.parent / name
        if not path.is_file():
            raise _missing(index, f"the file {name}")
        if path.suffix == ".safetensors":
            return SafetensorsFile().open(path, wish)
        return open_state_dict(self.name, path, wish)


def read_index(path: Path) -> dict[str, str]:
    """{tensor: file} of an index. CheckpointError if it is none, or names a file that lies elsewhere."""
    value = read_json(path, MAX_INDEX, "an index as transformers and accelerate write it")
    weights = value.get("weight_map") if isinstance(value, dict) else None
    if not isinstance(weights, dict) or not weights:
        raise _no_index(f"{path.name} has no weight_map.")
    for key, name in weights.items():
        if refusal := bad_key(key):
            raise refusal
        if not isinstance(name, str) or not _SHARD.fullmatch(name):
            raise _no_index(f"{path.name} names the file {printable(name)!r}.", "the names of files beside it")
    if len(set(weights.values())) > MAX_SHARDS:
        raise _no_index(f"{path.name} names over {MAX_SHARDS} files.")
    return weights


def _no_index(found: str, expected: str = "an index of shards") -> CheckpointError:
    return CheckpointError(found, expected=expected, remedy="Copy it again, or save the adapter again in one file.")


def _missing(path: Path, what: str) -> CheckpointIncompleteError:
    return CheckpointIncompleteError(
        f"{path.parent.name} lacks {what}.",
        expected=f"everything that {path.name} names",
        remedy="If it is still being written, wait; otherwise copy it again.",
    )
