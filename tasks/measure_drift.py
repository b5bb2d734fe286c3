"""measure_drift: how far is this export from what `latest` of its name is until now?"""

from __future__ import annotations

from pathlib import Path

from prefect import task
from prefect.logging import get_run_logger

from adapterline.errors import AdapterlineError
from adapterline.families.base import Base
from adapterline.lineage.drift import drift_from_latest, latest_of
from adapterline.settings import Settings
from adapterline.values import Adapter, DriftFromLatest, Manifest
from tasks.policy import IN_PROCESS, TAGS, say


@task(name="measure_drift", task_run_name="measure_drift", tags=TAGS, **IN_PROCESS)
def measure_drift(
    adapter: Adapter, manifest: Manifest, base: Base, to: tuple[str, ...], work: Path
) -> DriftFromLatest | None:
    """None if there is nothing before it. Measuring that fails is a warning: the proof does not hang on it."""
    try:
        latest = latest_of(manifest.name, to, manifest.digest)
    except AdapterlineError as error:
        get_run_logger().warning("measure_drift: what latest is could not be read: %s", error)
        return None
    if latest is None:
        return None
    found = drift_from_latest(adapter, latest, base, work, Settings())
    if found.not_measured:
        get_run_logger().warning("measure_drift: %s cannot be compared: %s", latest.sha12, found.not_measured)
    for name, component in found.components.items():
        cosine = "-" if component.cosine is None else f"{component.cosine:.3f}"
        say(f"measure_drift: {name} norm {component.norm:.3g}, {latest.sha12} {component.before:.3g}, cosine {cosine}")
    for why in found.beyond:
        get_run_logger().warning("measure_drift: far from %s: %s", latest.sha12, why)
    return found
