"""Creates or updates the work pool, its queues and the deployments: `make deploy`, as often as you like.

    python -m deployments.deploy --to s3://bucket/loras --to hf://org --root s3://runs --name 'team-a-*'

What an event may not decide is decided here: the destinations, what may be read and what names may be published.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

import yaml
from cyclopts import App, Parameter
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import ObjectNotFound

from deployments.automations import HEARTBEAT, apply, automations

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
    concurrency: int = 2,
    timezone: str = "UTC",
    notify: str | None = None,
    secret: Annotated[list[str] | None, Parameter(negative="")] = None,
    env: Annotated[list[str] | None, Parameter(negative="")] = None,
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
    concurrency
        How many exports run at once.
    timezone
        Of the nightly sweep, as of the IANA database.
    notify
        A notification block, slack-webhook/team: who is told what goes wrong. Default: nobody, there are events alone.
    secret
        A variable of the runs, and the Secret block that has its value, HF_TOKEN=hub-token; as often as needed.
    env
        A variable of the runs and its value, ADAPTERLINE_RECORDS=s3://bucket/records; as often as needed.
    """
    variables = _variables(env or ()) | {
        variable: f"{{{{ prefect.blocks.secret.{block} }}}}" for variable, block in _variables(secret or ()).items()
    }
    document = filled(to, root, name or [], timezone, variables)
    _create_pool(pool_type, concurrency)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "prefect.yaml")
        file.write_text(yaml.safe_dump(document, sort_keys=False))
        _prefect("deploy", "--all", "--prefect-file", str(file))
    with get_client(sync_client=True) as client:
        apply(client, automations(_block(client, notify) if notify else None))


def filled(
    to: list[str], roots: list[str], names: list[str], timezone: str, variables: dict[str, str]
) -> dict[str, Any]:
    """The content of `prefect.yaml` with what is this installation's own."""
    document: dict[str, Any] = yaml.safe_load((HERE / "prefect.yaml").read_text())
    document.pop("definitions")  # aliases, by now resolved
    environment = {
        "ADAPTERLINE_ALLOWED_ROOTS": ",".join(roots),
        "ADAPTERLINE_ALLOWED_NAMES": ",".join(names),
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT),
        **variables,
    }
    for deployment in document["deployments"]:
        parameters = deployment.setdefault("parameters", {})
        if "to" in parameters:
            parameters["to"] = to
        if "roots" in parameters:
            parameters["roots"] = roots
        for schedule in deployment.get("schedules", ()):
            schedule["timezone"] = timezone
        job = deployment["work_pool"].setdefault("job_variables", {})
        job["env"] = {**job.get("env", {}), **environment}
    return document


def _variables(given: Iterable[str]) -> dict[str, str]:
    found = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not equals or not name.isidentifier():
            print(f"error: {each!r} is no variable with a value, NAME=value.", file=sys.stderr)
            sys.exit(2)
        found[name] = value
    return found


def _block(client: SyncPrefectClient, slug: str) -> UUID:
    kind, _, name = slug.partition("/")
    try:
        return client.read_block_document_by_name(name, kind).id
    except ObjectNotFound:
        print(
            f"error: There is no block {slug!r}. Expected type/name, as `prefect block ls` shows it.", file=sys.stderr
        )
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
