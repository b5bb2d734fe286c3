"""Writes base-job-templates/: `python -m infra.base_job_templates`, after one of the worker libraries moved.

Each is what the worker's own library begins with, and what a run of this project needs besides; so a new version of
the library brings its own new variables, and nobody edits JSON.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).with_name("base-job-templates")
#: The user of infra/Dockerfile, by number, since Kubernetes cannot see that a name is not root's.
USER = 10001
HOME = "/home/adapterline"

Template = dict[str, Any]


def process() -> Template:
    """Runs are processes of the worker, with what the worker's machine has."""
    from prefect.workers.process import ProcessWorker

    return ProcessWorker.get_default_base_job_template()


def docker() -> Template:
    """Runs are containers; `device_requests` gives one a GPU."""
    from prefect_docker.worker import DockerWorker

    template = DockerWorker.get_default_base_job_template()
    variables = template["variables"]["properties"]
    del template["variables"]["description"]
    # These would undo what is fixed below.
    for name in ("container_create_kwargs", "privileged"):
        del variables[name]
        del template["job_configuration"][name]
    variables["auto_remove"]["default"] = True
    variables["device_requests"] = {
        "title": "Device Requests",
        "description": "GPUs of the container, as the Docker API has it. Exports need none.",
        "type": "array",
        "items": {"type": "object"},
        "default": [],
        "examples": [[{"Driver": "nvidia", "Count": 1, "Capabilities": [["gpu"]]}]],
    }
    template["job_configuration"]["container_create_kwargs"] = {
        "device_requests": "{{ device_requests }}",
        "shm_size": "8g",  # a limit of /dev/shm; what is not used costs nothing
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "init": True,
    }
    template["variables"]["required"] = ["image"]  # Prefect's own image has no adapterline
    return template


def kubernetes() -> Template:
    """Runs are Jobs; `gpu`, `node_selector` and `tolerations` give one a GPU and a node that has it."""
    from prefect_kubernetes.worker import KubernetesWorker

    template = KubernetesWorker.get_default_base_job_template()
    del template["variables"]["description"]
    variables = template["variables"]["properties"]
    variables["finished_job_ttl"]["default"] = 3600
    # A node that has to be added, and an image of several GB.
    variables["pod_watch_timeout_seconds"]["default"] = 900
    variables["cpu_request"]["default"] = "1"
    variables["memory_request"]["default"] = "4Gi"
    variables["memory_limit"]["default"] = "16Gi"
    variables |= _KUBERNETES_VARIABLES
    template["variables"]["required"] = ["image"]

    job = template["job_configuration"]["job_manifest"]["spec"]
    pod = job["template"]["spec"]
    # The library has these two in the pod's spec, where the API knows none; its own check takes them here too.
    for field in ("completions", "parallelism"):
        job[field] = pod.pop(field)
    job["podReplacementPolicy"] = "Failed"  # never two pods of one run at once
    _confine(pod)
    pod["nodeSelector"] = "{{ node_selector }}"
    pod["tolerations"] = "{{ tolerations }}"
    container = pod["containers"][0]
    container["resources"]["limits"]["nvidia.com/gpu"] = "{{ gpu }}"
    container["envFrom"] = [{"secretRef": {"name": "{{ credentials_secret }}", "optional": True}}]
    return template


def _confine(pod: dict[str, Any]) -> None:
    """The `restricted` pod security standard, and disk only where a run writes."""
    pod["automountServiceAccountToken"] = False
    pod["securityContext"] = {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    pod["volumes"] = [
        {"name": "home", "emptyDir": {"sizeLimit": "{{ scratch_size }}"}},
        {"name": "tmp", "emptyDir": {"sizeLimit": "{{ scratch_size }}"}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "{{ shm_size }}"}},
    ]
    pod["containers"][0] |= {
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "volumeMounts": [
            {"name": "home", "mountPath": HOME},
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
    }


_KUBERNETES_VARIABLES: dict[str, Any] = {
    "gpu": {
        "title": "GPUs",
        "description": "How many. Exports need none; without a number the job asks for no such resource.",
        "type": "integer",
        "minimum": 1,
    },
    "node_selector": {
        "title": "Node Selector",
        "description": "Labels of the nodes that may run it.",
        "type": "object",
        "additionalProperties": {"type": "string"},
        "default": {},
    },
    "tolerations": {
        "title": "Tolerations",
        "description": "Taints of nodes that do not keep it away.",
        "type": "array",
        "items": {"type": "object"},
        "default": [],
    },
    "shm_size": {
        "title": "Shared Memory",
        "description": "Of /dev/shm; counts as the container's memory.",
        "type": "string",
        "default": "1Gi",
    },
    "scratch_size": {
        "title": "Scratch Size",
        "description": "Of the disk for what is fetched and exported, and of /tmp.",
        "type": "string",
        "default": "60Gi",
    },
    "credentials_secret": {
        "title": "Credentials Secret",
        "description": "A Secret of the namespace whose entries (AWS_*, HF_TOKEN) become environment variables.",
        "type": "string",
        "default": "adapterline-credentials",
    },
}

TEMPLATES = {"process": process, "docker": docker, "kubernetes": kubernetes}


def text(name: str) -> str:
    """The content of the file for this type of work pool."""
    return json.dumps(TEMPLATES[name](), indent=2) + "\n"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for each in TEMPLATES:
        (FOLDER / f"{each}.json").write_text(text(each))
        print(f"{FOLDER.name}/{each}.json")
