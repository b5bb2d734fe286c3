"""What Prometheus scrapes, read by Prometheus's own parsers."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as of_openmetrics
from prometheus_client.parser import text_string_to_metric_families as of_text

from adapterline.dashboard.metrics import exposition
from adapterline.lineage import Index
from adapterline.lineage.health_answers import Measures
from adapterline.values import ComponentDrift, DriftFromLatest, Package
from tests.dashboard.conftest import TOKEN
from tests.lineage.nights import NOW, fill
from tests.lineage.recorded import index_file, keep, publish, record_of, sweep_of

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]
Make = Callable[..., Package]


class At(Index):
    """The index as it is asked at a given time."""

    def __init__(self, now: datetime, url: str | None = None) -> None:
        super().__init__(url)
        self._now = now

    def measures(self, now: datetime | None = None) -> Measures:
        return super().measures(self._now)


def scraped(index: Index) -> Samples:
    body, kind = exposition(index)
    assert kind == "text/plain; version=0.0.4; charset=utf-8"
    found: Samples = {}
    for family in of_text(body.decode()):
        assert family.documentation
        for sample in family.samples:
            key = (sample.name.removeprefix("adapterline_"), frozenset(sample.labels.items()))
            assert key not in found, "a series twice is no exposition"
            found[key] = sample.value
    return found


def value(found: Samples, measure: str, /, **labels: str) -> float:
    return found[measure, frozenset(labels.items())]


def test_each_measure_is_what_was_recorded(records: Path, tmp_path: Path, make: Make) -> None:
    package, index = make(1), At(datetime(2026, 5, 3, 6, tzinfo=UTC))
    drift = DriftFromLatest(
        before="0" * 64,
        destination="s3://adapters",
        components={
            "unet": ComponentDrift(norm=3, before=2, cosine=-0.5, modules={}),
            "text_encoder": ComponentDrift(norm=1, before=0, cosine=None, modules={}),
        },
    )
    record = keep(record_of(package, *publish(package, str(tmp_path / "out")), day=3, drift=drift))
    keep(record_of(None, day=1, error="No.", error_type="CheckpointError"))
    waiting = {"outcome": "waiting", "error": "cut", "error_type": "CheckpointIncompleteError"}
    left = keep(record_of(None, id="a" * 12, day=3, checkpoint="s3://runs/cut", **waiting))
    failed = {"outcome": "failed", "error": "No.", "error_type": "PublishError"}
    for number in range(3):
        keep(record_of(None, id=f"b{number:011}", day=3, **failed))
    index.add_sweep(sweep_of(2, exported=9))
    index.add_sweep(sweep_of(3, exported=4, skipped=3, unfinished=1, refused=2, failed=1, error_type="OSError"))

    found = scraped(index)
    assert [value(found, name) for name in ("index_up", "adapters", "versions", "waiting")] == [1, 1, 1, 1]
    assert value(found, "versions_bytes") == sum(file.size for file in package.manifest.files)
    assert value(found, "last_export_timestamp_seconds") == record.ended_at.timestamp()
    assert value(found, "waiting_since_timestamp_seconds") == left.started_at.timestamp()
    outcomes = {"exported": 1, "already-exported": 0, "validated": 0, "waiting": 1, "failed": 3}
    assert {o: value(found, "runs", outcome=o) for o in (*outcomes, "refused")} == outcomes | {"refused": 1}
    assert {o: value(found, "recent_runs", outcome=o) for o in (*outcomes, "refused")} == outcomes | {"refused": 0}
    assert value(found, "recent_success_ratio") == 0.25
    assert value(found, "recent_errors", outcome="failed", error_type="PublishError") == 3
    assert not [labels for name, labels in found if ("error_type", "CheckpointError") in labels]
    for statistic in ("median", "p95", "longest"):
        assert value(found, "recent_export_duration_seconds", statistic=statistic) == 180
    swept = {"exported": 4, "skipped": 3, "unfinished": 1, "refused": 2, "failed": 1}
    assert {outcome: value(found, "last_sweep_checkpoints", outcome=outcome) for outcome in swept} == swept
    assert value(found, "last_sweep_timestamp_seconds") == sweep_of(3).ended_at.timestamp()
    assert (value(found, "last_sweep_duration_seconds"), value(found, "last_sweep_complete")) == (300, 0)
    assert value(found, "drift_cosine", name="tiny", component="unet") == -0.5
    assert value(found, "drift_norm_ratio", name="tiny", component="unet") == 1.5
    assert not [labels for name, labels in found if ("component", "text_encoder") in labels]
    assert value(found, "build_info", **dict(next(k for n, k in found if n == "build_info"))) == 1


def test_an_empty_index_has_numbers_where_there_are_any(records: Path) -> None:
    found = scraped(Index())
    names = {name for name, _ in found}
    assert names == {
        *("build_info", "index_up", "adapters", "versions", "versions_bytes", "runs", "recent_runs", "waiting"),
    }
    assert sum(number for (name, _), number in found.items() if name not in ("build_info", "index_up")) == 0


def test_an_index_that_does_not_answer_is_a_measurement(records: Path) -> None:
    index_file(records).write_bytes(b"no database" * 1000)
    found = scraped(Index())
    assert {name for name, _ in found} == {"build_info", "index_up"}
    assert value(found, "index_up") == 0


def test_openmetrics_is_given_to_who_asks_for_it(records: Path) -> None:
    fill(f"sqlite:///{index_file(records)}", 500)
    index = At(NOW)
    prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
    body, kind = exposition(index, prometheus)
    assert kind.startswith("application/openmetrics-text; version=1.0.0")
    assert body.endswith(b"# EOF\n")
    families = {family.name: family for family in of_openmetrics(body.decode())}
    assert {family.type for family in families.values()} == {"gauge", "info"}
    plain = scraped(index)
    assert {
        (sample.name.removeprefix("adapterline_"), frozenset(sample.labels.items())): sample.value
        for family in families.values()
        for sample in family.samples
    } == plain


@pytest.mark.parametrize("accept", ["application/openmetrics-text; version=one", "text/plain; version=", "?;;,", "é"])
def test_who_asks_for_nonsense_gets_text(records: Path, accept: str) -> None:
    body, _ = exposition(Index(), accept)
    assert b"adapterline_index_up 1.0\n" in body


def test_names_are_those_that_prometheus_likes(records: Path) -> None:
    """No unit but the base ones, and none of a counter's, a histogram's or a summary's endings on a gauge."""
    fill(f"sqlite:///{index_file(records)}", 500)
    body, _ = exposition(At(NOW))
    for family in of_text(body.decode()):
        assert not family.name.endswith(("_total", "_count", "_sum", "_bucket", "_ms", "_hours", "_percent"))
        assert not {"le", "quantile"} & {label for sample in family.samples for label in sample.labels}


def test_a_hostile_name_is_one_sample(records: Path, make: Make, tmp_path: Path) -> None:
    """A component's name comes from a checkpoint."""
    package = make(1)
    hostile = 'a"} 1\n# EOF\nadapterline_index_up 0\\'
    components = {hostile: ComponentDrift(norm=1, before=1, cosine=math.cos(0), modules={})}
    drift = DriftFromLatest(before="0" * 64, destination="-", components=components)
    record = keep(record_of(package, *publish(package, str(tmp_path / "out")), drift=drift))
    found = scraped(At(record.ended_at + timedelta(minutes=1)))
    assert value(found, "drift_cosine", name="tiny", component=hostile) == 1
    assert value(found, "index_up") == 1


def test_series_are_bounded_whatever_was_exported(records: Path) -> None:
    fill(f"sqlite:///{index_file(records)}", 3000, days=6, names=1500)
    found = scraped(At(NOW))
    assert sum(name == "drift_cosine" for name, _ in found) == 500
    assert len(found) < 1100


def test_the_dashboard_serves_it_to_who_has_the_token(guarded: str) -> None:
    assert httpx.get(f"{guarded}/metrics").status_code == 401
    answer = httpx.get(f"{guarded}/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert "adapterline_index_up 1.0" in answer.text.splitlines()
    wanted = {"Authorization": f"Bearer {TOKEN}", "Accept": "application/openmetrics-text;version=1.0.0"}
    assert httpx.get(f"{guarded}/metrics", headers=wanted).text.endswith("# EOF\n")
