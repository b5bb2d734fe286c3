"""DyLoRA of LyCORIS, whose files look like LoRA's and whose scale is another; the header alone tells it.

A step draws how many blocks of `block_size` ranks it uses, and scales what they make by alpha / blocks
(lycoris.modules.dylora, `get_weight`: `self.alpha / (b + 1)`, in every release). With all blocks, which is what the
file has, that is alpha * block_size / rank. Whoever takes the file for LoRA, LyCORIS's own loader included, divides
alpha by the rank, and does 1 / block_size of what was trained.

sd-scripts' `networks.dylora` scales by alpha / rank when it draws the whole rank: its files are LoRA in all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from adapterline.checkpoints.dialects.base import Readable, ScaleRule
from adapterline.checkpoints.stated import json_of
from adapterline.errors import CheckpointError

#: Where the header has LyCORIS's settings: sd-scripts' arguments, and the configuration that SimpleTuner writes.
ARGUMENTS_KEY: Final = "ss_network_args"
CONFIG_KEY: Final = "lycoris_config"
#: lycoris.kohya.create_network and lycoris.wrapper.create_lycoris: `block_size or 4`.
DEFAULT_BLOCK: Final = 4
#: lycoris.config.PRESET: none of them gives a layer another algorithm or block size. Any other is a file of the user's.
_PRESETS: Final = frozenset(
    {
        *("full", "full-lin", "attn-mlp", "attn-only", "ia3"),
        *("unet-only", "unet-transformer-only", "unet-convblock-only"),
    }
)
_MAPS: Final = ("module_algo_map", "name_algo_map")

Settings = Mapping[str, Any]


def is_dylora(readable: Readable) -> bool:
    """Does the header say that LyCORIS trained DyLoRA, in some layer at least?"""
    return any(_names_dylora(settings) for _, settings in _settings(readable))


def by_blocks(readable: Readable, rule: ScaleRule) -> ScaleRule:
    """`rule`, which divides alpha by the rank it is given, with the number of blocks in the rank's place.

    CheckpointError if the header leaves open what the blocks were.
    """
    where, settings = next((where, settings) for where, settings in _settings(readable) if _names_dylora(settings))
    size = _block_size(where, settings)
    if "resize" in readable.header.get("ss_training_comment", ""):
        raise _undetermined("The header says DyLoRA, and that the file was resized: its blocks are gone.")

    def scale(module: str, rank: int | None) -> float:
        if rank is None or rank % size:
            raise _undetermined(
                f"{where} says DyLoRA in blocks of {size}, and {module} has "
                f"{'no rank' if rank is None else f'rank {rank}'}."
            )
        return rule(module, rank // size)

    return scale


def _block_size(where: str, settings: Settings) -> int:
    given = settings.get("block_size") or DEFAULT_BLOCK
    try:
        size = int(given)
    except (TypeError, ValueError, OverflowError):
        size = 0
    if size < 1:
        raise _undetermined(f"{where} says DyLoRA with block_size={ascii(given)[:40]}.")
    if any(_overrides(settings)) or str(settings.get("preset", "full")) not in _PRESETS:
        raise _undetermined(f"{where} says DyLoRA with a preset of its own, in which layers can have other blocks.")
    if str(settings.get("bypass_mode", False)).lower() not in ("false", "0", "no", "none", ""):
        raise _undetermined(f"{where} says DyLoRA with bypass_mode, in which LyCORIS leaves the scale out.")
    return size


def _undetermined(found: str) -> CheckpointError:
    return CheckpointError(
        found,
        expected="DyLoRA as LyCORIS wrote it, in blocks of one size: the scale is alpha * block_size / rank",
        remedy="Export the file that the trainer wrote; or train it with one of LyCORIS's own presets.",
    )


def _settings(readable: Readable) -> Iterator[tuple[str, Settings]]:
    if not readable.header.get("ss_network_module", "").startswith("networks."):  # sd-scripts' own
        yield f"The header's {ARGUMENTS_KEY}", json_of(readable.header.get(ARGUMENTS_KEY, ""))
    yield f"The header's {CONFIG_KEY}", json_of(readable.header.get(CONFIG_KEY, ""))


def _names_dylora(settings: Settings) -> bool:
    return any(str(each.get("algo")).lower() == "dylora" for each in (settings, *_overrides(settings)))


def _overrides(settings: Settings) -> Iterator[Settings]:
    """What single layers have instead of the settings for all."""
    preset = settings.get("apply_preset")
    for holder in (settings, preset if isinstance(preset, dict) else {}):
        for layers in (holder.get(name) for name in _MAPS):
            if isinstance(layers, dict):
                yield from (each for each in layers.values() if isinstance(each, dict))
