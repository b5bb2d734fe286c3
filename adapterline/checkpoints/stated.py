"""What a checkpoint says of the model that it was trained on. A path is never believed: only a Hub id is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}(@[\w./-]{1,100})?")


def hub_id(value: Any) -> str | None:
    """`value`, if it is `org/name` or `org/name@revision`; None for a path or anything else."""
    return value if isinstance(value, str) and _HUB_ID.fullmatch(value) and ".." not in value else None


def card_base(folder: Path) -> str | None:
    """The `base_model` of a model card in the folder, if it is a Hub id."""
    card = folder / "README.md"
    if not card.is_file() or card.stat().st_size > 1_000_000:
        return None
    import yaml
    from huggingface_hub import metadata_load

    try:
        data = metadata_load(card) or {}
    except (ValueError, OSError, yaml.YAMLError):
        return None
    base = data.get("base_model")
    return hub_id(base[0] if isinstance(base, list) and base else base)
