"""What Prometheus scrapes: how the line fares, read from the index at each scrape.

Everything is a gauge. An index may be made anew, or be another one tomorrow, which `rate()` of a counter would take for
an avalanche; so what alerts look at is counted over the last 24 hours by the database. What is not known has no sample.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.metadata import version
from typing import Final

from fastapi import APIRouter, Request
from fastapi.responses import Response
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from adapterline.errors import MachineError
from adapterline.lineage.health import FIELDS
from adapterline.lineage.health_answers import Durations, Measures, Outcomes
from adapterline.lineage.index import Index
from adapterline.values import SweepRecord

router = APIRouter()
_OPENMETRICS: Final = "application/openmetrics-text"
#: Of a sweep's checkpoints; field of `SweepRecord` and value of the label.
_SWEPT: Final = ("exported", "skipped", "unfinished", "refused", "failed")


@router.get("/metrics", include_in_schema=False)
def metrics(request: Request) -> Response:
    """For Prometheus, in its text format or in OpenMetrics."""
    body, kind = exposition(request.app.state.index, request.headers.get("accept", ""))
    return Response(body, headers={"Content-Type": kind})


def exposition(index: Index, accept: str = "") -> tuple[bytes, str]:
    """The body and its content type; in OpenMetrics where an `Accept` header asks for it.

    An index that does not answer is a measurement too: then `adapterline_index_up` is 0.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_OfIndex(index))
    # The library's own choice (`choose_encoder`) raises for some headers, and these names need no escaping.
    if any(kind.split(";")[0].strip() == _OPENMETRICS for kind in accept.split(",")):
        body: bytes = openmetrics.generate_latest(registry)  # type: ignore[no-untyped-call]
        return body, openmetrics.CONTENT_TYPE_LATEST
    return generate_latest(registry), CONTENT_TYPE_PLAIN_0_0_4


class _OfIndex(Collector):
    def __init__(self, index: Index) -> None:
        self._index = index

    def collect(self) -> Iterator[Metric]:
        of_build = {"version": version("adapterline"), "python": platform.python_version()}
        yield InfoMetricFamily("adapterline_build", "What serves this", of_build)
        try:
            measured = self._index.measures()
        except MachineError:
            measured = None
        yield _gauge("index_up", "Does the lineage index answer", int(measured is not None))
        if measured is not None:
            yield from _stock(measured)
            yield from _recent(measured)
            yield from _sweep(measured.last_sweep)
            yield from _waiting(measured)
            yield from _drift(measured)


def _stock(measured: Measures) -> Iterator[Metric]:
    yield _gauge("adapters", "Names in the index", measured.names)
    yield _gauge("versions", "Versions in the index", measured.versions)
    yield _gauge("versions_bytes", "Bytes of all versions in the index", measured.bytes)
    yield _by_outcome("runs", "Runs of the line in the index, by outcome", measured.outcomes)
    if measured.last_export:
        at = measured.last_export.ended_at.timestamp()
        yield _gauge("last_export_timestamp_seconds", "When the last export ended", at)


def _recent(measured: Measures) -> Iterator[Metric]:
    yield _by_outcome("recent_runs", "Runs that ended in the last 24 hours, by outcome", measured.recent)
    labels = ["outcome", "error_type"]
    errors = GaugeMetricFamily("adapterline_recent_errors", "Errors of the last 24 hours, by class", labels=labels)
    for each in measured.errors:
        errors.add_metric([each.outcome, each.error_type], each.count)
    yield errors
    if (ratio := measured.recent.success_ratio) is not None:
        yield _gauge(
            "recent_success_ratio", "Of the runs that ended in the last 24 hours, without those that wait", ratio
        )
    if measured.durations:
        yield _durations(measured.durations)


def _durations(taken: Durations) -> Metric:
    text = "How long the exports of the last 24 hours took"
    found = GaugeMetricFamily("adapterline_recent_export_duration_seconds", text, labels=["statistic"])
    for statistic, seconds in (("median", taken.median), ("p95", taken.p95), ("longest", taken.longest)):
        found.add_metric([statistic], seconds)
    return found


def _sweep(last: SweepRecord | None) -> Iterator[Metric]:
    if last is None:
        return
    yield _gauge("last_sweep_timestamp_seconds", "When the last sweep ended", last.ended_at.timestamp())
    took = (last.ended_at - last.started_at).total_seconds()
    yield _gauge("last_sweep_duration_seconds", "How long the last sweep took", took)
    yield _gauge("last_sweep_complete", "Did the last sweep go through all its roots", int(last.is_whole))
    met = GaugeMetricFamily(
        "adapterline_last_sweep_checkpoints", "Checkpoints that the last sweep met, by outcome", labels=["outcome"]
    )
    for outcome in _SWEPT:
        met.add_metric([outcome], getattr(last, outcome))
    yield met


def _waiting(measured: Measures) -> Iterator[Metric]:
    yield _gauge("waiting", "Checkpoints that were not whole when they were looked at last", len(measured.waiting))
    if measured.waiting:
        since = measured.waiting[0].since.timestamp()
        yield _gauge(
            "waiting_since_timestamp_seconds", "Since when the one of these waits that waits the longest", since
        )


def _drift(measured: Measures) -> Iterator[Metric]:
    labels = ["name", "component"]
    cosine = GaugeMetricFamily(
        "adapterline_drift_cosine", "Between a name's newest version and the latest before it", labels=labels
    )
    ratio = GaugeMetricFamily(
        "adapterline_drift_norm_ratio",
        "Norm of a name's newest version by the norm of the latest before it",
        labels=labels,
    )
    for each in measured.drifts:
        if each.cosine is not None:
            cosine.add_metric([each.name, each.component], each.cosine)
        if each.norm_ratio is not None:
            ratio.add_metric([each.name, each.component], each.norm_ratio)
    yield cosine
    yield ratio


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"adapterline_{name}", text, value=value)


def _by_outcome(name: str, text: str, outcomes: Outcomes) -> Metric:
    found = GaugeMetricFamily(f"adapterline_{name}", text, labels=["outcome"])
    for outcome, field in FIELDS.items():
        found.add_metric([outcome], getattr(outcomes, field))
    return found
