"""A folder that PEFT's `save_pretrained` wrote, or one such folder for each component.

adapter_config.json, adapter_model.safetensors            one component
unet/adapter_config.json, text_encoder/adapter_config.json, ...      as DreamBooth scripts leave them
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from adapterline.checkpoints.containers.base import STEP, Contents, NotMyKindError, Wish, is_ema_name
from adapterline.checkpoints.containers.files import read_json, refuse_where_final, step_of
from adapterline.checkpoints.containers.joining import join_components
from adapterline.checkpoints.containers.safetensors import SafetensorsFile
from adapterline.checkpoints.containers.torch_zip import TorchFile
from adapterline.checkpoints.stated import hub_id
from adapterline.errors import CheckpointError, CheckpointIncompleteError
from adapterline.families import COMPONENT_NAMES

CONFIG_NAME = "adapter_config.json"
#: In the order of preference; PEFT writes one of them (peft.utils.constants).
WEIGHT_NAMES = ("adapter_model.safetensors", "adapter_model.bin")
MAX_CONFIG = 10_000_000


class PeftFolder:
    """Reads PEFT adapter folders."""

    name = "peft-folder"

    def open(self, path: Path, wish: Wish) -> Contents:
        """See `Container.open`. The keys of a component's own folder get the component's name in front."""
        if path.is_file() and path.name in WEIGHT_NAMES and (path.parent / CONFIG_NAME).is_file():
            return self._one(path.parent, wish, path)
        if not path.is_dir():
            raise NotMyKindError(f"not a folder, and no {CONFIG_NAME} beside a file of that name")
        if wish.step is not None:
            raise NotMyKindError("a step was asked for, and a PEFT folder has none")
        if wish.weights == "ema" and not is_ema_name(path / CONFIG_NAME):
            raise NotMyKindError("EMA weights were asked for, and its name does not say that it has them")
        refuse_where_final(path)
        if (path / CONFIG_NAME).is_file():
            return replace(self._one(path, wish), step=step_of(path))
        configs = sorted(path.glob(f"*/{CONFIG_NAME}"))
        folders = [config.parent for config in configs if not STEP.fullmatch(config.parent.name)]
        names = [folder.name for folder in folders]
        if not folders:
            raise NotMyKindError(f"no {CONFIG_NAME} in it, nor in a folder of it")
        if all(name in COMPONENT_NAMES for name in names):
            return self._several(path, folders, wish)
        if len(folders) == 1:
            return self._one(folders[0], wish)
        raise CheckpointError(
            f"{path.name} has several PEFT adapters: {', '.join(names)}.",
            expected=f"one, or one for each component ({', '.join(COMPONENT_NAMES)})",
            remedy="Name the folder of one of them.",
        )

    def _one(self, folder: Path, wish: Wish, weights: Path | None = None) -> Contents:
        weights = weights or _weights(folder)
        container = SafetensorsFile() if weights.suffix == ".safetensors" else TorchFile()
        contents = container.open(weights, wish)
        config = read_config(folder / CONFIG_NAME)
        return Contents(
            container=self.name,
            root=folder,
            files=(folder / CONFIG_NAME, weights),
            tensors=contents.tensors,
            read=contents.read,
            scalar=contents.scalar,
            header=contents.header,
            configs={"": config},
            stated_base=hub_id(config.get("base_model_name_or_path")),
        )

    def _several(self, path: Path, folders: list[Path], wish: Wish) -> Contents:
        return join_components(self.name, path, {folder.name: self._one(folder, wish) for folder in folders})


def read_config(path: Path) -> dict[str, Any]:
    """A PEFT adapter_config.json. CheckpointError if it is not a JSON object with a peft_type."""
    config = read_json(path, MAX_CONFIG, "a configuration as PEFT writes it")
    if not isinstance(config, dict) or not isinstance(config.get("peft_type"), str):
        raise CheckpointError(
            f"{path.name} has no peft_type.",
            expected="an adapter_config.json as PEFT writes it",
            remedy="Save the adapter again with save_pretrained, or name the file of the weights alone.",
        )
    return config


def _weights(folder: Path) -> Path:
    for name in WEIGHT_NAMES:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointIncompleteError(
        f"{folder.name} has {CONFIG_NAME} but no weights.",
        expected=" or ".join(WEIGHT_NAMES),
        remedy="If the run is still saving, wait; otherwise save the adapter again.",
    )
