"""Random changes for the layers of a base."""

from __future__ import annotations

import re

import torch

from adapterline.deltas import LowRank
from adapterline.families.base import Base
from adapterline.families.skeleton import targets


def names_in(base: Base, component: str, pattern: str) -> list[str]:
    return sorted(name for name in targets(base, component) if re.search(pattern, name))


def deltas_for(base: Base, component: str, names: list[str], rank: int = 4, scale: float = 2.0) -> dict[str, LowRank]:
    deltas = {}
    for number, name in enumerate(names):
        out, *inner = targets(base, component)[name].shape
        generator = torch.Generator().manual_seed(number)
        b = (out, rank, *[1] * (len(inner) - 1))
        deltas[name] = LowRank(
            torch.randn(rank, *inner, generator=generator), torch.randn(b, generator=generator), scale
        )
    return deltas
