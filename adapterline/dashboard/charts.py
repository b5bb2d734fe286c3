"""Charts as numbers: where every mark is. Templates draw them as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

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


# --- over versions ----------------------------------------------------------------------------------------------------

_LINES_WIDTH, _LINES_HEIGHT, _LINES_LEFT, _LINES_RIGHT, _PAD, _LABEL = 520, 190, 52, 130, 14, 15
#: How many lines are told apart by colour and dashes.
KINDS: Final = 4


@dataclass(frozen=True)
class Point:
    """A value of a line: where it is, and what it says."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Line:
    """A line, broken where a value is missing; `kind` says how it is drawn."""

    name: str
    kind: int
    path: str
    points: tuple[Point, ...]
    label_y: float


@dataclass(frozen=True)
class LineChart:
    """Lines over the same steps from left to right; `ticks` are values of the axis at their heights."""

    lines: tuple[Line, ...]
    ticks: tuple[tuple[str, float], ...]
    steps: tuple[tuple[str, float], ...]
    left: int
    right: int
    width: int = _LINES_WIDTH
    height: int = _LINES_HEIGHT


def line_chart(
    steps: Sequence[str], lines: Mapping[str, Sequence[float | None]], *, low: float = 0.0, high: float | None = None
) -> LineChart:
    """Each line has a value or None for every step. The axis goes from `low` or less to `high` or more."""
    values = [value for line in lines.values() for value in line if value is not None]
    bottom = min([low, *values])
    top = max([low, *values]) if high is None else max([high, *values])
    top = top if top > bottom else bottom + 1
    right, floor = _LINES_WIDTH - _LINES_RIGHT, _LINES_HEIGHT - 30

    def x(step: int) -> float:
        return round(_LINES_LEFT + (right - _LINES_LEFT) * step / max(len(steps) - 1, 1), 1)

    def y(value: float) -> float:
        return round(floor - (floor - _PAD) * (value - bottom) / (top - bottom), 1)

    drawn = [
        _line(name, number % KINDS, [None if v is None else Point(x(n), y(v), f"{v:.4g}") for n, v in enumerate(line)])
        for number, (name, line) in enumerate(lines.items())
    ]
    marks = [bottom + (top - bottom) * part / 4 for part in range(5)]
    ticks = tuple((f"{mark:.3g}", y(mark)) for mark in marks)
    ends = sorted({0, len(steps) - 1}) if steps else []
    return LineChart(_apart(drawn), ticks, tuple((steps[n], x(n)) for n in ends), _LINES_LEFT, right)


def _line(name: str, kind: int, points: Sequence[Point | None]) -> Line:
    path, pen = "", "M"
    for point in points:
        if point is not None:
            path += f"{pen}{point.x} {point.y}"
        pen = "M" if point is None else "L"
    there = tuple(point for point in points if point is not None)
    return Line(name, kind, path, there, there[-1].y if there else 0)


def _apart(lines: list[Line]) -> tuple[Line, ...]:
    """Their labels, each a line of text below the one before."""
    placed: list[Line] = []
    for line in sorted((each for each in lines if each.points), key=lambda each: each.label_y):
        lowest = placed[-1].label_y + _LABEL if placed else line.label_y
        placed.append(replace(line, label_y=max(line.label_y, lowest)))
    return tuple(placed)
