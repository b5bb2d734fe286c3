"""Grafana's dashboard, from what is on it: `python -m infra.grafana_dashboard` writes `grafana/adapterline.json`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

FILE = Path(__file__).parent / "grafana" / "adapterline.json"
_WIDTH = 24  # of Grafana's grid
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_GREEN, _AMBER, _RED = "green", "orange", "red"


@dataclass(frozen=True)
class Panel:
    """`queries`: PromQL and the legend of its series. `steps`: which colour from which value on; None, from below."""

    title: str
    text: str
    queries: tuple[tuple[str, str], ...]
    kind: Literal["stat", "timeseries"] = "timeseries"
    unit: str = "short"
    width: int = 12
    steps: tuple[tuple[str, float | None], ...] = ((_GREEN, None),)
    stacked: bool = False


def _stat(
    title: str, expression: str, text: str, unit: str, *steps: tuple[str, float | None], legend: str = ""
) -> Panel:
    return Panel(title, text, ((expression, legend),), "stat", unit, 4, steps or ((_GREEN, None),))


ROWS: dict[str, tuple[Panel, ...]] = {
    "Now": (
        _stat("Index", "adapterline_index_up", "Does it answer: 1, or 0", "none", (_RED, None), (_GREEN, 1)),
        _stat(
            "Since the last sweep",
            "time() - adapterline_last_sweep_timestamp_seconds",
            "A night without one is an alert",
            "s",
            (_GREEN, None),
            (_RED, 26 * 3600),
        ),
        _stat(
            "Since the last export",
            "time() - adapterline_last_export_timestamp_seconds",
            "A week without one is an alert",
            "s",
            (_GREEN, None),
            (_AMBER, 7 * 86400),
        ),
        _stat(
            "Success, 24 hours",
            "adapterline_recent_success_ratio",
            "Of the runs that ended; those that wait have not",
            "percentunit",
            (_RED, None),
            (_AMBER, 0.5),
            (_GREEN, 0.9),
        ),
        _stat(
            "Failed, 24 hours",
            'adapterline_recent_runs{outcome="failed"}',
            "Refusals are none",
            "none",
            (_GREEN, None),
            (_AMBER, 1),
            (_RED, 10),
        ),
        _stat(
            "Waiting", "adapterline_waiting", "Checkpoints that were not whole yet", "none", (_GREEN, None), (_AMBER, 1)
        ),
        _stat("Adapters", "adapterline_adapters", "Names", "none"),
        _stat("Versions", "adapterline_versions", "Of all names", "none"),
        _stat("Size", "adapterline_versions_bytes", "Of all versions", "bytes"),
        _stat(
            "Waiting for",
            "time() - adapterline_waiting_since_timestamp_seconds",
            "The one that waits the longest",
            "s",
            (_GREEN, None),
            (_AMBER, 6 * 3600),
        ),
        _stat(
            "Last sweep went through",
            "adapterline_last_sweep_complete",
            "All its roots: 1, or 0",
            "none",
            (_RED, None),
            (_GREEN, 1),
        ),
        _stat("Served by", "adapterline_build_info", "Its version", "none", legend="{{version}}, Python {{python}}"),
    ),
    "Runs": (
        Panel(
            "Runs, 24 hours",
            "That ended in the 24 hours before, by outcome",
            (("adapterline_recent_runs", "{{outcome}}"),),
            stacked=True,
        ),
        Panel(
            "Errors, 24 hours",
            "Of refusals, failures and those that wait, by class",
            (("adapterline_recent_errors", "{{outcome}} {{error_type}}"),),
            stacked=True,
        ),
        Panel(
            "Duration of exports, 24 hours",
            "By the clock of the workers",
            (("adapterline_recent_export_duration_seconds", "{{statistic}}"),),
            unit="s",
        ),
        Panel("All runs", "In the index", (("adapterline_runs", "{{outcome}}"),)),
    ),
    "Sweeps": (
        Panel(
            "Checkpoints of the last sweep",
            "By outcome",
            (("adapterline_last_sweep_checkpoints", "{{outcome}}"),),
            stacked=True,
        ),
        Panel("Duration of the last sweep", "", (("adapterline_last_sweep_duration_seconds", "sweep"),), unit="s"),
    ),
    "Drift": (
        Panel(
            "Cosine",
            "Of a name's newest version with the latest before it, of the names of the last 7 days",
            (("adapterline_drift_cosine", "{{name}} {{component}}"),),
            unit="none",
            steps=((_RED, None), (_GREEN, 0.1)),
        ),
        Panel(
            "Ratio of norms",
            "How much more or less it does than the latest before it",
            (("adapterline_drift_norm_ratio", "{{name}} {{component}}"),),
            unit="none",
            steps=((_RED, None), (_GREEN, 1 / 3), (_RED, 3)),
        ),
    ),
}


def dashboard() -> dict[str, Any]:
    """As Grafana imports it."""
    return {
        "title": "adapterline",
        "uid": "adapterline",
        "description": "LoRA adapters out of training checkpoints: exports, sweeps, failures, drift.",
        "tags": ["adapterline"],
        "schemaVersion": 38,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "1m",
        "time": {"from": "now-7d", "to": "now"},
        "timezone": "browser",
        "templating": {
            "list": [
                {
                    "name": "datasource",
                    "label": "Prometheus",
                    "type": "datasource",
                    "query": "prometheus",
                    "multi": False,
                    "includeAll": False,
                }
            ]
        },
        "panels": list(_placed()),
    }


def _placed() -> Iterator[dict[str, Any]]:
    top = number = 0
    for title, panels in ROWS.items():
        number += 1
        place = {"x": 0, "y": top, "w": _WIDTH, "h": 1}
        yield {"id": number, "type": "row", "title": title, "collapsed": False, "gridPos": place, "panels": []}
        top, left = top + 1, 0
        height = 4 if panels[0].kind == "stat" else 8
        for panel in panels:
            if left + panel.width > _WIDTH:
                top, left = top + height, 0
            number += 1
            place = {"x": left, "y": top, "w": panel.width, "h": height}
            yield _panel(panel, number) | {"gridPos": place}
            left += panel.width
        top += height


def _panel(panel: Panel, number: int) -> dict[str, Any]:
    steps = [{"color": color, "value": value} for color, value in panel.steps]
    drawn = {"lineWidth": 1, "fillOpacity": 20 if panel.stacked else 0, "spanNulls": False}
    if panel.stacked:
        drawn["stacking"] = {"mode": "normal", "group": "A"}
    if len(steps) > 1:
        drawn["thresholdsStyle"] = {"mode": "line"}
    of_lines = {"legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []}}
    of_lines["tooltip"] = {"mode": "multi", "sort": "desc"}
    text_mode = "name" if panel.title == "Served by" else "value"
    reduced = {"calcs": ["lastNotNull"], "fields": "", "values": False}
    of_stat = {
        "reduceOptions": reduced,
        "colorMode": "value",
        "graphMode": "none",
        "textMode": text_mode,
        "justifyMode": "auto",
        "orientation": "auto",
    }
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "datasource": _SOURCE,
        "targets": [
            {"refId": chr(ord("A") + index), "expr": expression, "legendFormat": legend, "datasource": _SOURCE}
            for index, (expression, legend) in enumerate(panel.queries)
        ],
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit,
                "thresholds": {"mode": "absolute", "steps": steps},
                **({"custom": drawn} if panel.kind == "timeseries" else {}),
            },
            "overrides": [],
        },
        "options": of_stat if panel.kind == "stat" else of_lines,
    }


def expressions() -> list[str]:
    """Every one of a panel, in PromQL."""
    return [expression for panels in ROWS.values() for panel in panels for expression, _ in panel.queries]


def text() -> str:
    """What the file holds."""
    return json.dumps(dashboard(), indent=2) + "\n"


if __name__ == "__main__":
    FILE.write_text(text())
    print(FILE)
