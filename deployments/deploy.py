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
from prefect.client.schemas.actions import DeploymentUpdate, WorkPoolCreate
from prefect.client.schemas.filters import WorkPoolFilter, WorkPoolFilterName
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
    image: str | None = None,
    records: str | None = None,
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
    image
        The image of the runs, for docker and kubernetes; see infra/Dockerfile.
    records
        The record store of the runs: a folder or s3://bucket/prefix. For docker and kubernetes, whose runs leave no
        folder behind, it has to be on S3.
    concurrency
        How many exports run at once, besides a sweep, a render and a restart.
    timezone
        Of the nightly sweep, as of the IANA database.
    notify
        A notification block, slack-webhook/team: who is told what goes wrong. Default: nobody, there are events alone.
    secret
        A variable of the runs, and the Secret block that has its value, HF_TOKEN=hub-token; as often as needed.
    env
        A variable of the runs and its value, ADAPTERLINE_RECORDS=s3://bucket/records; as often as needed.
    """
    if pool_type != "process":
        _check_containers(pool_type, image, records)
    variables, secrets = _variables(env or ()), _variables(secret or ())
    if records:
        variables["ADAPTERLINE_RECORDS"] = records
    document = filled(to, root, name or [], timezone, variables, image=image)
    with get_client(sync_client=True) as client:
        _create_pool(client, pool_type, concurrency)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "prefect.yaml")
        file.write_text(yaml.safe_dump(document, sort_keys=False))
        _prefect("deploy", "--all", "--prefect-file", str(file))
    with get_client(sync_client=True) as client:
        for each in document["deployments"] if secrets else ():
            _give_secrets(client, each, secrets)
        apply(client, automations(_block(client, notify) if notify else None))


def filled(
    to: list[str],
    roots: list[str],
    names: list[str],
    timezone: str,
    variables: dict[str, str] | None = None,
    *,
    image: str | None = None,
) -> dict[str, Any]:
    """The content of `prefect.yaml` with what is this installation's own."""
    document: dict[str, Any] = yaml.safe_load((HERE / "prefect.yaml").read_text())
    document.pop("definitions")  # aliases, by now resolved
    environment = {
        "ADAPTERLINE_ALLOWED_ROOTS": ",".join(roots),
        "ADAPTERLINE_ALLOWED_NAMES": ",".join(names),
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT),
        **(variables or {}),
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
        if image:
            job["image"] = image
    return document


def _give_secrets(client: SyncPrefectClient, document: dict[str, Any], secrets: dict[str, str]) -> None:
    """Refers to the blocks, for the worker to resolve. `prefect deploy` would put their values into the deployment."""
    flow = document["entrypoint"].rpartition(".")[2].replace("_", "-")
    deployment = client.read_deployment_by_name(f"{flow}/{document['name']}")
    references = {variable: f"{{{{ prefect.blocks.secret.{block} }}}}" for variable, block in secrets.items()}
    job = deployment.job_variables | {"env": {**deployment.job_variables.get("env", {}), **references}}
    client.update_deployment(deployment.id, DeploymentUpdate(job_variables=job))


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


def _create_pool(client: SyncPrefectClient, kind: str, concurrency: int) -> None:
    """The pool and its queues, created or updated. A pool of another type stays what it is: Prefect changes no type."""
    found = client.read_work_pools(work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[POOL])))
    if found and found[0].type != kind:
        print(
            f"error: the work pool {POOL} is there, of type {found[0].type}, and not {kind}. "
            f"Delete it (`prefect work-pool delete {POOL}`), and deploy again.",
            file=sys.stderr,
        )
        sys.exit(2)
    # A sweep waits for exports, and a crashed export for its restart: neither may take the place of what it waits for.
    pool = WorkPoolCreate(
        name=POOL,
        type=kind,
        base_job_template=json.loads((TEMPLATES / f"{kind}.json").read_text()),
        concurrency_limit=concurrency + len(QUEUES) - 1,
    )
    client.create_work_pool(pool, overwrite=True)
    there = {queue.name: queue.id for queue in client.read_work_queues(work_pool_name=POOL)}
    for queue, limit in QUEUES.items():
        if queue not in there:
            there[queue] = client.create_work_queue(queue, work_pool_name=POOL).id
        client.update_work_queue(there[queue], concurrency_limit=min(limit, concurrency))


#: How many runs of each at once, at most: exports need a processor, as many as are asked for; renders a GPU; there is
#: one sweep, or audit.
QUEUES = {"exports": 64, "renders": 1, "sweeps": 1, "restarts": 1}


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
