"""record: what happened, in the record store and as Prefect artifacts."""

from __future__ import annotations

from prefect import task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.logging import get_run_logger

from adapterline.dashboard.links import version_url
from adapterline.lineage.index import remember, with_previous
from adapterline.lineage.records import open_records
from adapterline.package.card import snippets
from adapterline.prefect_events import told
from adapterline.settings import Settings
from adapterline.values import DriftFromLatest, LineageRecord, Manifest, slug
from tasks.policy import IN_PROCESS, TAGS, say

_MOST_LAYERS = 20
#: A thousand layers are for the record store, and no page.
_LAYERS = {"drift": {"components": {"__all__": {"modules"}}}}


@task(name="record", task_run_name="record", timeout_seconds=600, tags=TAGS, **IN_PROCESS)
def record(entry: LineageRecord) -> LineageRecord:
    """Appends the record, tells the index and OpenLineage, and for an exported adapter creates its three artifacts.

    An index or a catalogue that cannot be told fails nothing: the record is the truth, and both can be told again.
    """
    from adapterline.lineage.openlineage import emit

    entry = with_previous(entry)
    where = open_records(Settings().records).append(entry)
    if why := remember(lambda index: index.add(entry)):
        get_run_logger().warning("record: the lineage index was not written: %s", why)
    if why := emit(entry, Settings().openlineage):
        get_run_logger().warning("record: OpenLineage was not told: %s", why)
    if entry.manifest is not None and entry.outcome in ("exported", "validated"):
        _create_artifacts(entry)
    told(entry)
    say(f"record: {entry.outcome}, {where}")
    return entry


def _create_artifacts(entry: LineageRecord) -> None:
    """`-record`, `-places` and `-drift` are markdown, `-checks` is a table.

    One key holds one type, and shows its newest version alone: so all links are in one artifact. (Prefect's own link
    artifact is markdown with one link.)
    """
    manifest = entry.manifest
    assert manifest is not None
    key, report = slug(manifest.name), entry.report or manifest.validation
    create_markdown_artifact(
        _markdown(entry), key=f"{key}-record", description=f"{manifest.name} {manifest.digest[:12]}"
    )
    rows = [
        {
            "check": c.name,
            "component": c.component or "",
            "observed": str(c.observed),
            "limit": str(c.limit),
            "passed": c.passed,
        }
        for c in report.checks
    ]
    rows += [
        {"check": name, "component": "", "observed": why, "limit": "", "passed": "not run"}
        for name, why in report.not_run.items()
    ]
    create_table_artifact(rows, key=f"{key}-checks", description=f"{manifest.name}: {len(rows)} checks")
    create_markdown_artifact(_places(entry), key=f"{key}-places", description=f"where {manifest.name} is published")
    if entry.drift:
        create_markdown_artifact(
            _drift(entry.drift), key=f"{key}-drift", description=f"{manifest.name} beside {entry.drift.before[:12]}"
        )


def _markdown(entry: LineageRecord) -> str:
    manifest = entry.manifest
    assert manifest is not None
    where = entry.publications[0].load if entry.publications else "the exported folder"
    loading = "\n\n".join(f"```python\n{text}\n```" for text in snippets(manifest, where, None))
    return (
        f"# {manifest.name} `{manifest.digest[:12]}`\n\n"
        f"{manifest.family}, {', '.join(manifest.components)}, from `{manifest.source.digest[:12]}`\n\n"
        f"## Published\n\n{_places(entry)}\n\n"
        f"## Load\n\n{loading}\n\n"
        f"## Record\n\n```json\n{entry.model_dump_json(indent=2, exclude=_LAYERS)}\n```\n"
    )


def _drift(found: DriftFromLatest) -> str:
    lines = [f"# Beside `{found.before[:12]}`, which was `latest` at {found.destination}", ""]
    lines += [f"- **{why}**" for why in found.beyond]
    lines += [f"Not measured: {found.not_measured}"] if found.not_measured else []
    lines += ["", "| component | norm | before | ratio | cosine |", "|---|---|---|---|---|"]
    for name, each in found.components.items():
        ratio = f"{each.norm / each.before:.3f}" if each.before else "-"
        cosine = "-" if each.cosine is None else f"{each.cosine:.4f}"
        lines.append(f"| {name} | {each.norm:.6g} | {each.before:.6g} | {ratio} | {cosine} |")
    turned = [
        (layer.cosine, f"{name}.{path}", layer)
        for name, each in found.components.items()
        for path, layer in each.modules.items()
        if layer.cosine is not None
    ]
    lines += ["", "## Layers that turned the most", "", "| layer | norm | before | cosine |", "|---|---|---|---|"]
    lines += [
        f"| `{path}` | {layer.norm:.4g} | {layer.before:.4g} | {cosine:.4f} |"
        for cosine, path, layer in sorted(turned, key=lambda each: each[:2])[:_MOST_LAYERS]
    ]
    return "\n".join(lines)


def _in_dashboard(manifest: Manifest) -> str:
    url = version_url(Settings(), manifest.name, manifest.digest)
    return f"[Its page in the dashboard]({url})\n\n" if url else ""


def _places(entry: LineageRecord) -> str:
    assert entry.manifest is not None
    places = [f"- [{each.url}]({each.url}) (latest {each.latest})" for each in entry.publications]
    return _in_dashboard(entry.manifest) + "\n".join(places or ["- nowhere: a dry run"])
