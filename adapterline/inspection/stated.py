"""Rank and alpha of layers whose tensors do not tell them, as a configuration or the header states them.

adapter_config.json      r and rank_pattern, or the size of OFT's and BOFT's blocks; alpha, by whatever name
the header               lycoris_config (SimpleTuner), ss_network_dim and ss_network_alpha (sd-scripts, LyCORIS)
config.yaml              network: linear, linear_alpha (ai-toolkit)
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from typing import Any

from adapterline.checkpoints.dialects import dialect_named
from adapterline.checkpoints.dialects.base import Stated
from adapterline.checkpoints.evidence import folders_of
from adapterline.checkpoints.scales import alpha_over_rank, stated_rank
from adapterline.checkpoints.stated import json_of, yaml_of
from adapterline.errors import CheckpointError
from adapterline.values import Source

#: What is the rank of a type that has no `r`, or has it unset.
_BLOCK_SIZES = ("oft_block_size", "boft_block_size")
#: What stands for none: ai-toolkit takes 9999999999 for a full rank.
_NO_RANK = 1e9
_ALPHAS = ("lora_alpha", "alpha", "psoft_alpha", "randlora_alpha")


def ranks_stated(source: Source, component: str | None) -> Callable[[str], int | None]:
    """The rank of a module, or None where nothing states it."""
    config = _config(source, component)
    with contextlib.suppress(CheckpointError):
        by_module = stated_rank(config.config, config.where)
        return lambda module: _whole(by_module(module))
    sizes = [_number(config.config.get(name)) for name in _BLOCK_SIZES]
    sizes += [dim for dim, _ in _settings(source)]
    rank = next((whole for size in sizes if (whole := _whole(size))), None)
    return lambda module: rank


def alpha_stated(source: Source, component: str | None) -> float | None:
    """The alpha, or None where nothing states it."""
    config = _config(source, component).config
    alphas = [_number(config.get(name)) for name in _ALPHAS] + [alpha for _, alpha in _settings(source)]
    return next((alpha for alpha in alphas if alpha), None)


def scales_stated(source: Source, component: str | None) -> Callable[[str], float] | None:
    """alpha / rank of a module by PEFT's configuration, whatever else that says; None without one of LoRA."""
    config = _config(source, component)
    name = next((name for name in _ALPHAS if name in config.config), None)
    if name is None:
        return None
    try:
        power = 0.5 if config.config.get("use_rslora") else 1.0
        rule = alpha_over_rank(config.config, config.where, alpha=name, power=power)
    except CheckpointError:
        return None
    return lambda module: rule(module, None)


def _config(source: Source, component: str | None) -> Stated:
    try:
        stated = dialect_named(source.dialect).stated(source, component)
    except CheckpointError:
        stated = None
    return stated or Stated({}, "")


def _settings(source: Source) -> list[tuple[float | None, float | None]]:
    """(rank, alpha) as each place states them."""
    lycoris = json_of(source.header.get("lycoris_config", ""))
    found = [
        (_number(lycoris.get("linear_dim")), _number(lycoris.get("linear_alpha"))),
        (_number(source.header.get("ss_network_dim")), _number(source.header.get("ss_network_alpha"))),
    ]
    for folder in folders_of(source):
        network = _network(yaml_of(folder / "config.yaml"))
        if not network.get("lokr_full_rank"):
            found.append((_number(network.get("linear")), _number(network.get("linear_alpha"))))
    return found


def _network(config: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        network = config["config"]["process"][0]["network"]
    except (LookupError, TypeError):
        return {}
    return network if isinstance(network, dict) else {}


def _whole(rank: float | None) -> int | None:
    return int(rank) if rank and rank < _NO_RANK and rank == int(rank) else None


def _number(value: Any) -> float | None:
    """A number above zero, also one that is written as a text; sd-scripts writes None and Dynamic too."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if 0 < number < math.inf else None
