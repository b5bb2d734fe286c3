"""A hundred thousand adapters in the lineage index, in SQLite and in PostgreSQL: `python -m benchmarks.lineage`.

A thousand runs are indexed as the line does it; the others are copies of their rows under other names and digests. Each
question is asked several times, about different adapters; of every statement that it needs the database tells the plan.
Then every page and every answer of the dashboard's API is fetched.
"""

from __future__ import annotations

import hashlib
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import Connection, event, func, insert, select

from adapterline.dashboard.access import access_at
from adapterline.lineage import Index, tables, writing
from adapterline.lineage.answers import RunFilter, VersionFilter
from adapterline.lineage.database import Database
from adapterline.values import (
    WEIGHT_NAME,
    BaseSummary,
    Bundle,
    Check,
    ComponentDrift,
    ComponentSummary,
    DriftFromLatest,
    ExportedFile,
    ExportOptions,
    LineageRecord,
    LoadCall,
    Manifest,
    ModuleDrift,
    Publication,
    Receipt,
    SourceSummary,
    TrainingRun,
    ValidationReport,
)
from tests.dashboard.served import served
from tests.servers import postgresql

NAMES, NIGHTS, COPIES = 20, 50, 100  # adapters: their product
LIMIT_MS = 200
TRIES = 9
START = datetime(2026, 1, 1, tzinfo=UTC)
FAMILIES = ("sd15", "sdxl", "flux", "sd3", "wan")
#: What no index can help with: a part of a word.
SEARCHES = ("search",)


# --- a thousand runs --------------------------------------------------------------------------------------------------


def digest(*parts: object) -> str:
    return hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()


def manifest_of(name: int, night: int) -> Manifest:
    files = tuple(
        ExportedFile(
            role="weights",
            layout=layout,
            path=path,
            size=10**6 + name,
            sha256=digest(name, night, path),
            tensors_sha256=digest(name, night, path, "tensors"),
        )
        for layout, path in (("diffusers", WEIGHT_NAME), ("kohya", "kohya.safetensors"))
    )
    bundle = Bundle.digest_of(files)
    checks = tuple(
        Check(name=f"check-{number}", component=component, observed=number / 1e6, limit=5e-4, passed=True)
        for number in range(16)
        for component in ("unet", "text_encoder")
    )
    summary = ComponentSummary(rank=16, alpha=16, modules=192, adapter_type="lora", dtype="F32", parameters=3_000_000)
    return Manifest(
        name=f"style-{name:02d}",
        digest=bundle,
        family=FAMILIES[name % len(FAMILIES)],
        source=SourceSummary(
            name=f"checkpoint-{night:03d}", digest=digest(name, night), container="peft-folder", dialect="peft"
        ),
        training_run=TrainingRun(
            run_id=f"run-{name:02d}-{night:03d}",
            finished_at=START + timedelta(days=night),
            step=1000 * night,
            dataset=f"s3://data/{name}",
            parents=(f"run-{name:02d}-{night - 1:03d}",) if night % 5 else (),
        ),
        base=BaseSummary(
            architecture=digest("architecture"), pipeline="StableDiffusionPipeline", model=f"org/base-{name % 7}"
        ),
        files=files,
        components={"unet": summary, "text_encoder": summary},
        transforms=(),
        left_out=(),
        validation=ValidationReport(bundle_digest=bundle, checks=checks),
        loads=(LoadCall(pipeline="StableDiffusionPipeline", method="load_lora_weights", weight_name=WEIGHT_NAME),),
        consumers={WEIGHT_NAME: ("diffusers",)},
        tools={"adapterline": "0.1.0"},
    )


def record_of(name: int, night: int, before: str | None) -> LineageRecord:
    """An export, and every twentieth a refusal."""
    at = START + timedelta(days=night, minutes=name)
    refused, manifest = (name + night) % 20 == 0, manifest_of(name, night)
    layer = ModuleDrift(norm=1.0, before=0.9, cosine=0.8)
    part = ComponentDrift(norm=10.0 + night, before=9.0, cosine=0.9, modules={f"layer.{n}": layer for n in range(8)})
    return LineageRecord(
        id=digest("record", name, night)[:12],
        key=digest("key", name, night),
        outcome="refused" if refused else "exported",
        started_at=at,
        ended_at=at + timedelta(minutes=2),
        checkpoint=f"s3://runs/style-{name:02d}/checkpoint-{night:03d}",
        name=manifest.name,
        to=("s3://adapters/loras", "hf://org"),
        options=ExportOptions(),
        run=manifest.training_run,
        manifest=None if refused else manifest,
        publications=()
        if refused
        else tuple(published(manifest, place) for place in ("s3://adapters/loras", "hf://org")),
        error="No reader knows these keys." if refused else None,
        error_type="CheckpointError" if refused else None,
        exit_code=3 if refused else 0,
        previous=None if refused else before,
        drift=DriftFromLatest(components={"unet": part}, before=before, destination="s3://adapters/loras")
        if before and not refused
        else None,
    )


def published(manifest: Manifest, place: str) -> Publication:
    location = (
        f"{place}/{manifest.name}/{manifest.digest[:12]}"
        if place.startswith("s3:")
        else f"{place}/{manifest.name}@sha-{manifest.digest[:12]}"
    )
    receipt = Receipt(
        destination=place,
        name=manifest.name,
        digest=manifest.digest,
        location=location,
        manifest_sha256=digest("manifest", manifest.digest),
        files=(),
        published=True,
    )
    return Publication(receipt=receipt, latest="moved", url=location, load=location)


# --- and their copies -------------------------------------------------------------------------------------------------

_DIGEST = re.compile(r"\b[0-9a-f]{64}\b")
_OTHERS = re.compile(r"\b(style-\d\d|run-\d\d-\d\d\d)\b")


def fill(database: Database) -> None:
    """Everything, in one transaction."""
    with database.writing() as connection:
        for name in range(NAMES):
            before = None
            for night in range(NIGHTS):
                record = record_of(name, night, before)
                writing.add_record(connection, record)
                before = record.manifest.digest if record.manifest else before
        rows = {table: connection.execute(select(table)).mappings().all() for table in tables.metadata.sorted_tables}
        count = connection.execute(select(func.max(tables.versions.c.id))).scalar_one()
        for number in range(1, COPIES):
            for table, found in ((table, found) for table, found in rows.items() if found):
                connection.execute(insert(table), [copied(dict(row), number, count) for row in found])
        writing.analyze(connection)
    if not database.is_sqlite:
        # What autovacuum does within a minute: until then no index alone answers.
        with database._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("VACUUM ANALYZE")


def copied(row: dict[str, Any], number: int, count: int) -> dict[str, Any]:
    """The same row of another adapter."""
    for column, value in row.items():
        if column == "version" or (column == "id" and isinstance(value, int)):
            row[column] = value + number * count
        elif column in ("id", "record", "told_by"):
            row[column] = digest(value, number)[:12]
        elif isinstance(value, str):
            value = _DIGEST.sub(lambda found: digest(found[0], number), value)
            row[column] = _OTHERS.sub(lambda found: f"{found[1]}-{number:03d}", value)
        elif isinstance(value, datetime) and column != "finished_at":
            row[column] = value + timedelta(seconds=number)
    return row


# --- questions --------------------------------------------------------------------------------------------------------

Question = Callable[[Index, int], object]


def _name(number: int) -> str:
    return f"style-{number % NAMES:02d}-{1 + number * 7 % (COPIES - 1):03d}"


QUESTIONS: dict[str, Question] = {
    "first page": lambda index, n: index.versions(),
    "page 1000": lambda index, n: index.versions(offset=50_000 + n),
    "last page": lambda index, n: index.versions(offset=94_950 + n),
    "by name": lambda index, n: index.versions(VersionFilter(name=_name(n))),
    "by pattern": lambda index, n: index.versions(VersionFilter(name=f"style-{n:02d}-*")),
    "by family": lambda index, n: index.versions(VersionFilter(family=FAMILIES[n % 5])),
    "by family, page 200": lambda index, n: index.versions(VersionFilter(family=FAMILIES[n % 5]), offset=10_000),
    "by base": lambda index, n: index.versions(VersionFilter(base=f"org/base-{n % 7}")),
    "by run": lambda index, n: index.versions(VersionFilter(run_id=f"run-03-{n:03d}-050")),
    "by checkpoint": lambda index, n: index.versions(VersionFilter(checkpoint=f"s3://runs/{_name(n)}/checkpoint-011")),
    "by alias": lambda index, n: index.versions(VersionFilter(alias="latest")),
    "by date": lambda index, n: index.versions(VersionFilter(since=START + timedelta(days=n + 20))),
    "search": lambda index, n: index.versions(VersionFilter(search=f"{_name(n)[5:]}")),
    "sorted by name": lambda index, n: index.versions(sort="name", descending=False),
    "sorted by size": lambda index, n: index.versions(sort="size"),
    "sorted by size, page 1000": lambda index, n: index.versions(sort="size", offset=50_000),
    "sorted by finish": lambda index, n: index.versions(sort="finished"),
    "by family, sorted by size": lambda index, n: index.versions(VersionFilter(family=FAMILIES[n % 5]), sort="size"),
    "show name": lambda index, n: index.show(_name(n)),
    "show digits": lambda index, n: index.show(manifest_of(n, 7).digest[:12]),
    "drifts": lambda index, n: index.drifts(_name(n)),
    "runs": lambda index, n: index.runs(),
    "runs, page 1000": lambda index, n: index.runs(offset=50_000),
    "refusals": lambda index, n: index.runs(RunFilter(outcome="refused")),
    "refusals, last page": lambda index, n: index.runs(RunFilter(outcome="refused"), offset=4_950),
    "counts": lambda index, n: index.counts(),
    "health of 30 days": lambda index, n: index.health(30, START + timedelta(days=50)),
    "what Prometheus scrapes": lambda index, n: index.measures(START + timedelta(days=50)),
    "choices": lambda index, n: index.choices(),
    "failures": lambda index, n: index.failures(),
    "a run": lambda index, n: index.run(digest("record", n, 7)[:12]),
    "which": lambda index, n: index.digests(manifest_of(n, 7).files[0].sha256),
}


#: Every page and every answer of the API, over HTTP.
ADDRESSES: dict[str, Callable[[int], str]] = {
    "/adapters": lambda n: f"/adapters?page={n + 1}",
    "/adapters?search=": lambda n: f"/adapters?search={_name(n)[6:]}",
    "/adapters?sort=size&page=": lambda n: f"/adapters?sort=size&page={1000 + n}",
    "/adapters/{name}": lambda n: f"/adapters/{_name(n)}",
    "/adapters/{name}/{version}": lambda n: f"/adapters/{_name(n)}/{_latest(n)}",
    "/adapters/{name}/{version}/lineage": lambda n: f"/adapters/{_name(n)}/{_latest(n)}/lineage",
    "/runs": lambda n: f"/runs?page={n + 1}",
    "/runs?outcome=refused&page=": lambda n: f"/runs?outcome=refused&page={80 + n}",
    "/runs/{record}": lambda n: f"/runs/{digest('record', n, 7)[:12]}",
    "/failures": lambda n: "/failures",
    "/which": lambda n: f"/which?digest={manifest_of(n, 7).files[0].sha256}",
    "/health": lambda n: "/health",
    "/metrics": lambda n: "/metrics",
    "/api/v1/versions": lambda n: f"/api/v1/versions?name={_name(n)}",
    "/api/v1/versions/{name}/{version}": lambda n: f"/api/v1/versions/{_name(n)}/{_latest(n)}",
    "/api/v1/lineage": lambda n: f"/api/v1/lineage?of={_name(n)}",
    "/api/v1/drifts/{name}": lambda n: f"/api/v1/drifts/{_name(n)}",
    "/api/v1/runs": lambda n: f"/api/v1/runs?offset={50 * n}",
    "/api/v1/runs/{record}": lambda n: f"/api/v1/runs/{digest('record', n, 7)[:12]}",
    "/api/v1/failures": lambda n: "/api/v1/failures",
    "/api/v1/which": lambda n: f"/api/v1/which?digest={manifest_of(n, 7).digest}",
    "/api/v1/counts": lambda n: "/api/v1/counts",
    "/api/v1/health": lambda n: "/api/v1/health",
}


def _latest(number: int) -> str:
    """The digits of the version that `latest` of this name points to."""
    original = manifest_of(number % NAMES, _newest(number % NAMES)).digest
    return digest(original, 1 + number * 7 % (COPIES - 1))[:12]


def _newest(name: int) -> int:
    return next(night for night in reversed(range(NIGHTS)) if (name + night) % 20)


def ask(index: Index, question: Question) -> list[float]:
    """Milliseconds."""
    times = []
    for number in range(TRIES):
        start = time.perf_counter()
        question(index, number)
        times.append(1000 * (time.perf_counter() - start))
    return times


@contextmanager
def statements(database: Database) -> Iterator[list[tuple[str, Any]]]:
    """What is executed meanwhile."""
    seen: list[tuple[str, Any]] = []

    def see(_: Any, __: Any, statement: str, parameters: Any, *___: Any) -> None:
        if statement.startswith("SELECT"):
            seen.append((statement, parameters))

    event.listen(database._engine, "before_cursor_execute", see)
    try:
        yield seen
    finally:
        event.remove(database._engine, "before_cursor_execute", see)


def scanned(connection: Connection, statement: str, parameters: Any) -> set[str]:
    """The large tables of which it reads every row, without an index."""
    explain = "EXPLAIN QUERY PLAN " if connection.dialect.name == "sqlite" else "EXPLAIN "
    plan = "\n".join(str(tuple(row)[-1]) for row in connection.exec_driver_sql(explain + statement, parameters))
    if connection.dialect.name == "sqlite":
        return set(re.findall(r"SCAN (\w+)(?! USING)", plan)) & set(tables.metadata.tables)
    return set(re.findall(r"Seq Scan on (\w+)", plan))


def measure(url: str, title: str) -> bool:
    database, index = Database(url), Index(url)
    start = time.perf_counter()
    fill(database)
    total = index.counts().versions
    print(f"{title}: {total} versions of {index.counts().runs} runs, filled in {time.perf_counter() - start:.0f} s")
    good = True
    for name, question in QUESTIONS.items():
        times = ask(index, question)
        with statements(index._database) as seen:
            question(index, 1)
        with database.reading() as connection:
            without = set().union(*(scanned(connection, *each) for each in seen))
        median = statistics.median(times)
        good &= median < LIMIT_MS
        print(f"  {name:36} {median:7.1f} ms  slowest {max(times):7.1f}  without an index: {', '.join(without) or '-'}")
        sys.stdout.flush()
    return good and visit(index)


def visit(index: Index) -> bool:
    """The dashboard, by a client in the same process: what it takes to read is in the times."""
    good = True
    with (
        served(index, access_at("127.0.0.1", None, (), no_token=False)) as address,
        httpx.Client(base_url=address, timeout=60) as client,
    ):
        paths = client.get("/api/openapi.json").json()["paths"]
        assert set(paths) <= set(ADDRESSES), set(paths) - set(ADDRESSES)
        for name, path in ADDRESSES.items():
            times = []
            for number in range(TRIES):
                start = time.perf_counter()
                client.get(path(number)).raise_for_status()
                times.append(1000 * (time.perf_counter() - start))
            median = statistics.median(times)
            good &= median < LIMIT_MS
            print(f"  {name:36} {median:7.1f} ms  slowest {max(times):7.1f}")
    return good


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="adapterline-bench-") as folder:
        good = measure(f"sqlite:///{Path(folder) / 'index.sqlite'}", "SQLite")
    with postgresql() as address:
        good &= measure(f"postgresql://{address}", "PostgreSQL")
    if not good:
        raise SystemExit(f"A median is above {LIMIT_MS} ms.")


if __name__ == "__main__":
    main()
