"""The same arithmetic on each of many modules, one thread a module.

torch splits every operation over all cores. On tensors of a few megabytes, with anything else running, most of the time
is then spent waiting (eighty times as long was measured), and sums come out differently with the number of threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Key = TypeVar("Key")
Item = TypeVar("Item")
Result = TypeVar("Result")

_MOST = 8  # more threads are limited by the memory's bandwidth


def each(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """`[function(item) for item in items]`, in that order; the first exception is raised."""
    with ThreadPoolExecutor(min(_MOST, os.cpu_count() or 1), initializer=_alone) as pool:
        return list(pool.map(function, items))


def each_value(function: Callable[[Item], Result], items: Mapping[Key, Item]) -> dict[Key, Result]:
    """The same for the values of a mapping."""
    return dict(zip(items, each(function, items.values()), strict=True))


def _alone() -> None:
    import torch

    torch.set_num_threads(1)  # OpenMP's setting, of the calling thread
