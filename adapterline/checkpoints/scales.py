"""How PEFT's configurations state the scale of a layer, and which of their settings are known to change nothing else.

Source: peft.tuners.lora.layer.LoraLayer.update_layer and its siblings, and peft.utils.other.get_pattern_key.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from adapterline.errors import CheckpointError

if TYPE_CHECKING:
    from adapterline.checkpoints.dialects.base import ScaleRule

Config = Mapping[str, Any]

#: Settings of every type that change no effect, or that `check_settings` looks at itself.
_COMMON = frozenset(
    {
        *("peft_type", "peft_version", "task_type", "auto_mapping", "base_model_name_or_path", "revision", "bias"),
        *("target_modules", "exclude_modules", "layers_pattern", "layers_to_transform", "inference_mode"),
    }
)
#: Settings of a LoraConfig that change no effect, or whose effect is read here.
_LORA = frozenset(
    {
        *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "lora_bias"),
        *("init_lora_weights", "eva_config", "lora_dropout", "runtime_config", "megatron_core", "qalora_group_size"),
    }
)
#: Initialisations that leave the base weights as they are. PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA subtract from them,
#: so A and B hold only on what is left (https://huggingface.co/docs/peft/developer_guides/lora#initialization).
_HARMLESS_INIT = (True, False, None, "gaussian", "eva", "orthogonal")


def from_alpha(alpha: float) -> ScaleRule:
    """alpha / rank for every layer."""

    def rule(module: str, rank: int | None) -> float:
        if rank is None:
            raise CheckpointError(
                f"Nothing tells the rank of {module}, so an alpha says nothing of its scale.",
                expected="a layer with decomposed factors",
                remedy="Leave --alpha out.",
            )
        return alpha / rank

    return rule


def unit(module: str, rank: int | None) -> float:
    """1 for every layer: what diffusers' format means without alpha and metadata."""
    return 1.0


def from_peft_config(config: Config, where: str) -> ScaleRule:
    """The rule of a LoraConfig. CheckpointError for a setting that changes the effect in another way."""
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise CheckpointError(
            f"{where} says that this is a {str(kind)[:40]!r} adapter.",
            expected="LORA",
            remedy="Tensors of this format are LoRA's; find the configuration that was saved with them.",
        )
    if config.get("init_lora_weights", True) not in _HARMLESS_INIT:
        raise CheckpointError(
            f"{where} says init_lora_weights={brief(config['init_lora_weights'])}, which changes the base weights: "
            "A and B hold only on what is left of them.",
            expected="an adapter for the base as it is",
            remedy="Save it with path_initial_model_for_weight_conversion (PEFT's save_pretrained).",
        )
    check_settings(config, where, "a plain LoRA, rsLoRA or DoRA", _LORA)
    return alpha_over_rank(config, where, alpha="lora_alpha", power=0.5 if config.get("use_rslora") else 1.0)


def alpha_over_rank(config: Config, where: str, *, alpha: str = "alpha", power: float = 1.0) -> ScaleRule:
    """alpha / rank ** power, with `rank_pattern` and `alpha_pattern`. A layer that tells no rank has the stated one."""
    ranks, alphas = _patterns(config, "rank_pattern", where), _patterns(config, "alpha_pattern", where)
    rank_of, alpha_of = number(config, "r", where), number(config, alpha, where)

    def rule(module: str, rank: int | None) -> float:
        stated = _matching(ranks, module, rank_of)
        if rank is not None:
            check_rank(module, rank, stated, where)
        return _matching(alphas, module, alpha_of) / math.pow(stated, power)

    return rule


def unit_of_rank(config: Config, where: str) -> ScaleRule:
    """1 for every layer, whose rank is the stated one."""
    stated = stated_rank(config, where)

    def rule(module: str, rank: int | None) -> float:
        if rank is not None:
            check_rank(module, rank, stated(module), where)
        return 1.0

    return rule


def stated_rank(config: Config, where: str) -> Callable[[str], float]:
    """The rank that a configuration states for a module: `r`, with `rank_pattern`."""
    ranks, rank_of = _patterns(config, "rank_pattern", where), number(config, "r", where)
    return lambda module: _matching(ranks, module, rank_of)


def check_rank(module: str, rank: int, stated: float, where: str) -> None:
    """CheckpointError if the file and the configuration have different ranks."""
    if stated != rank:
        raise CheckpointError(
            f"{module} has rank {rank} in the file, and {where} says {stated:g}.",
            expected="the same",
            remedy="The configuration is not this adapter's; find the one that was saved with it.",
        )


def check_settings(config: Config, where: str, expected: str, harmless: frozenset[str]) -> None:
    """CheckpointError for a setting that is set and that is not known to change nothing.

    A newer PEFT may compute something else with it.
    """
    if config.get("bias", "none") != "none":
        raise CheckpointError(
            f"{where} says bias={brief(config['bias'])}: biases of the base itself were trained.",
            expected="bias='none'",
            remedy="A LoRA file cannot carry them. Train with bias='none', or with lora_bias=True.",
        )
    if config.get("modules_to_save"):
        raise CheckpointError(
            f"{where} says modules_to_save={brief(config['modules_to_save'])}: they were trained whole.",
            expected="an adapter of LoRA layers alone",
            remedy="A LoRA file cannot carry them: what changed is only known against the base weights.",
        )
    strange = sorted(key for key, value in config.items() if key not in _COMMON and key not in harmless and value)
    if strange:
        raise CheckpointError(
            f"{where} sets {', '.join(f'{key[:60]}={brief(config[key])}' for key in strange[:5])}.",
            expected=expected,
            remedy="What this changes is not known to be carried by a LoRA file.",
        )


def number(config: Config, name: str, where: str) -> float:
    """A setting that is a number above zero. CheckpointError if it is none."""
    value = config.get(name)
    if not _is_number(value):
        raise CheckpointError(f"{where} has no number {name}, but {brief(value)}.", expected="what PEFT writes")
    return float(value)  # type: ignore[arg-type]


def whole_number(config: Config, name: str, where: str, *, least: int = 0) -> int:
    """A setting that is a whole number of at least `least`, and fits 63 bits. CheckpointError if it is none."""
    value = config.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**63:
        raise CheckpointError(
            f"{where} has no whole number {name}, but {brief(value)}.", expected=f"one of at least {least}"
        )
    return value


def brief(value: Any) -> str:
    """A value as it can stand in a message."""
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _matching(patterns: Mapping[str, float], module: str, otherwise: float) -> float:
    """The value of the first pattern that is a suffix of the module's name at a dot, or the whole of it."""
    for pattern, value in patterns.items():
        if re.match(_whole(pattern), module):
            return value
    return otherwise


#: A checkpoint's patterns are matched as they are, so they must not be able to backtrack without end.
_MAX_PATTERN, _MAX_REPEATS = 300, 3
_NESTED = re.compile(r"\)\??[*+{]")


def _whole(pattern: str) -> str:
    return rf"(.*\.)?({pattern})$"


def _patterns(config: Mapping[str, Any], name: str, where: str) -> dict[str, float]:
    patterns = config.get(name) or {}
    if not isinstance(patterns, dict) or not all(_is_number(value) for value in patterns.values()):
        raise CheckpointError(f"{where} has a {name} that is not a map of numbers: {brief(patterns)}.")
    for pattern in patterns:
        if len(pattern) > _MAX_PATTERN or len(re.findall(r"[*+{]", pattern)) > _MAX_REPEATS or _NESTED.search(pattern):
            raise CheckpointError(
                f"{where} has a {name} with {brief(pattern)}, which can take for ever to match.",
                expected=f"a name, or a regular expression with at most {_MAX_REPEATS} repetitions, none of a group",
            )
        try:
            re.compile(_whole(pattern))
        except (re.error, OverflowError, RecursionError) as error:
            raise CheckpointError(
                f"{where} has a {name} with {brief(pattern)}, not a regular expression: {error}."
            ) from error
    return patterns


def _is_number(value: Any) -> bool:
    # Compared, because math.isfinite raises for an int that no float can hold.
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= sys.float_info.max
