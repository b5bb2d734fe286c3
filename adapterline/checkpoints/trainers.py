"""Which program wrote a checkpoint, by what it leaves in headers, configurations and cards.

Each looks for something that this trainer alone writes; the first that finds it decides, so those that build upon
another (SimpleTuner on PEFT and LyCORIS, LyCORIS on sd-scripts) come before it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from adapterline.checkpoints.evidence import folders_of
from adapterline.checkpoints.stated import card_of, json_of
from adapterline.values import Source

#: A version may be shown: it has no room for a path.
_VERSION = re.compile(r"\d[\w.+-]{0,30}")
#: Modules that musubi-tuner alone has under `networks.`, where older versions of it lie too.
_MUSUBI = re.compile(
    r"musubi_tuner\..*"
    r"|networks\.(lora_(flux_2|framepack|hidream_o1|hv_1_5|ideogram4|kandinsky|krea2|qwen_image|wan|zimage)|loha|lokr)"
)


def trainer_of(source: Source) -> str | None:
    """The trainer, with its version where it says one; None if nothing tells it."""
    return next((name for look in TRAINERS if (name := look(source))), None)


def _ai_toolkit(source: Source) -> str | None:
    software = json_of(source.header.get("software", ""))
    if software.get("name") == "ai-toolkit":
        return _with_version("ai-toolkit", software.get("version"))
    return "ai-toolkit" if "ai-toolkit" in _tags(source) else None


def _one_trainer(source: Source) -> str | None:
    return "OneTrainer" if {"ot_branch", "ot_revision", "ot_config"} & set(source.header) else None


def _simple_tuner(source: Source) -> str | None:
    beside = any((folder / "simpletuner_config.json").is_file() for folder in folders_of(source))
    return "SimpleTuner" if beside or "simpletuner" in _tags(source) or "lycoris_config" in source.header else None


def _musubi_tuner(source: Source) -> str | None:
    module = source.header.get("ss_network_module", "")
    version = source.header.get("ss_base_model_version", "")
    # Its FLUX.1 Kontext and HunyuanVideo have network modules of the names of sd-scripts' own.
    own = version in ("flux_kontext", "hunyuan_video") and not _is_sd_scripts(source)
    return "musubi-tuner" if _MUSUBI.fullmatch(module) or own else None


def _sd_scripts(source: Source) -> str | None:
    module = source.header.get("ss_network_module", "")
    if not (_is_sd_scripts(source) or module.startswith(("networks.", "lycoris."))):
        return None
    return "sd-scripts, lycoris" if module.startswith("lycoris.") else "sd-scripts"


def _is_sd_scripts(source: Source) -> bool:
    version = source.header.get("modelspec.implementation_version", "")
    return "ss_sd_scripts_commit_hash" in source.header or version.startswith("sd-scripts/")


def _diffusers_scripts(source: Source) -> str | None:
    return "diffusers scripts" if "diffusers-training" in _tags(source) else None


def _peft(source: Source) -> str | None:
    versions = {str(config["peft_version"]) for config in source.configs.values() if config.get("peft_version")}
    shown = sorted(version for version in versions if _VERSION.fullmatch(version))
    return f"peft {', '.join(shown)}" if shown else "peft" if source.dialect == "peft" else None


def _diffusers(source: Source) -> str | None:
    halves = any(key.endswith(("_lora.down.weight", "_lora.up.weight")) for key in source.tensors)
    return "diffusers" if source.dialect == "diffusers" or halves else None  # convert_state_dict_to_kohya's


def _lycoris(source: Source) -> str | None:
    return "lycoris" if source.dialect == "lycoris" else None


def _tags(source: Source) -> set[Any]:
    found: set[Any] = set()
    for folder in folders_of(source):
        tags = card_of(folder).get("tags")
        found |= {tag for tag in tags if isinstance(tag, str)} if isinstance(tags, list) else set()
    return found


def _with_version(name: str, version: Any) -> str:
    return f"{name} {version}" if isinstance(version, str) and _VERSION.fullmatch(version) else name


TRAINERS: tuple[Callable[[Source], str | None], ...] = (
    _ai_toolkit,
    _one_trainer,
    _simple_tuner,
    _musubi_tuner,
    _sd_scripts,
    _diffusers_scripts,
    _peft,
    _diffusers,
    _lycoris,
)
