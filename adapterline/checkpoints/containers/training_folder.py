"""A trainer's output folder: the final file in it, or one of its steps.

The order of preference, which is never left for the next one silently if the better one is broken:

1. `--step N`: the file that is named by that step or epoch, else the folder `checkpoint-N`, read by these rules or as a
   folder of another kind (PEFT, DCP, DeepSpeed)
2. `pytorch_lora_weights.safetensors`, then `.bin` (diffusers.loaders.lora_base)
3. OneTrainer's backup: `lora/lora.safetensors` beside `meta.json`
4. the only `.safetensors` file or index of shards that is not named by a step; without any, the only `.bin`, `.pt`,
   `.pth` or `.ckpt`; without any, the only folder of torch.distributed.checkpoint
5. the only file at all, also if its name says a step

Files named by a step or an epoch, of which the final one is the name without it:

    name-step00000250, name-000002 (an epoch)      kohya's sd-scripts and musubi-tuner (train_util.STEP_FILE_NAME, ...)
    name_000000250                                 ai-toolkit (BaseSDTrainProcess.save)
    2025-01-31_12-00-00-save-250-2-50              OneTrainer (GenericTrainer.__save)

Embeddings of new tokens that lie beside the file belong to the adapter: see `checkpoints.embeddings`.

Optimizer, scheduler, scaler and random states have no effect and are not looked at. EMA weights (`unet_ema/`, `ema/`,
`*_ema.safetensors`) are looked at if they are asked for, and only then.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any, Final

from adapterline.checkpoints.containers.base import (
    FINAL_NAMES,
    STEP,
    Container,
    Contents,
    NotMyKindError,
    Wish,
    has_adapter_keys,
    is_ema_name,
)
from adapterline.checkpoints.containers.distributed import METADATA, DistributedFolder
from adapterline.checkpoints.containers.files import final_file
from adapterline.checkpoints.containers.joining import join_components
from adapterline.checkpoints.containers.peft_folder import CONFIG_NAME, PeftFolder
from adapterline.checkpoints.containers.safetensors import SafetensorsFile
from adapterline.checkpoints.containers.sharded import SUFFIX, ShardedFile, read_index
from adapterline.checkpoints.containers.torch_zip import SUFFIXES, TorchFile
from adapterline.checkpoints.containers.zero import ZeroFolder
from adapterline.checkpoints.embeddings import is_embedding_file, with_embeddings_beside
from adapterline.checkpoints.stated import card_base
from adapterline.errors import CheckpointError
from adapterline.families import COMPONENT_NAMES

_STATE = re.compile(
    r"(optimizer|scheduler|scaler|sampler|dl_state|random_states|rng_state|training_args|custom_checkpoint"
    r"|learnable_snr|loss_params)(?![a-zA-Z]).*"
)
_STEP_FILES: Final = (
    re.compile(r"(?P<base>.*)-step(?P<number>\d{8,18})"),
    re.compile(r"(?P<base>.*)_(?P<number>\d{9,18})"),
    re.compile(r".*?\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d-save-(?P<number>\d{1,18})-\d+-\d+"),
)
_EPOCH_FILE = re.compile(r"(?P<base>.*)-(?P<number>\d{6})")
#: kohya's name for epochs where no --output_name is given; the final file is then called last (DEFAULT_EPOCH_NAME).
_DEFAULT_EPOCH: Final = "epoch"
_BACKUP = re.compile(r".*-backup-(\d{1,18})-\d+-\d+")
_STATE_FOLDER = re.compile(r"(?P<base>.*?)(-step(?P<step>\d{8,18})|-(?P<epoch>\d{6}))?-state")
_ACCELERATE_MODEL = re.compile(r"(model|pytorch_model)(_\d{1,4})?\.(safetensors|bin)")

#: What a folder of a step may be, before it is read by the rules of this one.
_OTHER_KINDS: Final[tuple[Container, ...]] = (PeftFolder(), DistributedFolder(), ZeroFolder())


@dataclass(frozen=True)
class _Save:
    """A file or folder that is named by a step; `step` is None where the number is an epoch."""

    number: int
    path: Path
    base: str | None
    step: int | None


class TrainingFolder:
    """Reads the output folder of a trainer."""

    name = "training-folder"

    def open(self, path: Path, wish: Wish) -> Contents:
        """See `Container.open`."""
        if not path.is_dir():
            raise NotMyKindError("not a folder")
        saves = saves_in(path)
        if wish.step is None:
            return self._final(path, saves, wish)
        chosen = _at(path, saves, wish.step)
        inner = replace(wish, step=None)
        if chosen.path.is_dir():
            contents = _and_beside(self._folder(chosen.path, inner), path, chosen.step)
        else:
            contents = self._file(path, chosen.path, inner)
        return replace(contents, step=chosen.step)

    def _folder(self, folder: Path, wish: Wish) -> Contents:
        for kind in _OTHER_KINDS:
            try:
                return kind.open(folder, wish)
            except NotMyKindError:
                continue
        return self._final(folder, [], wish)

    def _final(self, path: Path, saves: list[_Save], wish: Wish) -> Contents:
        step = _own_step(path)
        if wish.weights == "ema" and (averaged := self._averaged(path, wish)):
            return replace(_and_beside(averaged, path), step=step)
        if (path / "meta.json").is_file() and (path / "lora" / "lora.safetensors").is_file():
            return self._backup(path, wish)
        found = _found(path, saves)
        if found.is_dir():
            return replace(_and_beside(self._folder(found, wish), path), root=path, step=step)
        alone = next((save.step for save in saves if save.path == found), None)
        return replace(self._file(path, found, wish), step=step if alone is None else alone)

    def _file(self, path: Path, file: Path, wish: Wish) -> Contents:
        save = _file_save(file)
        contents = with_embeddings_beside(_open(file, wish), path, save.step if save else None)
        return replace(contents, container=self.name, root=path, stated_base=card_base(path))

    def _backup(self, path: Path, wish: Wish) -> Contents:
        """OneTrainer's (InternalModelSaverMixin): its EMA weights are a list in the order of the parameters."""
        file = path / "lora" / "lora.safetensors"
        if (path / "embeddings").is_dir() and (names := [entry.name for entry in (path / "embeddings").iterdir()]):
            raise _embeddings(file, names)
        contents = _open(file, wish)
        files = (path / "meta.json", *contents.files)
        return replace(contents, container=self.name, root=path, files=files, step=_backup_step(path / "meta.json"))

    def _averaged(self, path: Path, wish: Wish) -> Contents | None:
        """The EMA weights that lie in files of their own, or None: then they may be in the final file."""
        entries = sorted(path.iterdir())
        components = {
            entry.name.removesuffix("_ema"): entry
            for entry in entries
            if entry.is_dir() and entry.name.removesuffix("_ema") in COMPONENT_NAMES and entry.name.endswith("_ema")
        }
        others = [entry for entry in entries if entry.is_dir() and entry.name == "ema"]
        files = [
            entry
            for entry in entries
            if entry.is_file() and entry.suffix in _WEIGHTS and is_ema_name(entry, alone=True)
        ]
        if bool(components) + len(others) + len(files) > 1:
            names = ", ".join(entry.name for entry in (*components.values(), *others, *files))
            raise CheckpointError(
                f"{path.name} has several EMA weights: {names}.", expected="one", remedy="Name one of them."
            )
        if components:
            parts = {name: self._folder(folder, wish) for name, folder in components.items()}
            return join_components(self.name, path, parts)
        if others:
            return replace(self._folder(others[0], wish), root=path)
        return self._file(path, files[0], wish) if files else None


def _and_beside(contents: Contents, path: Path, step: int | None = None) -> Contents:
    """What a folder within `path` gave, with the embeddings that lie in `path` where it has none of its own."""
    return contents if contents.embeddings else with_embeddings_beside(contents, path, step)


_WEIGHTS: Final = (".safetensors", *SUFFIXES)


def _open(file: Path, wish: Wish) -> Contents:
    if file.name.endswith(SUFFIX):
        return ShardedFile().open(file, wish)
    return (SafetensorsFile() if file.suffix == ".safetensors" else TorchFile()).open(file, wish)


def saves_in(path: Path) -> list[_Save]:
    """What in a folder is named by a step or an epoch, sorted by its number."""
    saves = [save for entry in path.iterdir() if (save := _folder_save(entry) if entry.is_dir() else _file_save(entry))]
    return sorted(saves, key=lambda save: (save.number, save.path.name))


def save_named(name: PurePath, folder: bool) -> int | None:
    """The step or epoch that the name of a file or folder says, or None: what `--step` would call it."""
    save = _folder_save(Path(name)) if folder else _file_named(Path(name))
    return save.number if save else None


def _file_save(file: Path) -> _Save | None:
    return None if is_embedding_file(file) else _file_named(file)


def _file_named(file: Path) -> _Save | None:
    if file.suffix not in _WEIGHTS or _STATE.fullmatch(file.name):
        return None
    for pattern in _STEP_FILES:
        if match := pattern.fullmatch(file.stem):
            return _Save(int(match["number"]), file, match.groupdict().get("base"), int(match["number"]))
    match = _EPOCH_FILE.fullmatch(file.stem)
    return _Save(int(match["number"]), file, match["base"], None) if match else None


def _folder_save(folder: Path) -> _Save | None:
    if match := STEP.fullmatch(folder.name) or _BACKUP.fullmatch(folder.name):
        return _Save(int(match[1]), folder, None, int(match[1]))
    match = _STATE_FOLDER.fullmatch(folder.name)
    if match and (number := match["step"] or match["epoch"]):
        return _Save(int(number), folder, None, int(number) if match["step"] else None)
    return None


def _at(path: Path, saves: list[_Save], number: int) -> _Save:
    """The save of a step: a file before a folder, a step before an epoch."""
    at = [save for save in saves if save.number == number]
    if not at:
        raise CheckpointError(
            f"{path.name} has no step {number}.",
            expected=f"one of the steps {_listed(saves)}" if saves else "files or folders that are named by steps",
            remedy="Pass one that is there, or leave --step out." if saves else "Leave --step out.",
        )
    for kind in (Path.is_file, Path.is_dir):
        found = [save for save in at if kind(save.path)]
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(save.path.name for save in found)
            raise CheckpointError(
                f"{path.name} has several saves that are named by {number}: {names}.",
                expected="one",
                remedy="Name one of them.",
            )
    return at[0]


def _found(path: Path, saves: list[_Save]) -> Path:
    """The final file, or the folder that stands for it."""
    if final := final_file(path):
        return final
    entries = sorted(path.iterdir())
    named = {save.path for save in saves}
    files = [entry for entry in entries if entry.is_file() and _may_be_final(entry)]
    shards = {name for file in files if file.name.endswith(SUFFIX) for name in set(read_index(file).values())}
    files = [file for file in files if file.name not in shards]
    for suffixes in ((".safetensors", f".safetensors{SUFFIX}"), (*SUFFIXES, f".bin{SUFFIX}")):
        own = [file for file in files if file.name.endswith(suffixes)]
        if found := _one(path, [file for file in own if file not in named], saves):
            return found
    distributed = [
        entry
        for entry in entries
        if (entry / METADATA).is_file() and not _STATE.fullmatch(entry.name) and entry not in named
    ]
    states = [
        entry for entry in entries if entry.is_dir() and entry not in named and _STATE_FOLDER.fullmatch(entry.name)
    ]
    alone = [save.path for save in saves if save.path.is_file()]
    if found := _one(path, distributed, []) or (_one(path, states, []) if not saves else None):
        return found
    if len(saves) == len(alone) == 1:
        return alone[0]
    raise _none(path, entries, saves)


def _may_be_final(file: Path) -> bool:
    if _STATE.fullmatch(file.name) or is_ema_name(file, alone=True) or is_embedding_file(file):
        return False
    return file.suffix in _WEIGHTS or file.name.endswith((f".safetensors{SUFFIX}", f".bin{SUFFIX}"))


def _one(path: Path, candidates: list[Path], saves: Iterable[_Save]) -> Path | None:
    """The only candidate, or of several models that accelerate saved the only one with an adapter's keys."""
    if not candidates:
        return None
    chosen = candidates
    if len(candidates) > 1 and all(_ACCELERATE_MODEL.fullmatch(file.name) for file in candidates):
        chosen = [file for file in candidates if has_adapter_keys(_open(file, Wish()).tensors)]
    of_others = [
        save.path for save in saves if save.base not in (None, candidates[0].stem, _DEFAULT_EPOCH)
    ]  # steps of another name: this is not their final file
    if len(chosen) == 1 and not of_others:
        return chosen[0]
    names = [file.name for file in (*candidates, *of_others)]
    raise CheckpointError(
        f"{path.name} has several {'files' if candidates[0].is_file() else 'folders'} that could be the adapter: "
        f"{_names(names)}.",
        expected=f"one, or {FINAL_NAMES[0]}",
        remedy="Name the file." if candidates[0].is_file() else "Name the folder.",
    )


def _none(path: Path, entries: list[Path], saves: list[_Save]) -> CheckpointError:
    if saves:
        return CheckpointError(
            f"{path.name} has no final file, only the steps {_listed(saves)}.",
            expected=FINAL_NAMES[0],
            remedy="Pass --step N to export one of them.",
        )
    if not entries:
        return CheckpointError(
            f"The folder {path.name} is empty.",
            expected="a checkpoint",
            remedy="Name the folder that the trainer saves to; if it has saved nothing yet, wait.",
        )
    if any(entry.name == "model_index.json" for entry in entries):
        return CheckpointError(
            f"{path.name} is a pipeline: the weights of a whole model, and no adapter.",
            expected="what the trainer saved the adapter to",
            remedy="Name that file or folder; a pipeline is what --base takes.",
        )
    return CheckpointError(
        f"No adapter was found in {path.name}: it has {_names([entry.name for entry in entries])}.",
        expected=f"{FINAL_NAMES[0]}, {CONFIG_NAME} with its weights, or one .safetensors, .bin or .pt file",
        remedy="Name the file or the folder that holds the adapter.",
    )


def _embeddings(file: Path, names: list[str]) -> CheckpointError:
    return CheckpointError(
        f"Beside {file.name} lie embeddings that were trained with it: {', '.join(sorted(names))}.",
        expected="an adapter that needs nothing beside it",
        remedy=f"To export the LoRA without them, name the file {file.name} itself.",
    )


def _own_step(path: Path) -> int | None:
    """What a folder's own name says."""
    save = _folder_save(path)
    return save.step if save else None


def _backup_step(meta: Path) -> int | None:
    try:
        value: Any = json.loads(meta.read_bytes()[:1_000_000])
        step = value["train_progress"]["global_step"]
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return None
    return step if type(step) is int and 0 <= step < 1 << 60 else None


def _names(names: list[str]) -> str:
    return f"{', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"


def _listed(saves: Iterable[_Save]) -> str:
    return ", ".join(dict.fromkeys(str(save.number) for save in saves))
