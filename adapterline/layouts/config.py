"""The LoraConfig that a consumer needs, and no more of it: what varies between versions of peft stays out.

It stands in the header of diffusers' file (`lora_adapter_metadata`) and in PEFT's `adapter_config.json`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any

from adapterline.deltas import LowRank
from adapterline.errors import ConversionError


def lora_config(
    deltas: Mapping[str, LowRank], scales: Mapping[str, float], as_pattern: Callable[[str], str], exact: bool
) -> dict[str, Any]:
    """The settings of these layers, whose names are the consumer's, with the scales that the files leave to it.

    `as_pattern` makes a name a key of rank_pattern and alpha_pattern. `exact`: peft must not find the layers by the
    ends of their names.
    """
    ranks = {module: delta.rank for module, delta in deltas.items()}
    alphas = {module: alpha_of(scales[module], rank) for module, rank in ranks.items()}
    rank, alpha = most_common(ranks), most_common(alphas)
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": unusual(ranks, rank, as_pattern),
        "alpha_pattern": unusual(alphas, alpha, as_pattern),
        "target_modules": target_modules(deltas, exact),
        "lora_bias": any(delta.bias is not None for delta in deltas.values()),
        "use_dora": any(delta.magnitude is not None for delta in deltas.values()),
    }


def alpha_of(scale: float, rank: int) -> float:
    """The alpha whose quotient by the rank is the scale again; short where a short one does it."""
    short = float(f"{scale * rank:.12g}")
    alpha = short if short / rank == scale else scale * rank
    return int(alpha) if alpha == int(alpha) else alpha


def most_common(values: Mapping[str, Any]) -> Any:
    """The most frequent value; of equals, the smallest."""
    return min(Counter(values.values()).items(), key=lambda item: (-item[1], item[0]))[0]


def unusual(values: Mapping[str, Any], usual: Any, as_pattern: Callable[[str], str]) -> dict[str, Any]:
    """The values that are not the usual one, by pattern."""
    return {as_pattern(module): value for module, value in values.items() if value != usual}


def target_modules(modules: Collection[str], exact: bool) -> list[str] | str:
    """A list is compared with the ends of names, a text is a regular expression of whole ones."""
    names = sorted(modules)
    return "|".join(map(re.escape, names)) if exact else names


def look_alikes(modules: Collection[str], among: Collection[str]) -> set[str]:
    """Those of `modules` whose name another one of `among` ends in, as peft compares names."""
    endings = {name[dot + 1 :] for name in among for dot, letter in enumerate(name) if letter == "."}
    return endings.intersection(modules)


def check_uniform(component: str, deltas: Mapping[str, LowRank]) -> None:
    """DoRA and lora_bias are settings of a whole LoraConfig: peft would invent what a layer lacks."""
    for what, having in (
        ("a DoRA magnitude", [module for module, delta in deltas.items() if delta.magnitude is not None]),
        ("a lora_B bias", [module for module, delta in deltas.items() if delta.bias is not None]),
    ):
        if having and len(having) != len(deltas):
            lacking = sorted(set(deltas) - set(having))
            raise ConversionError(
                f"{len(having)} of {len(deltas)} layers of {component} have {what}, and {lacking[0]} has none.",
                expected="all or none: one configuration is loaded for the whole component",
            )
