"""Where a version comes from and where it went, as a drawing: boxes in columns, and lines between them.

Templates draw it as SVG, and say the same as a list.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

from adapterline.dashboard.links import href, hub_url, version_path
from adapterline.lineage.answers import Lineage, Relative, VersionEntry

_WIDTH, _HEIGHT, _GAP, _ROW_GAP, _MARGIN = 190, 52, 44, 16, 12
_LETTERS, _SMALL_LETTERS = 22, 29  # of a title, and of the line above it, that fit
_MOST = 12  # boxes of a kind


@dataclass(frozen=True)
class Fact:
    """Something of the chain; `to` are the facts that follow from it."""

    key: str
    kind: str
    title: str
    detail: str
    column: int
    to: tuple[str, ...]
    link: str | None = None
    is_self: bool = False


@dataclass(frozen=True)
class Box:
    """A fact and where it is drawn."""

    fact: Fact
    x: int
    y: int

    @property
    def short(self) -> str:
        """Its title, as far as it fits."""
        title = self.fact.title
        return title if len(title) <= _LETTERS else f"{title[: _LETTERS - 9]}…{title[-8:]}"

    @property
    def short_detail(self) -> str:
        """Its detail, as far as it fits beside the kind."""
        room, detail = _SMALL_LETTERS - len(self.fact.kind) - 3, self.fact.detail
        return detail if len(detail) <= room else f"{detail[: max(room - 1, 0)]}…"


@dataclass(frozen=True)
class Graph:
    """The drawing; `lines` are paths of SVG."""

    boxes: tuple[Box, ...]
    lines: tuple[str, ...]
    width: int
    height: int
    box_width: int = _WIDTH
    box_height: int = _HEIGHT


def draw(found: Lineage, version: VersionEntry) -> Graph:
    """The chain of a version: dataset, training run, checkpoint, adapter, places; what was before and came after."""
    facts = tuple(_facts(found, version))
    columns = sorted({fact.column for fact in facts})
    tallest = max(sum(fact.column == column for fact in facts) for column in columns)
    height = tallest * (_HEIGHT + _ROW_GAP) - _ROW_GAP
    boxes: dict[str, Box] = {}
    for number, column in enumerate(columns):
        there = [fact for fact in facts if fact.column == column]
        top = (height - len(there) * (_HEIGHT + _ROW_GAP) + _ROW_GAP) // 2
        for row, fact in enumerate(there):
            x, y = _MARGIN + number * (_WIDTH + _GAP), _MARGIN + top + row * (_HEIGHT + _ROW_GAP)
            boxes[fact.key] = Box(fact, x, y)
    lines = [_line(boxes[fact.key], boxes[to]) for fact in facts for to in fact.to if to in boxes]
    width = len(columns) * (_WIDTH + _GAP) - _GAP + 2 * _MARGIN
    return Graph(tuple(boxes.values()), tuple(lines), width, height + 2 * _MARGIN)


def _line(start: Box, end: Box) -> str:
    x, y, to_x, to_y = start.x + _WIDTH, start.y + _HEIGHT // 2, end.x, end.y + _HEIGHT // 2
    return f"M{x} {y}C{x + _GAP // 2} {y} {to_x - _GAP // 2} {to_y} {to_x} {to_y}"


# --- the facts --------------------------------------------------------------------------------------------------------


def _facts(found: Lineage, version: VersionEntry) -> Iterator[Fact]:
    run = found.training_run
    has_run = bool(run and (run.run_id or run.finished_at or run.trainer))
    if run and run.dataset:
        yield Fact("dataset", "dataset", run.dataset, "", 0, ("run" if has_run else "checkpoint",), href(run.dataset))
    resumed = [each for each in found.parents if each.kind == "resumed-from"]
    yield from _relatives(resumed, "resumed from", 0, "run" if has_run else "checkpoint")
    if run and has_run:
        step = "" if run.step is None else f"step {run.step}"
        details = ", ".join(filter(None, [step, run.trainer or ""]))
        exported = f"/adapters?{urlencode({'run_id': run.run_id})}" if version.run_id else None
        yield Fact("run", "training run", run.run_id or "without an id", details, 1, ("checkpoint",), exported)
    sha12 = version.source_digest[:12]
    exported = f"/adapters?checkpoint={sha12}"
    yield Fact("checkpoint", "checkpoint", version.source_name, sha12, 2, ("self",), exported)
    yield from _relatives([each for each in found.parents if each.kind == "previous"], "version before", 2, "self")
    itself = version_path(version.name, version.digest)
    after = [f"place-{n}" for n in range(_MOST + 1)] + [f"child-{n}" for n in range(_MOST + 1)]
    yield Fact("self", "adapter", version.name, version.sha12, 3, tuple(after), itself, is_self=True)
    yield from _places(version)
    yield from _children(found.children)


def _relatives(found: Sequence[Relative], kind: str, column: int, to: str) -> Iterator[Fact]:
    for number, each in enumerate(found[:_MOST]):
        yield _relative(each, f"{kind}-{number}", kind, column, (to,))
    if len(found) > _MOST:
        yield Fact(f"{kind}-more", kind, f"and {len(found) - _MOST} more", "", column, (to,))


def _relative(each: Relative, key: str, kind: str, column: int, to: tuple[str, ...]) -> Fact:
    if each.name is None or each.digest is None:
        return Fact(key, kind, each.stated, "not in the index", column, to)
    return Fact(key, kind, each.name, each.digest[:12], column, to, version_path(each.name, each.digest))


def _places(version: VersionEntry) -> Iterator[Fact]:
    for number, place in enumerate(version.places[:_MOST]):
        aliases = ", ".join(each.alias for each in version.aliases if each.place == place.place)
        detail = "offered in a pull request" if place.state == "proposed" else aliases
        yield Fact(f"place-{number}", "place", place.place, detail, 4, (), hub_url(place.location))
    if len(version.places) > _MOST:
        yield Fact(f"place-{_MOST}", "place", f"and {len(version.places) - _MOST} more", "", 4, ())


def _children(found: Sequence[Relative]) -> Iterator[Fact]:
    for number, each in enumerate(found[:_MOST]):
        kind = "training went on to" if each.kind == "resumed-from" else "version after"
        yield _relative(each, f"child-{number}", kind, 4, ())
    if len(found) > _MOST:
        yield Fact(f"child-{_MOST}", "what came after", f"and {len(found) - _MOST} more", "", 4, ())
