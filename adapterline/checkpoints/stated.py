"""What a checkpoint says of the model that it was trained on. A path is never believed: only a Hub id is."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}(@[\w./-]{1,100})?")
#: What looks like a Hub id and is a path: `models/sdxl`, `org/model.safetensors`.
_FOLDERS = frozenset(
    {
        *("bases", "checkpoints", "ckpt", "ckpts", "content", "data", "home", "input", "mnt", "model", "models", "opt"),
        *("out", "output", "outputs", "pretrained", "root", "tmp", "weights", "workspace"),
    }
)
_FILES = (".safetensors", ".ckpt", ".bin", ".pt", ".pth", ".gguf", ".sft")
#: SimpleTuner's word for a base that lies in a folder (publishing.metadata.save_model_card).
_UNKNOWN_MODEL = "unknown-model"
_MAX_BYTES = 1_000_000
_FRONT_MATTER = re.compile(r"\s*---[ \t]*\r?\n(.*?)\r?\n---", re.DOTALL)


def hub_id(value: Any) -> str | None:
    """`value`, if it is `org/name` or `org/name@revision`; None for a path, also a relative one, or anything else."""
    if not isinstance(value, str) or not _HUB_ID.fullmatch(value) or ".." in value:
        return None
    organization, _, name = value.partition("@")[0].partition("/")
    if organization.lower() in _FOLDERS or name == _UNKNOWN_MODEL or name.lower().endswith(_FILES):
        return None
    return value


def card_base(folder: Path) -> str | None:
    """The `base_model` of a model card in the folder, if it is a Hub id."""
    return hub_id(named_in_card(folder))


def named_in_card(folder: Path) -> Any:
    """The `base_model` of a model card in the folder, whatever it is; the first of several."""
    base = card_of(folder).get("base_model")
    return base[0] if isinstance(base, list) and base else base


def card_of(folder: Path) -> dict[str, Any]:
    """What is between the dashes at the beginning of README.md; empty without a card that can be read."""
    match = _FRONT_MATTER.match(_text(folder / "README.md"))
    return _yaml(match[1]) if match else {}


def yaml_of(path: Path) -> dict[str, Any]:
    """A YAML file's mapping; empty if there is none that can be read."""
    return _yaml(_text(path))


def json_of(text: str | Path) -> dict[str, Any]:
    """The JSON object in a text or a file; empty if there is none that can be read."""
    try:
        value = json.loads(_text(text) if isinstance(text, Path) else text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _text(path: Path) -> str:
    try:
        return path.read_text() if path.is_file() and path.stat().st_size <= _MAX_BYTES else ""
    except (OSError, ValueError):
        return ""


def _yaml(text: str) -> dict[str, Any]:
    import yaml

    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
