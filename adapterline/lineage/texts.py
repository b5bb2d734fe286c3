"""What `adapterline lineage` says to a person."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.tree import Tree

    from adapterline.lineage.answers import (
        ComponentEntry,
        Lineage,
        Matches,
        PlaceEntry,
        Reindexed,
        Relative,
        RunPage,
        VersionEntry,
        VersionPage,
    )
    from adapterline.values import ComponentDrift, Drift

_WIDE = 100_000
#: What would move the cursor or break a line; a checkpoint's name may have it.
_CONTROL = {number: "?" for number in (*range(32), *range(127, 160))}


def versions_text(page: VersionPage) -> str:
    """A line each, and how many there are where that is not all."""
    rows = [
        (
            version.name,
            version.digest[:12],
            version.family,
            f"{version.created_at:%Y-%m-%d %H:%M}",
            version.base_model,
            version.run_id or "-",
            ", ".join(dict.fromkeys(alias.alias for alias in version.aliases)) or "-",
            f"{len(version.places)} place{'' if len(version.places) == 1 else 's'}",
        )
        for version in page.versions
    ]
    return _table(rows, page.total, "versions")


def runs_text(page: RunPage) -> str:
    """A line each, and how many there are where that is not all."""
    rows = [
        (
            run.id,
            run.outcome,
            f"{run.started_at:%Y-%m-%d %H:%M}",
            run.name or "-",
            run.digest[:12] if run.digest else "-",
            run.checkpoint,
            run.error_type or "",
        )
        for run in page.runs
    ]
    return _table(rows, page.total, "runs")


def print_lineage(found: Lineage) -> None:
    """Draws where it comes from and where it went, as a tree."""
    from rich.console import Console

    # A tree is cut to the console's width. So wide, nothing is, and a terminal breaks long lines itself.
    Console(file=sys.stdout, width=_WIDE, highlight=False).print(_tree(found))


def matches_text(found: Matches) -> str:
    """What the file is, a line each."""
    lines = []
    for match in found.matches:
        how = "the same file" if match.by == "file" else "the same tensors, in another file"
        version = match.version
        lines.append(f"{version.name} {version.digest[:12]} {_clean(match.path)} ({how})")
        where = [f"  {place.location}" for place in version.places]
        lines += [_clean(line) for line in where] or ["  published nowhere"]
    return "\n".join(lines)


def reindexed_text(done: Reindexed) -> str:
    """What the index is made of now, and every place."""
    swept = f", {done.sweeps} sweeps" if done.sweeps else ""
    unread = f", {done.unread} unread" if done.unread else ""
    lines = [f"{done.versions} versions of {done.records} records{swept}{unread}"]
    for place in done.places:
        why = f": {place.why}" if place.why else f", {place.versions} versions"
        lines.append(f"  {place.status:<6} {place.place}{why}")
    return "\n".join(map(_clean, lines))


def drift_text(found: Drift) -> str:
    """A line for each component, and its layer that turned the most."""
    lines = []
    for name, each in found.components.items():
        lines.append(_drift((name, each)))
        turned = {layer: drift.cosine for layer, drift in each.modules.items() if drift.cosine is not None}
        if turned:
            farthest = min(turned, key=lambda layer: turned[layer])
            lines.append(f"  of {len(each.modules)} layers {farthest} turned the most: cosine {turned[farthest]:.4f}")
    return "\n".join(lines)


def _table(rows: Sequence[Sequence[str]], total: int, what: str) -> str:
    rows = [[_clean(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if total != len(rows):
        lines.append(f"{len(rows)} of {total} {what}")
    return "\n".join(lines) or f"no {what}"


def _clean(text: str) -> str:
    return text.translate(_CONTROL)


# --- the tree ---------------------------------------------------------------------------------------------------------


def _tree(found: Lineage) -> Tree:
    from rich.text import Text
    from rich.tree import Tree

    chain = list(_above(found))
    root = tip = Tree(Text(_clean(chain[0])))
    for line in chain[1:]:
        tip = tip.add(Text(_clean(line)))
    if found.version is None:
        return root
    tip = tip.add(Text(_clean(_title(found.version)), style="bold"))
    for component in found.version.components:
        tip.add(Text(_clean(_component(component))))
    if found.drift:
        _branch(tip, f"drift from {found.drift.before[:12]}", map(_drift, found.drift.components.items()))
    _branch(tip, "places", [_place(found.version, place) for place in found.version.places] or ["published nowhere"])
    _branch(tip, "made from", map(_relative, found.parents))
    _branch(tip, "became", map(_relative, found.children))
    return root


def _above(found: Lineage) -> Iterable[str]:
    """Dataset, run and checkpoint, as far as they are known; of a run that made no version what became of it."""
    latest: dict[str, Any] = found.runs[0] if found.runs else {}
    run = found.training_run
    if run and run.dataset:
        yield f"dataset {run.dataset}"
    if run and (run.run_id or run.finished_at or run.trainer):
        more = [f"step {run.step}" if run.step is not None else "", f"by {run.trainer}" if run.trainer else ""]
        yield ", ".join(["training run " + (run.run_id or "without an id"), *filter(None, more)])
    if found.version:
        yield f"checkpoint {found.version.source_name} {found.version.source_digest[:12]}"
        return
    yield f"checkpoint {latest['checkpoint']}"
    yield f"{latest['outcome']} {latest['ended_at'][:16]} (record {latest['id']})"
    if latest["error"]:
        yield f"{latest['error_type']}: {latest['error']}"


def _title(version: VersionEntry) -> str:
    on = f" on {version.base_model}" if version.base_model != "unknown" else ""
    became = f"{version.outcome} {version.created_at:%Y-%m-%d %H:%M}"
    return f"{version.name} {version.digest[:12]} ({version.family}{on}), {became}"


def _component(component: ComponentEntry) -> str:
    return f"{component.component}: {component.adapter_type}, rank {component.rank}, {component.modules} modules"


def _place(version: VersionEntry, place: PlaceEntry) -> str:
    names = [alias.alias for alias in version.aliases if alias.place == place.place]
    offered = ", offered" if place.state == "proposed" else ""
    return place.location + (f" ({', '.join(names)})" if names else "") + offered


def _drift(item: tuple[str, ComponentDrift]) -> str:
    name, found = item
    cosine = "-" if found.cosine is None else f"{found.cosine:.4f}"
    return f"{name}: norm {found.norm:.6g}, before {found.before:.6g}, cosine {cosine}"


def _relative(relative: Relative) -> str:
    known = f"{relative.name} {relative.digest[:12]}" if relative.digest else f"{relative.stated}, not in the index"
    return f"{relative.kind} {known}"


def _branch(tip: Tree, title: str, lines: Iterable[str]) -> None:
    from rich.text import Text

    if lines := list(lines):
        branch = tip.add(Text(title))
        for line in lines:
            branch.add(Text(_clean(line)))
