"""Checks what is in infra/, with tools of its own; no Docker daemon, cluster or cloud is needed: `make infra-check`.

`python -m infra.check [--cache FOLDER]`. docs/infra.md says what of it is checked how, and what is not.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from deployments.deploy import TEMPLATES, filled
from infra import grafana_dashboard
from infra.terraform_format import misplaced

HERE = Path(__file__).parent
REQUIREMENTS = HERE / "requirements-check.txt"
IMAGE = "registry.example/adapterline:0.1.0"


@dataclass(frozen=True)
class Tools:
    """The programs of the environment that `requirements-check.txt` describes."""

    folder: Path

    def run(self, program: str, *arguments: str) -> str:
        """What it printed, if it ended with another status than 0."""
        done = subprocess.run(
            [str(self.folder / "bin" / program), *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=HERE.parent,
        )
        return (
            (done.stdout + done.stderr).strip() or f"{program} ended with {done.returncode}" if done.returncode else ""
        )


class NotRunError(Exception):
    """What a check needs is not on this machine, and is not to be had from PyPI."""


def main() -> int:
    """The exit status: 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=HERE.parent / "build" / "infra", help="where the tools are kept")
    tools = _installed(parser.parse_args().cache)
    wrong = left_out = 0
    for name, check in CHECKS.items():
        try:
            found = "\n".join(check(tools))
        except NotRunError as error:
            print(f"{'not run':8} {name}: {error}", flush=True)
            left_out += 1
            continue
        print(f"{'wrong' if found else 'ok':8} {name}", flush=True)
        if found:
            print(found)
            wrong += 1
    print(f"{len(CHECKS) - wrong - left_out} passed, {wrong} failed, {left_out} not run")
    return int(wrong > 0)


def _installed(cache: Path) -> Tools:
    folder = cache.resolve() / hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:12]
    if not (folder / "installed").is_file():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        quiet = os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        command = [str(folder / "bin" / "pip"), "install", "--quiet", "--no-deps", "--requirement", str(REQUIREMENTS)]
        subprocess.run(command, check=True, env=quiet)
        (folder / "installed").touch()
    return Tools(folder)


def kubernetes_jobs(tools: Tools) -> Iterator[str]:
    """The Job of each deployment, made by the worker's own code, is one that the API takes, with no unknown field."""
    with tempfile.TemporaryDirectory() as folder:
        for name, job in jobs().items():
            file = Path(folder, f"{name}.json")
            file.write_text(json.dumps(job))
            if found := tools.run("python", "-c", _VALIDATE, str(file)):
                yield f"the Job of {name}: {found}"


def kubernetes_dashboard(tools: Tools) -> Iterator[str]:
    """Each object of the dashboard's manifest is one that the API takes, with no unknown field."""
    with tempfile.TemporaryDirectory() as folder:
        for document in yaml.safe_load_all((HERE / "helm" / "dashboard.yaml").read_text()):
            file = Path(folder, "object.json")
            file.write_text(json.dumps(document))
            if found := tools.run("python", "-c", _VALIDATE, str(file)):
                yield f"{document['kind']}: {found}"


_VALIDATE = """
import json, sys, kubernetes_validate
with open(sys.argv[1]) as file:
    document = json.load(file)
try:
    kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
except kubernetes_validate.ValidationError as error:
    sys.exit(f"{'.'.join(map(str, error.path))}: {error.message}")
"""


def jobs() -> dict[str, dict[str, Any]]:
    """Deployment -> the manifest of the Job that a Kubernetes worker makes for a run of it."""
    document = filled(
        ["s3://bucket/loras"], ["s3://runs"], [], "UTC", {"ADAPTERLINE_RECORDS": "s3://bucket/records"}, image=IMAGE
    )
    return {each["name"]: _job(each["work_pool"]["job_variables"]) for each in document["deployments"]}


def _job(variables: dict[str, Any]) -> dict[str, Any]:
    from prefect.client.schemas.objects import FlowRun
    from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

    template = json.loads((TEMPLATES / "kubernetes.json").read_text())
    # The client would look up blocks on a server; these templates have none.
    made = KubernetesWorkerJobConfiguration.from_template_and_values(template, variables, client=object())  # type: ignore[arg-type]
    configuration = asyncio.run(made)
    configuration.prepare_for_flow_run(FlowRun(id=uuid.UUID(int=1), flow_id=uuid.UUID(int=2), name="quiet-owl"))
    manifest: dict[str, Any] = configuration.job_manifest
    return manifest


def compose(tools: Tools) -> Iterator[str]:
    """It is what the Compose specification allows."""
    yield from _said(
        tools.run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(HERE / "compose.yaml"))
    )


def dockerfile(tools: Tools) -> Iterator[str]:
    """hadolint finds nothing."""
    yield from _said(tools.run("hadolint", str(HERE / "Dockerfile")))


def terraform(tools: Tools) -> Iterator[str]:
    """It is laid out as `terraform fmt` does, evaluates, and its rules of the bucket's life are those of the file."""
    for file in sorted((HERE / "terraform").glob("*.tf")):
        yield from (f"{file.name}:{line}" for line in misplaced(file.read_text()))
    lifecycle = HERE / "s3-lifecycle.json"
    yield from _said(tools.run("python", "-c", _EVALUATE, str(HERE / "terraform"), str(lifecycle)))


# HCL's own parser and evaluation, by way of tfparse; no provider is asked whether its arguments exist. An `id` is lost
# in it: it has ids of its own there.
_EVALUATE = """
import json, sys, tfparse
try:
    found = tfparse.load_from_path(sys.argv[1], stop_on_hcl_error=True)  # it leaves out a broken file otherwise
except tfparse.ParseError as error:
    sys.exit(str(error))
(lifecycle,) = found["aws_s3_bucket_lifecycle_configuration"]
made = [
    {
        "Status": rule["status"],
        "Filter": {"Prefix": rule["filter"]["prefix"]},
        **({"AbortIncompleteMultipartUpload": {"DaysAfterInitiation": block["days_after_initiation"]}}
           if (block := rule.get("abort_incomplete_multipart_upload")) else {}),
        **({"NoncurrentVersionExpiration": {"NoncurrentDays": block["noncurrent_days"]}}
           if (block := rule.get("noncurrent_version_expiration")) else {}),
        **({"Expiration": {"ExpiredObjectDeleteMarker": block["expired_object_delete_marker"]}}
           if (block := rule.get("expiration")) else {}),
    }
    for rule in lifecycle["rule"]
]
with open(sys.argv[2]) as file:
    wanted = [{key: value for key, value in rule.items() if key != "ID"} for rule in json.load(file)["Rules"]]
if made != wanted:
    sys.exit(f"the lifecycle comes to {json.dumps(made)}, and s3-lifecycle.json says {json.dumps(wanted)}")
"""


def terraform_itself(_: Tools) -> Iterator[str]:
    """Terraform's own layout and types of every argument, where there is a terraform that finds its provider."""
    if not (program := shutil.which("terraform")):
        raise NotRunError("there is no terraform on PATH")

    def said(*arguments: str) -> str:
        command = [program, f"-chdir={copy / 'terraform'}", *arguments, "-no-color"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return (done.stdout + done.stderr).strip() if done.returncode else ""

    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "infra")  # initializing writes
        shutil.copytree(HERE, copy, ignore=shutil.ignore_patterns(".terraform*", "*.tfstate*"))
        if found := said("fmt", "-check", "-diff"):
            yield found
            return
        if said("init", "-backend=false", "-input=false"):
            raise NotRunError("fmt changes nothing, and for validate the provider of versions.tf is not to be had")
        yield from _said(said("validate"))


def grafana(tools: Tools) -> Iterator[str]:
    """Every field of the dashboard is one of Grafana's own schema, and what it and the rules ask is PromQL."""
    rules = HERE / "prometheus" / "rules.yaml"
    yield from _said(tools.run("python", "-c", _KNOWN_TO_GRAFANA, str(grafana_dashboard.FILE)))
    asked = [*grafana_dashboard.expressions(), *(rule["expr"] for rule in rules_of(rules))]
    yield from _said(tools.run("python", "-c", _PARSE, *asked))


def rules_of(file: Path) -> list[dict[str, Any]]:
    """Every alert of a file of rules."""
    return [rule for group in yaml.safe_load(file.read_text())["groups"] for rule in group["rules"]]


_PARSE = """
import sys, promql_parser
for expression in sys.argv[1:]:
    try:
        promql_parser.parse(expression)
    except ValueError as error:
        sys.exit(f"{expression}: {error}")
"""

# What the schema does not know is not there any more once it was read and written; what it adds are defaults.
_KNOWN_TO_GRAFANA = """
import json, sys
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

def lost(given, read, at):
    if isinstance(given, dict) and isinstance(read, dict):
        for key, value in given.items():
            yield from lost(value, read[key], f"{at}.{key}") if key in read else [f"{at}.{key} is no field"]
    elif isinstance(given, list) and isinstance(read, list) and len(given) == len(read):
        for index, value in enumerate(given):
            yield from lost(value, read[index], f"{at}[{index}]")
    elif given != read:
        yield f"{at} is read as {read!r}"

register_default_plugins()
with open(sys.argv[1]) as file:
    given = json.load(file)
read = json.loads(JSONEncoder().encode(Dashboard.from_json(given)))
sys.exit("\\n".join(lost(given, read, "dashboard")) or 0)
"""


def prometheus(_: Tools) -> Iterator[str]:
    """Prometheus's own reading of rules, configuration and panels, and the tests of the rules, where promtool is."""
    if not (program := shutil.which("promtool")):
        raise NotRunError("there is no promtool on PATH (of Debian's package prometheus)")

    def said(*arguments: str) -> str:
        command = [program, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=HERE / "prometheus")
        return (done.stdout + done.stderr).strip() if done.returncode else ""

    yield from _said(said("check", "config", "--syntax-only", "prometheus.yaml"))
    yield from _said(said("check", "rules", "rules.yaml"))
    yield from _said(said("test", "rules", "rules.test.yaml"))
    with tempfile.TemporaryDirectory() as folder:
        panels = Path(folder, "panels.yaml")
        rules = [{"record": f"panel_{n}", "expr": each} for n, each in enumerate(grafana_dashboard.expressions())]
        panels.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
        yield from _said(said("check", "rules", str(panels)))


def checkov(tools: Tools) -> Iterator[str]:
    """checkov finds nothing that is not excused where it stands."""
    arguments = ["--framework", "terraform", "--skip-download", "--quiet", "--compact"]
    yield from _said(tools.run("checkov", "--directory", str(HERE / "terraform"), *arguments))


def helm(tools: Tools) -> Iterator[str]:
    """The values are YAML, name the pool that is deployed, and run as the image's user."""
    from infra.base_job_templates import USER

    worker = yaml.safe_load((HERE / "helm" / "values-worker.yaml").read_text())["worker"]
    document = filled(["s3://bucket"], ["s3://runs"], [], "UTC")
    if {worker["config"]["workPool"]} != {each["work_pool"]["name"] for each in document["deployments"]}:
        yield f"the worker polls {worker['config']['workPool']}"
    for context in ("podSecurityContext", "containerSecurityContext"):
        if worker[context]["runAsUser"] != USER:
            yield f"{context}: user {worker[context]['runAsUser']}, and the image has {USER}"


def _said(text: str) -> list[str]:
    return [text] if text else []


CHECKS: dict[str, Callable[[Tools], Iterator[str]]] = {
    "Kubernetes Jobs (kubernetes-validate, strict)": kubernetes_jobs,
    "compose.yaml (Compose specification)": compose,
    "Dockerfile (hadolint)": dockerfile,
    "terraform/ (layout, evaluation, lifecycle)": terraform,
    "terraform/ (terraform fmt and validate)": terraform_itself,
    "terraform/ (checkov)": checkov,
    "helm/values-worker.yaml (pool and user)": helm,
    "helm/dashboard.yaml (kubernetes-validate, strict)": kubernetes_dashboard,
    "grafana/ and prometheus/ (Grafana's schema, PromQL)": grafana,
    "prometheus/ (promtool: rules, their tests, configuration, panels)": prometheus,
}

if __name__ == "__main__":
    sys.exit(main())
