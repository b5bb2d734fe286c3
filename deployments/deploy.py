"""Creates or updates the work pool, its queues and the deployments: `make deploy`, as often as you like.

    python -m deployments.deploy --to s3://bucket/loras --to hf://org --root s3://runs --name 'team-a-*'

What an event may not decide is decided here: the destinations, what may be read and what names may be published.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from cyclopts import App, Parameter

HERE = Path(__file__).parent
POOL = "adapterline"
TEMPLATES = HERE.parent / "infra" / "base-job-templates"

app = App(name="deploy", help=__doc__, help_format="plaintext")


@app.default
def deploy(
    *,
    to: Annotated[list[str], Parameter(negative="")],
    root: Annotated[list[str], Parameter(negative="")],
    name: Annotated[list[str] | None, Parameter(negative="")] = None,
    pool_type: Literal["process", "docker", "kubernetes"] = "process",
    image: str | None = None,
    records: str | None = None,
    concurrency: int = 2,
    timezone: str = "UTC",
) -> None:
    """Deploy to the Prefect server of PREFECT_API_URL.

    Parameters
    ----------
    to
        Where to publish, as often as needed: a folder, s3://bucket/prefix, hf://org.
    root
        What a checkpoint must lie under: a folder, s3://bucket/prefix or hf://org.
    name
        Patterns of the names that may be published. Default: any.
    pool_type
        What starts the runs.
    image
        The image of the runs, for docker and kubernetes; see infra/Dockerfile.
    records
        The record store of the runs: a folder or s3://bucket/prefix. For docker and kubernetes, whose runs leave no
        folder behind, it has to be on S3.
    concurrency
        How many exports run at once.
    timezone
        Of the nightly sweep, as of the IANA database.
    """
    if pool_type != "process":
        _check_containers(pool_type, image, records)
    document = filled(to, root, name or [], timezone, image=image, records=records)
    _create_pool(pool_type, concurrency)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "prefect.yaml")
        file.write_text(yaml.safe_dump(document, sort_keys=False))
        _prefect("deploy", "--all", "--prefect-file", str(file))


def filled(
    to: list[str],
    roots: list[str],
    names: list[str],
    timezone: str,
    *,
    image: str | None = None,
    records: str | None = None,
) -> dict[str, Any]:
    """The content of `prefect.yaml` with what is this installation's own."""
    document: dict[str, Any] = yaml.safe_load((HERE / "prefect.yaml").read_text())
    document.pop("definitions")  # aliases, by now resolved
    environment = {"ADAPTERLINE_ALLOWED_ROOTS": ",".join(roots), "ADAPTERLINE_ALLOWED_NAMES": ",".join(names)}
    if records:
        environment["ADAPTERLINE_RECORDS"] = records
    for deployment in document["deployments"]:
        parameters = deployment["parameters"]
        if "to" in parameters:
            parameters["to"] = to
        if "roots" in parameters:
            parameters["roots"] = roots
        for schedule in deployment.get("schedules", ()):
            schedule["timezone"] = timezone
        variables = deployment["work_pool"].setdefault("job_variables", {})
        variables["env"] = {**variables.get("env", {}), **environment}
        if image:
            variables["image"] = image
    return document


def _check_containers(kind: str, image: str | None, records: str | None) -> None:
    """A container has nothing but its image, and leaves nothing: without records every export would be made again."""
    if not image:
        found, remedy = "no --image", "build infra/Dockerfile and name its tag or digest."
    elif not (records or "").startswith("s3://"):
        found, remedy = f"--records {records}" if records else "no --records", "give --records s3://bucket/prefix."
    else:
        return
    print(f"error: --pool-type {kind} with {found}: {remedy}", file=sys.stderr)
    sys.exit(2)


def _create_pool(kind: str, concurrency: int) -> None:
    template = TEMPLATES / f"{kind}.json"
    given = ["--base-job-template", str(template)] if template.exists() else []
    _prefect("work-pool", "create", POOL, "--type", kind, "--overwrite", *given)
    _prefect("work-pool", "set-concurrency-limit", POOL, str(concurrency))
    existing = json.loads(_prefect("work-queue", "ls", "--pool", POOL, "--output", "json"))
    for queue, limit in QUEUES.items():
        if queue not in {each["name"] for each in existing}:
            _prefect("work-queue", "create", queue, "--pool", POOL)
        _prefect("work-queue", "set-concurrency-limit", queue, str(min(limit, concurrency)), "--pool", POOL)


#: How many runs of each at once, at most: exports need a processor, renders a GPU of their own, and there is one sweep.
QUEUES = {"exports": 64, "renders": 1, "sweeps": 1}


def _prefect(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        print(f"error: prefect {' '.join(arguments)} ended with {done.returncode}:", file=sys.stderr)
        print(done.stdout + done.stderr, file=sys.stderr)
        sys.exit(1)
    return done.stdout


if __name__ == "__main__":
    app()
