"""Charts as numbers: where every mark is. Templates draw them as SVG."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from adapterline.values import ComponentSummary

_WIDTH, _LEFT, _RIGHT, _ROW, _TOP = 640, 170, 40, 30, 10


@dataclass(frozen=True)
class Mark:
    """A value and where it is."""

    value: int
    x: float


@dataclass(frozen=True)
class Row:
    """A component: its ranks, and a bar from the smallest to the largest."""

    name: str
    modules: int
    marks: tuple[Mark, ...]
    y: float

    @property
    def text(self) -> str:
        """What the row says, in words."""
        ranks = ", ".join(str(mark.value) for mark in self.marks)
        return f"{self.name}: rank {ranks}, {self.modules} modules"


@dataclass(frozen=True)
class RankChart:
    """The ranks of every component over one axis that begins at 0."""

    rows: tuple[Row, ...]
    ticks: tuple[Mark, ...]
    width: int
    height: int
    left: int
    axis: float


def rank_chart(components: Mapping[str, ComponentSummary]) -> RankChart:
    """Of the components of a manifest. A component has one rank, or every one that occurs among its modules."""
    ranks = {name: each.rank if isinstance(each.rank, list) else [each.rank] for name, each in components.items()}
    top = _above(max((rank for each in ranks.values() for rank in each), default=1))
    rows = tuple(
        Row(name, components[name].modules, tuple(_mark(rank, top) for rank in sorted(each)), _TOP + _ROW * (n + 0.5))
        for n, (name, each) in enumerate(sorted(ranks.items()))
    )
    ticks = tuple(_mark(round(top * part / 4), top) for part in range(5)) if top >= 4 else (_mark(0, top),)
    axis = _TOP + _ROW * len(rows)
    return RankChart(rows, ticks, _WIDTH, axis + 26, _LEFT, axis)


def _above(rank: int) -> int:
    """The power of two at or above a rank: most ranks are one."""
    return 1 << max(rank - 1, 0).bit_length()


def _mark(value: int, top: int) -> Mark:
    return Mark(value, round(_LEFT + (_WIDTH - _LEFT - _RIGHT) * value / top, 1))
