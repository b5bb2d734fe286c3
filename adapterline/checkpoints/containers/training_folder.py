"""A trainer's output folder: the final file in it, or one of its `checkpoint-N`.

The order of preference, which is never left for the next one silently if the better one is broken:

1. `--step N`: the folder `checkpoint-N`, read by these rules, or as a PEFT folder
2. `pytorch_lora_weights.safetensors`, then `.bin` (diffusers.loaders.lora_base)
3. the only `.safetensors` file in it, or, without any, the only `.bin`, `.pt`, `.pth` or `.ckpt`

Optimizer, scheduler, scaler and random states have no effect and are not looked at.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from adapterline.checkpoints.containers.base import FINAL_NAMES, STEP, Contents, NotMyKindError, Wish
from adapterline.checkpoints.containers.peft_folder import CONFIG_NAME, PeftFolder
from adapterline.checkpoints.containers.safetensors import SafetensorsFile
from adapterline.checkpoints.containers.torch_zip import SUFFIXES, TorchFile
from adapterline.checkpoints.stated import card_base
from adapterline.errors import CheckpointError

_STATE = re.compile(
    r"(optimizer|scheduler|scaler|sampler|dl_state|random_states|rng_state|training_args|custom_checkpoint)\b.*"
)
_EMBEDDINGS = re.compile(r".*_emb\.safetensors|learned_embeds.*\.(safetensors|bin)")


class TrainingFolder:
    """Reads the output folder of a trainer."""

    name = "training-folder"

    def open(self, path: Path, wish: Wish) -> Contents:
        """See `Container.open`."""
        if not path.is_dir():
            raise NotMyKindError("not a folder")
        steps = steps_of(path)
        if wish.step is not None:
            if wish.step not in steps:
                raise CheckpointError(
                    f"{path.name} has no checkpoint-{wish.step}.", expected=f"one of the steps {_listed(steps)}"
                )
            return replace(self._chosen(path / f"checkpoint-{wish.step}"), step=wish.step)
        own = STEP.fullmatch(path.name)
        return replace(self._final(path, steps), step=int(own[1]) if own else None)

    def _chosen(self, folder: Path) -> Contents:
        if (folder / CONFIG_NAME).is_file() or any(folder.glob(f"*/{CONFIG_NAME}")):
            return PeftFolder().open(folder, Wish())
        return self._final(folder, [])

    def _final(self, path: Path, steps: list[int]) -> Contents:
        file = _file_of(path, steps)
        if embeddings := [entry.name for entry in path.iterdir() if _EMBEDDINGS.fullmatch(entry.name)]:
            raise CheckpointError(
                f"Beside {file.name} lie embeddings that were trained with it: {', '.join(sorted(embeddings))}.",
                expected="an adapter that needs nothing beside it",
                remedy=f"To export the LoRA without them, name the file {file.name} itself.",
            )
        container = SafetensorsFile() if file.suffix == ".safetensors" else TorchFile()
        contents = container.open(file, Wish())
        return replace(contents, container=self.name, root=path, stated_base=card_base(path))


def steps_of(path: Path) -> list[int]:
    """The N of every folder `checkpoint-N` in it, sorted."""
    matches = [STEP.fullmatch(entry.name) for entry in path.iterdir() if entry.is_dir()]
    return sorted(int(match[1]) for match in matches if match)


def _file_of(path: Path, steps: list[int]) -> Path:
    for name in FINAL_NAMES:
        if (path / name).is_file():
            return path / name
    files = [entry for entry in sorted(path.iterdir()) if entry.is_file() and not _STATE.fullmatch(entry.name)]
    for suffixes in ((".safetensors",), SUFFIXES):
        found = [file for file in files if file.suffix in suffixes and not _EMBEDDINGS.fullmatch(file.name)]
        if len(found) == 1:
            return found[0]
        if found:
            raise CheckpointError(
                f"{path.name} has several files that could be the adapter: {', '.join(file.name for file in found)}.",
                expected=f"one, or {FINAL_NAMES[0]}",
                remedy="Name the file.",
            )
    if steps:
        raise CheckpointError(
            f"{path.name} has no final file, only the steps {_listed(steps)}.",
            expected=FINAL_NAMES[0],
            remedy="Pass --step N to export one of them.",
        )
    if not files and not any(path.iterdir()):
        raise CheckpointError(f"The folder {path.name} is empty.", expected="a checkpoint")
    names = sorted(entry.name for entry in path.iterdir())
    raise CheckpointError(
        f"No adapter was found in {path.name}: it has {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}.",
        expected=f"{FINAL_NAMES[0]}, {CONFIG_NAME} with its weights, or one .safetensors, .bin or .pt file",
        remedy="Name the file or the folder that holds the adapter.",
    )


def _listed(steps: list[int]) -> str:
    return ", ".join(map(str, steps)) or "(it has none)"
