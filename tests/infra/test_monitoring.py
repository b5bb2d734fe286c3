"""What Grafana shows and Prometheus alerts of is what the dashboard measures, all of it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from adapterline.dashboard.metrics import exposition
from adapterline.lineage import Index
from adapterline.lineage.health_answers import Measures
from infra import grafana_dashboard
from infra.check import CHECKS, NotRunError, Tools, grafana, prometheus, rules_of
from tests.lineage.nights import NOW, fill
from tests.lineage.recorded import index_file, sweep_of

INFRA = Path(__file__).parents[2] / "infra"
RULES = INFRA / "prometheus" / "rules.yaml"
COMPOSE = yaml.safe_load((INFRA / "compose.yaml").read_text())
_NAME = re.compile(r"\badapterline_\w+")


@pytest.fixture
def measured(records: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    """Every metric -> its labels, of an index that has everything."""
    fill(f"sqlite:///{index_file(records)}", 500)
    index, measures = Index(), Index.measures

    def at_that_time(self: Index) -> Measures:
        return measures(self, NOW)

    monkeypatch.setattr(Index, "measures", at_that_time)
    index.add_sweep(sweep_of())
    families = text_string_to_metric_families(exposition(index)[0].decode())
    return {sample.name: set(sample.labels) for family in families for sample in family.samples}


def test_panels_show_everything_that_is_measured_and_nothing_else(measured: dict[str, set[str]]) -> None:
    shown = {name for expression in grafana_dashboard.expressions() for name in _NAME.findall(expression)}
    assert shown == set(measured)


def test_legends_name_labels_that_there_are(measured: dict[str, set[str]]) -> None:
    for panels in grafana_dashboard.ROWS.values():
        for expression, legend in (query for panel in panels for query in panel.queries):
            [name] = set(_NAME.findall(expression))
            assert set(re.findall(r"{{(\w+)}}", legend)) <= measured[name], expression


def test_rules_ask_for_what_is_measured(measured: dict[str, set[str]]) -> None:
    for rule in rules_of(RULES):
        told = rule["expr"] + json.dumps(rule["annotations"])
        names = set(_NAME.findall(told))
        assert names <= set(measured)
        labels = set(re.findall(r"\$labels\.(\w+)", told)) | set(re.findall(r"(\w+) *!?=~?\"", rule["expr"]))
        assert labels <= {label for name in names for label in measured[name]} | {"job"}, rule["alert"]


def test_every_outcome_that_is_asked_for_is_one(measured: dict[str, set[str]], records: Path) -> None:
    asked = set(re.findall(r'outcome!?="([\w-]+)"', RULES.read_text() + grafana_dashboard.text()))
    asked |= set(re.findall(r'outcome!?=\\"([\w-]+)\\"', grafana_dashboard.text()))
    told = set(re.findall(r'adapterline_runs{outcome="([\w-]+)"}', exposition(Index())[0].decode()))
    assert asked == {"failed", "refused", "waiting"}
    assert asked <= told


def test_every_alert_is_tried_firing_and_not_firing() -> None:
    tests = yaml.safe_load((INFRA / "prometheus" / "rules.test.yaml").read_text())["tests"]
    tried = [case for test in tests for case in test["alert_rule_test"]]
    alerts = {rule["alert"] for rule in rules_of(RULES)}
    assert {case["alertname"] for case in tried if case.get("exp_alerts")} == alerts
    assert {case["alertname"] for case in tried if not case.get("exp_alerts")} == alerts


def test_every_alert_says_what_to_do_and_is_explained() -> None:
    page = (INFRA.parent / "docs" / "metrics.md").read_text()
    for rule in rules_of(RULES):
        assert set(rule["annotations"]) == {"summary", "remedy"}
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert f"| `{rule['alert']}` |" in page


def test_every_metric_is_explained(measured: dict[str, set[str]]) -> None:
    page = (INFRA.parent / "docs" / "metrics.md").read_text()
    explained = {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in _rows(page)}
    assert explained == measured


def _rows(page: str) -> Iterator[tuple[str, str]]:
    for row in re.findall(r"^\| `adapterline_.*$", page, re.MULTILINE):
        name, labels, _ = (cell.strip() for cell in row.strip("|").split("|"))
        yield name.strip("`"), labels


def test_the_dashboard_of_grafana_is_what_its_panels_make() -> None:
    assert grafana_dashboard.FILE.read_text() == grafana_dashboard.text(), "run `python -m infra.grafana_dashboard`"


def test_no_panel_lies_on_another_one() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in grafana_dashboard.dashboard()["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


# --- how it is put together -------------------------------------------------------------------------------------------


def test_prometheus_scrapes_the_dashboard_with_its_token() -> None:
    services = COMPOSE["services"]
    [job] = yaml.safe_load((INFRA / "prometheus" / "prometheus.yaml").read_text())["scrape_configs"]
    command = services["dashboard"]["command"]
    assert job["static_configs"] == [{"targets": [f"dashboard:{command[command.index('--port') + 1]}"]}]
    assert f'up{{job="{job["job_name"]}"}}' in RULES.read_text()
    assert job["authorization"]["credentials_file"] == f"/run/secrets/{services['prometheus']['secrets'][0]}"
    variable = COMPOSE["secrets"]["dashboard-token"]["environment"]
    assert f"${{{variable}:?" in services["dashboard"]["environment"]["ADAPTERLINE_DASHBOARD_TOKEN"]


def test_workers_and_dashboard_have_one_index_which_is_not_prefects() -> None:
    services = COMPOSE["services"]
    urls = {services[name]["environment"]["ADAPTERLINE_INDEX"] for name in ("worker", "worker-gpu", "dashboard")}
    [url] = urls
    assert url.rpartition("/")[2] != services["postgres"]["environment"]["POSTGRES_DB"]
    assert f"createdb {url.rpartition('/')[2]}" in " ".join(services["index"]["command"])
    assert "postgres" in (INFRA / "Dockerfile").read_text()


def test_what_is_mounted_is_there() -> None:
    for name in ("prometheus", "grafana"):
        assert COMPOSE["services"][name]["profiles"] == ["monitoring"]
        mounts = [volume.split(":") for volume in COMPOSE["services"][name]["volumes"] if volume.startswith("./")]
        assert mounts
        for source, _, mode in mounts:
            assert (INFRA / source).exists(), source
            assert mode == "ro"
    provider = yaml.safe_load((INFRA / "grafana/provisioning/dashboards/adapterline.yaml").read_text())["providers"][0]
    targets = [volume.split(":")[1] for volume in COMPOSE["services"]["grafana"]["volumes"]]
    assert f"{provider['options']['path']}/adapterline.json" in targets


# --- the checks of `make infra-check` ---------------------------------------------------------------------------------


def test_a_check_without_its_program_is_not_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotRunError, match="promtool"):
        list(prometheus(Tools(tmp_path)))
    assert {grafana, prometheus} <= set(CHECKS.values())


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("promtool"), reason="no promtool is installed")
@pytest.mark.parametrize(
    ("rule", "spoiled"),
    [
        ("> 26 * 3600", "> 30 * 3600"),
        ("> 7 * 86400", "> 8 * 86400"),
        ("> 0.1", "> 0.3"),
        ("> 10", "> 9"),
        ("for: 5m", ""),
    ],
)
def test_a_rule_that_fires_otherwise_fails_its_test(tmp_path: Path, rule: str, spoiled: str) -> None:
    text = RULES.read_text()
    assert rule in text
    (tmp_path / "rules.yaml").write_text(text.replace(rule, spoiled, 1))
    shutil.copy(INFRA / "prometheus" / "rules.test.yaml", tmp_path)
    done: Any = subprocess.run(
        ["promtool", "test", "rules", "rules.test.yaml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "FAILED" in done.stdout + done.stderr
