"""What is secret or private on the machine that exports, or in what a trainer left, reaches nobody."""

from __future__ import annotations

import base64
import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file

from adapterline.errors import AdapterlineError
from adapterline.values import ExportOptions, TrainingRun
from tests.conftest import Trained
from tests.flows.test_export import api, objects, tree
from tests.hub_double.server import Hub, Token
from tests.signing_fixtures import PASSWORD, Identity

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

pytestmark = [pytest.mark.usefixtures("prefect_api")]

HF_TOKEN = "hf_canaryOfTheHub"
#: Of the environment, of a trainer's header, configuration and states. They appear nowhere at all.
ENVIRONMENT = {"WANDB_API_KEY": "canary-of-wandb", "ADAPTERLINE_SIGNING_KEY_PASSWORD": PASSWORD}
HEADER = {
    "ss_sd_model_name": "/home/canary-of-a-user/models/base.safetensors",
    "ss_dataset_dirs": '{"/mnt/canary-of-a-dataset": {}}',
    "ss_tag_frequency": '{"d": {"canary of a tag": 1}}',
    "ss_training_comment": "on canary-of-a-host.internal",
    "sample_prompts": "canary of a prompt",
}
CONFIG = {"wandb": "canary-of-a-configuration", "hostname": "canary-of-another-host"}
IN_THE_CHECKPOINT = (
    *("canary-of-a-user", "canary of a tag", "canary-of-a-host", "canary of a prompt"),
    *CONFIG.values(),
)
#: Of paths that the person who exports gives, and of the data set that the trainer names. Their own records have them;
#: what is published has not.
PRIVATE = ("canary-of-a-folder", "canary-of-a-place", "canary-of-a-repository", "canary-of-a-dataset")


def kohya_file(trained: Trained, folder: Path) -> Path:
    torch.manual_seed(0)
    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    width = load_file(trained.checkpoint / "unet" / "adapter_model.safetensors")[
        "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight"
    ].shape[1]
    tensors = {f"{layer}.lora_down.weight": torch.randn(4, width), f"{layer}.lora_up.weight": torch.randn(width, 4)}
    save_file({**tensors, f"{layer}.alpha": torch.tensor(4.0)}, folder / "trained.safetensors", HEADER)
    return folder / "trained.safetensors"


def torch_file(trained: Trained, folder: Path) -> Path:
    """What `torch.save` keeps beside the tensors."""
    tensors = load_file(kohya_file(trained, folder))
    (folder / "trained.safetensors").unlink()
    torch.save({"state_dict": tensors, "args": CONFIG | HEADER}, folder / "trained.ckpt")
    return folder / "trained.ckpt"


def peft_folder(trained: Trained, folder: Path) -> Path:
    shutil.copytree(trained.checkpoint, folder / "trained")
    for file in (folder / "trained").rglob("adapter_config.json"):
        config = json.loads(file.read_bytes())
        file.write_text(json.dumps(config | {"base_model_name_or_path": "/home/canary-of-a-user/models/base"}))
    for file in (folder / "trained").rglob("adapter_model.safetensors"):
        save_file(load_file(file), file, {"format": "pt", **HEADER})
    for name in ("trainer_state.json", "config.json", "training_args.json"):
        (folder / "trained" / name).write_text(json.dumps(CONFIG | HEADER))
    return folder / "trained"


def on_the_hub(hub: Hub) -> dict[str, bytes]:
    """Every file at every branch and tag, and what the commits say."""
    found = {}
    client = HfApi(endpoint=hub.url, token=HF_TOKEN)
    refs = client.list_repo_refs("acme/published")
    for ref in (*refs.branches, *refs.tags):
        for path in client.list_repo_files("acme/published", revision=ref.name):
            local = client.hf_hub_download("acme/published", path, revision=ref.name, cache_dir=hub.root / "cache")
            found[f"{ref.name}:{path}"] = Path(local).read_bytes()
        commits = client.list_repo_commits("acme/published", revision=ref.name)
        found[ref.name] = repr(commits).encode()
    return found


def from_prefect(flow_run_id: str) -> dict[str, str]:
    """All that the server has of a run and its tasks: logs, artifacts, events. It waits for the last of them."""
    run = {"flow_runs": {"id": {"any_": [flow_run_id]}}}
    deadline = time.monotonic() + 60
    while True:
        logs = api("/logs/filter", {"logs": {"flow_run_id": {"any_": [flow_run_id]}}, "limit": 200})
        related = {"related": {"resources_in_roles": [[f"prefect.flow-run.{flow_run_id}", "flow-run"]]}}
        events = [
            *api("/events/filter", {"filter": {"resource": {"id": [f"prefect.flow-run.{flow_run_id}"]}}})["events"],
            *api("/events/filter", {"filter": related})["events"],
        ]
        ended = {event["event"] for event in events} & {"prefect.flow-run.Completed", "prefect.flow-run.Failed"}
        if ended and any("record: " in log["message"] for log in logs):
            break
        assert time.monotonic() < deadline, (logs, events)
        time.sleep(0.2)
    found = {
        "logs": logs,
        "events": events,
        "runs": api("/flow_runs/filter", run),
        "tasks": api("/task_runs/filter", run),
        "artifacts": api("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [flow_run_id]}}}),
    }
    return {name: json.dumps(value, ensure_ascii=False) for name, value in found.items()}


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
@pytest.mark.parametrize(
    "leave",
    [
        kohya_file,
        pytest.param(peft_folder, marks=pytest.mark.slow),
        pytest.param(torch_file, marks=pytest.mark.slow),
    ],
)
def test_no_secret_reaches_anything_and_no_private_place_what_is_published(
    leave: Callable[[Trained, Path], Path],
    trained: Trained,
    records: Path,
    tmp_path: Path,
    hub: Hub,
    s3: S3Client,
    bucket: str,
    identity: Identity,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from prefect.logging.handlers import APILogHandler

    from flows.export import export_adapter

    hub.tokens[HF_TOKEN] = Token("alice", ("acme",))
    for name, value in (ENVIRONMENT | {"HF_TOKEN": HF_TOKEN}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ADAPTERLINE_SIGNING_KEY", str(identity.encrypted))
    secrets = [HF_TOKEN, os.environ["AWS_SECRET_ACCESS_KEY"], *ENVIRONMENT.values(), *IN_THE_CHECKPOINT]
    folder = tmp_path / "canary-of-a-folder"
    folder.mkdir()
    checkpoint = leave(trained, folder)
    run = TrainingRun(
        run_id="run-7",
        dataset="/mnt/canary-of-a-place",
        code="git@canary-of-a-repository.internal:team/train.git",
    )
    to = (str(tmp_path / "out"), f"s3://{bucket}/loras", "hf://acme")
    options = ExportOptions(layouts=("diffusers", "kohya", "peft"), trigger=("sks",))

    caplog.set_level(logging.INFO)
    for logger in map(logging.getLogger, ("prefect.flow_runs", "prefect.task_runs")):
        # They do not always propagate, and have other levels.
        monkeypatch.setattr(logger, "handlers", [*logger.handlers, caplog.handler])
    record = export_adapter(str(checkpoint), base=str(trained.base), name="published", to=to, run=run, options=options)
    with pytest.raises(AdapterlineError):
        export_adapter(str(checkpoint), base=str(trained.base), name="other", to=(f"s3://{bucket}-not", "hf://acme"))
    APILogHandler().flush()

    published = {
        **{f"folder {path}": data for path, data in tree(tmp_path / "out").items()},
        **{f"s3 {path}": data for path, data in objects(s3, bucket).items()},
        **{f"hub {path}": data for path, data in on_the_hub(hub).items()},
    }
    signed = {path: data for path, data in published.items() if path.endswith(".sig")}
    assert len(signed) == 4  # on the Hub at main and at the tag
    published |= {
        f"{path}: what it signs": base64.b64decode(json.loads(data)["dsseEnvelope"]["payload"])
        for path, data in signed.items()
    }
    assert record.flow_run is not None
    said: dict[str, Any] = {f"record {path}": data.decode() for path, data in tree(records).items()}
    runs = [entry["flow_run"]["id"] for entry in map(json.loads, said.values())]
    assert len(runs) == 2
    for each in runs:
        said |= {f"prefect {name} {each}": text for name, text in from_prefect(each).items()}
    said["openlineage"] = (tmp_path / "openlineage.jsonl").read_text()
    said |= {"log": caplog.text, "output": "".join(capfd.readouterr())}
    assert "package: " in said["log"]
    assert "published" in said[f"prefect artifacts {record.flow_run.id}"]

    everywhere = published | {name: text.encode() for name, text in said.items()}
    assert [(name, secret) for name, data in everywhere.items() for secret in secrets if secret.encode() in data] == []
    private = [*PRIVATE, str(tmp_path), str(identity.encrypted)]
    assert [(name, place) for name, data in published.items() for place in private if place.encode() in data] == []
