"""Embeddings of new tokens that were trained with an adapter: in files beside it, or in its own file.

    learned_embeds.safetensors, .bin            diffusers' textual_inversion scripts: {token: [width] or [n, width]};
    learned_embeds_2.*                          with `_2` those of the second text encoder
    {name}_emb.safetensors                      diffusers' advanced DreamBooth scripts, beside
                                                pytorch_lora_weights.safetensors: {clip_l, clip_g, t5: [n, width]}, a
                                                row each for the tokens `<s0>` to `<s{n-1}>` (TokenEmbeddingsHandler)
    {token}.safetensors                         kohya, ai-toolkit and OneTrainer: {emb_params} or {clip_l, clip_g, ...}
    {token}.pt                                  A1111 and ai-toolkit: {"string_to_param": {"*": [n, width]}, "name"}
    bundle_emb.{token}.{clip_l, clip_g, t5}     in the adapter's file: OneTrainer
    bundle_emb.{token}.string_to_param.*        the same: A1111 and ComfyUI

Files that are named by a step (`learned_embeds-steps-500`, `{token}_000000500`) belong to the adapter of that step.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from adapterline.checkpoints.containers.base import FINAL_NAMES, Contents, bad_key
from adapterline.checkpoints.containers.safetensors import TensorReader, read_header
from adapterline.checkpoints.containers.torch_archive import Stored, read_archive
from adapterline.errors import CheckpointError
from adapterline.values import StoredEmbedding, TensorInfo

if TYPE_CHECKING:
    import torch

#: What stands for all embeddings among the names of components.
EMBEDDINGS: Final = "embeddings"
#: What OneTrainer calls the vectors that it adds to a text encoder's output.
OUTPUT_SUFFIX: Final = "_out"

_PREFIX = "bundle_emb."
_A1111 = "string_to_param"
_LEARNED = re.compile(r"learned_embeds(?P<second>_2)?(-steps-(?P<step>\d{1,18}))?\.(safetensors|bin)")
_STEP = re.compile(r"(?P<token>.+)_(?P<step>\d{9,18})")
_PIVOTAL = re.compile(r".*_emb\.safetensors")
#: What is called so and is read as none of the above is refused, and not taken for something else.
_BY_NAME = re.compile(r"learned_embeds.*\.(safetensors|bin)|.*_emb\.safetensors")
_ENCODER = re.compile(r"(clip_[lgh]|t5(xxl)?|llama|gemma)(_out)?|em[bp]_params(_out)?|text_encoders_[0-3]")
#: Bytes. A file of torch.save that has more is not opened to see whether it holds an embedding.
_MOST = 64_000_000


def is_embedding_file(path: Path) -> bool:
    """Does the file hold embeddings and no adapter, by its name or by its keys?"""
    if not path.is_file():
        return False
    if _BY_NAME.fullmatch(path.name):
        return True
    try:
        if path.suffix == ".safetensors":
            keys = read_header(path)[0]
            return bool(keys) and all(_ENCODER.fullmatch(key) for key in keys)
        return path.suffix in (".pt", ".bin") and path.stat().st_size < _MOST and _A1111 in _archive(path)
    except CheckpointError:
        return False  # whoever reads it says why


def with_embeddings_beside(contents: Contents, folder: Path, step: int | None) -> Contents:
    """The contents, with the embeddings that lie in `folder`: the final ones, or those of a step.

    OneTrainer puts those of `lora.safetensors` into a folder `lora.safetensors_embeddings`.

    CheckpointError if there are embeddings and none of them belongs to what was chosen.
    """
    own = [place for place in folder.glob("*.safetensors_embeddings") if place.is_dir()]
    files = sorted(path for place in (folder, *own) for path in place.iterdir() if is_embedding_file(path))
    if not files:
        return contents
    chosen = [path for path in files if _step_of(path) == step]
    if not chosen:
        raise CheckpointError(
            f"Beside the adapter lie embeddings that were trained with it, and none of them is "
            f"{'the final one' if step is None else f'of step {step}'}: {', '.join(path.name for path in files[:8])}.",
            expected="embeddings that belong to the adapter",
            remedy="To export the LoRA without them, name its file itself.",
        )
    found = tuple(embedding for path in chosen for embedding in _read(path))
    return replace(contents, files=(*contents.files, *chosen), embeddings=(*contents.embeddings, *found))


def with_embeddings_inside(contents: Contents) -> Contents:
    """The contents, with the embeddings that are bundled with the adapter told from its tensors."""
    bundled = [key for key in contents.tensors if key.startswith(_PREFIX)]
    if not bundled:
        return contents
    found = tuple(_bundled(contents, key) for key in sorted(bundled))
    rest = {key: info for key, info in contents.tensors.items() if key not in bundled}
    return replace(contents, tensors=rest, embeddings=(*contents.embeddings, *found))


def _bundled(contents: Contents, key: str) -> StoredEmbedding:
    name = key.removeprefix(_PREFIX)
    token, _, encoder = name.rpartition(f".{_A1111}.*" if name.endswith(f".{_A1111}.*") else ".")
    if not token:
        raise CheckpointError(f"{key!r} names no token.", expected=f"{_PREFIX}{{token}}.{{text encoder}}")
    return StoredEmbedding(token, encoder, contents.tensors[key], lambda: contents.read(key), repr(key))


def _step_of(path: Path) -> int | None:
    match = _LEARNED.fullmatch(path.name) or _STEP.fullmatch(path.stem)
    return int(match["step"]) if match and match["step"] else None


def _read(path: Path) -> Iterable[StoredEmbedding]:
    if path.suffix != ".safetensors" and _A1111 in (content := _archive(path)):
        return [_of_a1111(path, content)]
    stored = _tensors(path)
    if match := _LEARNED.fullmatch(path.name):
        return [replace(each, encoder="1" if match["second"] else "0") for each in stored]
    if _PIVOTAL.fullmatch(path.name) and any((path.parent / name).is_file() for name in FINAL_NAMES):
        return [row for each in stored for row in _rows(each)]
    step = _STEP.fullmatch(path.stem)
    token = step["token"] if step else path.stem
    return [_named(each, token) for each in stored]


def _named(stored: StoredEmbedding, token: str) -> StoredEmbedding:
    """One whose key is the text encoder's name, and whose token is the file's."""
    key = stored.token
    if not _ENCODER.fullmatch(key):
        raise CheckpointError(
            f"{stored.where} is no embedding that is known.",
            expected="clip_l, clip_g, t5 or emb_params",
            remedy="To export the LoRA without it, name its file itself.",
        )
    encoder = key.removeprefix("text_encoders_")
    if key.startswith(("emb_params", "emp_params")):  # OneTrainer spells it with p
        encoder = OUTPUT_SUFFIX if key.endswith(OUTPUT_SUFFIX) else ""
    return replace(stored, token=token, encoder=encoder)


def _rows(stored: StoredEmbedding) -> list[StoredEmbedding]:
    """The rows of one, as embeddings of `<s0>`, `<s1>` and so on."""
    named = _named(stored, "")
    if len(named.info.shape) != 2:
        raise CheckpointError(f"{stored.where} is {list(named.info.shape)}.", expected="a row for each new token")
    return [_row(named, index) for index in range(named.info.shape[0])]


def _row(stored: StoredEmbedding, index: int) -> StoredEmbedding:
    info = replace(stored.info, shape=stored.info.shape[1:])
    return replace(stored, token=f"<s{index}>", info=info, read=lambda: stored.read()[index])


def _tensors(path: Path) -> list[StoredEmbedding]:
    """The tensors of a file, each with its key for a token, and with no text encoder."""
    if path.suffix == ".safetensors":
        reader, infos = TensorReader(path), read_header(path)[0]
        return [_keyed(path, key, infos[key], partial(reader, key)) for key in sorted(infos)]
    content = _archive(path)
    if sum(tensor.nbytes for tensor in content.values() if isinstance(tensor, Stored)) > path.stat().st_size:
        raise CheckpointError(
            f"The embeddings in {path.name} share memory.", expected="tensors with bytes of their own"
        )
    return [_stored(path, key, content[key]) for key in sorted(content, key=str)]


def _of_a1111(path: Path, content: Mapping[Any, Any]) -> StoredEmbedding:
    """`name` is what diffusers calls it; it is the file's name unless that was changed."""
    tensors, name = content[_A1111], content.get("name")
    if not isinstance(tensors, dict) or list(tensors) != ["*"]:
        raise CheckpointError(f"{path.name} is no embedding of A1111.", expected=f"{_A1111} with '*' alone")
    return _stored(path, name if isinstance(name, str) and name else path.stem, tensors["*"])


def _stored(path: Path, key: Any, tensor: Any) -> StoredEmbedding:
    if not isinstance(key, str) or not isinstance(tensor, Stored):
        raise CheckpointError(f"{path.name} is no file of embeddings.", expected="a tensor under each token")
    if refusal := bad_key(key):
        raise refusal
    return _keyed(path, key, tensor.info, tensor.load)


def _keyed(path: Path, key: str, info: TensorInfo, read: Callable[[], torch.Tensor]) -> StoredEmbedding:
    return StoredEmbedding(key, "", info, read, f"{key!r} of {path.name}")


def _archive(path: Path) -> dict[Any, Any]:
    content = read_archive(path)
    return content if isinstance(content, dict) else {}
