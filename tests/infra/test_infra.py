"""What is in infra/ is pinned, has no secret in it, and sets only what there is to set."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from adapterline.settings import Settings
from deployments.deploy import QUEUES
from infra.base_job_templates import HOME, USER
from infra.terraform_format import misplaced

INFRA = Path(__file__).parents[2] / "infra"
COMPOSE = yaml.safe_load((INFRA / "compose.yaml").read_text())
DOCKERFILE = (INFRA / "Dockerfile").read_text()
VERSION = importlib.metadata.version("adapterline")
#: A tag that says a release, not a line of them: 17.6-bookworm, 4.48, 2026.8.18172642.
_RELEASE = re.compile(r"v?\d+\.\d+(\.\d+)*(-[\w.-]+)?")


def environments() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, service in COMPOSE["services"].items():
        yield name, service.get("environment", {})


def prefect_settings() -> set[str]:
    """Every variable that Prefect reads, prefect-redis' connection among them."""
    from prefect.settings.legacy import _get_settings_fields
    from prefect.settings.models.root import Settings as PrefectSettings

    redis = {f"PREFECT_REDIS_MESSAGING_{name}" for name in ("HOST", "PORT", "DB", "PASSWORD")}
    return set(_get_settings_fields(PrefectSettings)) | redis


def test_every_prefect_and_adapterline_variable_is_one_that_is_read() -> None:
    ours = {f"ADAPTERLINE_{name.upper()}" for name in Settings.model_fields}
    set_ = {name for _, environment in environments() for name in environment}
    set_ |= set(re.findall(r"\b((?:PREFECT|ADAPTERLINE)_[A-Z_]+)=", DOCKERFILE))
    assert {each for each in set_ if each.startswith(("PREFECT_", "ADAPTERLINE_"))} <= prefect_settings() | ours
    assert {"PREFECT_SERVER_DOCKET_URL", "PREFECT_REDIS_MESSAGING_HOST", "ADAPTERLINE_RECORDS"} <= set_


def test_every_image_is_a_release_and_ours_is_this_one() -> None:
    images = {service["image"] for service in COMPOSE["services"].values()}
    images |= set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE))
    for image in images:
        name, _, tag = image.partition("@")[0].rpartition(":")
        assert _RELEASE.fullmatch(tag), image
        if name.startswith("adapterline"):
            assert tag == VERSION, image
    values = yaml.safe_load((INFRA / "helm" / "values-worker.yaml").read_text())
    assert values["worker"]["image"]["prefectTag"] == VERSION
    assert f"image: registry.example/adapterline:{VERSION} " in (INFRA / "helm" / "dashboard.yaml").read_text()


def test_providers_charts_and_tools_are_pinned() -> None:
    versions = (INFRA / "terraform" / "versions.tf").read_text()
    assert re.findall(r'^ +version += "(.*)"', versions, re.MULTILINE) == ["5.100.0"]
    assert re.search(
        r"prefect/prefect-worker --version \d+\.\d+\.\d+ ", (INFRA / "helm/values-worker.yaml").read_text()
    )
    tools = [line for line in (INFRA / "requirements-check.txt").read_text().splitlines() if not line.startswith("#")]
    assert [line for line in tools if not re.fullmatch(r"[\w.-]+==(\d+!)?[\w.]+", line)] == []


def test_secrets_come_from_outside_and_have_no_defaults() -> None:
    for service, environment in environments():
        for name, value in environment.items():
            if re.search("PASSWORD|SECRET|AUTH_STRING|TOKEN|DOCKET|ACCESS_KEY", name):
                assert re.search(r"\$\{\w+:(\?[^}]*|-)\}", value), f"{service}: {name}"
    text = (INFRA / "compose.yaml").read_text()
    given = set(re.findall(r"\$\{(\w+)", text))
    example = dict(line.split("=", 1) for line in (INFRA / "env.example").read_text().splitlines() if "=" in line)
    assert given == set(example)
    assert set(example.values()) == {""}
    assert set(re.findall(r"\$\{(\w+):-", text)) == {"HF_TOKEN", "LISTEN_SECRET"}  # for what not everybody uses


def test_nothing_listens_beyond_this_machine_and_only_renders_have_a_gpu() -> None:
    services = COMPOSE["services"]
    ports = [port for service in services.values() for port in service.get("ports", ())]
    assert ports
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []
    assert {name for name, each in services.items() if "deploy" in each} == {"worker-gpu"}
    assert services["worker-gpu"]["profiles"] == ["gpu"]
    queues = {
        name: re.findall(r"--work-queue[ =](\w+)", " ".join(services[name]["command"]))
        for name in services
        if name.startswith("worker")
    }
    assert queues == {"worker": [queue for queue in QUEUES if queue != "renders"], "worker-gpu": ["renders"]}


def test_the_image_runs_as_the_user_that_the_templates_name_and_copies_only_what_is_let_in() -> None:
    assert set(re.findall(r"^USER (.*)", DOCKERFILE, re.MULTILINE)) == {f"{USER}:{USER}"}
    assert f"WORKDIR {HOME}" in DOCKERFILE
    ignored, *allowed = [
        line for line in (INFRA / "Dockerfile.dockerignore").read_text().splitlines() if not line.startswith("#")
    ]
    copied = {name for line in re.findall(r"^COPY (.*) \S+$", DOCKERFILE, re.MULTILINE) for name in line.split()}
    assert ignored == "*"
    assert {name.removeprefix("!") for name in allowed if name.startswith("!")} == copied
    assert all((INFRA.parent / name).exists() for name in copied)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a {\n  b = 1\n}\n", []),
        ("a {\n  b   = 1\n  ccc = [\n    2,\n  ]\n}\n", ["2: its = is not in column 5"]),
        ("a {\n  b = 1\n  ccc = 2\n}\n", ["2: its = is not in column 7"]),
        ("a {\n b = 1\n}\n", ["2: not indented by 2"]),
        ("a {\n  b = 1 \n}\n", ["2: a tab, or space at the end"]),
        ("a {\n  b =  1\n}\n", ["2: its = is not in column 5"]),
        ("a {}", ["the end: not one newline"]),
    ],
)
def test_what_terraform_fmt_would_change_is_found(text: str, found: list[str]) -> None:
    assert list(misplaced(text)) == found


def test_the_terraform_files_are_laid_out_like_that() -> None:
    files = sorted((INFRA / "terraform").glob("*.tf"))
    assert files
    assert {file.name: list(misplaced(file.read_text())) for file in files} == {file.name: [] for file in files}
