"""The work pools' templates are valid for the pinned workers, and give a GPU to those who ask for one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import docker.types
import pytest
from prefect.workers.process import ProcessJobConfiguration
from prefect_docker.worker import DockerWorker, DockerWorkerJobConfiguration
from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

from deployments.deploy import TEMPLATES, app, filled
from infra import base_job_templates

CONFIGURATIONS: Mapping[str, Any] = {
    "process": ProcessJobConfiguration,
    "docker": DockerWorkerJobConfiguration,
    "kubernetes": KubernetesWorkerJobConfiguration,
}
IMAGE = "registry.example/adapterline:0.1.0"


def variables_of(deployment: str) -> dict[str, Any]:
    """The job variables that this deployment gives its runs."""
    document = filled(
        ["s3://bucket/loras"], ["s3://runs"], [], "UTC", {"ADAPTERLINE_RECORDS": "s3://bucket/records"}, image=IMAGE
    )
    (found,) = [each for each in document["deployments"] if each["name"] == deployment]
    variables: dict[str, Any] = found["work_pool"]["job_variables"]
    return variables


def job(kind: str, deployment: str) -> Any:
    template = json.loads((TEMPLATES / f"{kind}.json").read_text())
    # With a client it would look up blocks on a server; there are none in these templates.
    configuration = CONFIGURATIONS[kind].from_template_and_values(template, variables_of(deployment), client=object())
    return asyncio.run(configuration)


@pytest.mark.parametrize("kind", CONFIGURATIONS)
def test_a_template_is_what_the_pinned_worker_begins_with_and_ours(kind: str) -> None:
    assert (TEMPLATES / f"{kind}.json").read_text() == base_job_templates.text(kind)


@pytest.mark.parametrize("deployment", ["on-completion", "nightly", "render"])
@pytest.mark.parametrize("kind", CONFIGURATIONS)
def test_a_run_of_each_deployment_gets_its_job(kind: str, deployment: str) -> None:
    environment = job(kind, deployment).env
    assert environment["ADAPTERLINE_ALLOWED_ROOTS"] == "s3://runs"
    assert environment["ADAPTERLINE_RECORDS"] == "s3://bucket/records"


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ([], "no --image"),
        (["--image", IMAGE], "no --records"),
        (["--image", IMAGE, "--records", "/var/records"], "--records /var/records"),
    ],
)
def test_containers_without_an_image_or_lasting_records_are_refused_before_anything_is_made(
    options: list[str], found: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")  # nobody
    with pytest.raises(SystemExit) as ended:
        app(["--to", "s3://b", "--root", "s3://r", "--pool-type", "kubernetes", *options])
    assert ended.value.code == 2
    assert f"--pool-type kubernetes with {found}: " in capsys.readouterr().err


def test_a_kubernetes_export_asks_for_no_gpu_and_a_render_for_one_on_a_node_that_has_it() -> None:
    def pod(deployment: str) -> Any:
        return job("kubernetes", deployment).job_manifest["spec"]["template"]["spec"]

    export, render = pod("on-completion"), pod("render")
    assert "nvidia.com/gpu" not in export["containers"][0]["resources"]["limits"]
    assert (export["nodeSelector"], export["tolerations"]) == ({}, [])
    assert render["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert render["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    assert [each["key"] for each in render["tolerations"]] == ["nvidia.com/gpu"]
    assert {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}} in render["volumes"]


def test_kubernetes_never_starts_a_run_twice() -> None:
    spec = job("kubernetes", "on-completion").job_manifest["spec"]
    assert (spec["backoffLimit"], spec["completions"], spec["parallelism"]) == (0, 1, 1)
    assert spec["podReplacementPolicy"] == "Failed"


def test_a_docker_export_has_no_gpu_and_a_render_one_as_the_docker_api_has_it() -> None:
    def host(deployment: str) -> Any:
        given = job("docker", deployment).container_create_kwargs
        return docker.types.HostConfig(version="1.44", device_requests=given["device_requests"])

    assert host("on-completion")["DeviceRequests"] == []
    (request,) = host("render")["DeviceRequests"]
    assert (request["Driver"], request["Count"], request["Capabilities"]) == ("nvidia", 1, [["gpu"]])


def test_a_docker_run_is_confined_and_its_settings_reach_the_docker_api() -> None:
    configuration = job("docker", "render")

    class Client:
        """What the worker asks of Docker here."""

        def version(self) -> dict[str, str]:
            return {"Version": "28.0.0"}

    settings = DockerWorker._build_container_settings(object.__new__(DockerWorker), Client(), configuration)
    assert settings["image"] == IMAGE
    assert (settings["cap_drop"], settings["privileged"]) == (["ALL"], False)
    assert settings["security_opt"] == ["no-new-privileges:true"]
    assert docker.types.HostConfig(version="1.44", shm_size=settings["shm_size"])["ShmSize"] == 8 << 30
