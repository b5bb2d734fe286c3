"""Eight whole exports at once, each a process of its own, to the same name on every kind of destination."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from huggingface_hub import HfApi

from tests.conftest import Trained
from tests.hub_double.server import Hub
from tests.hub_fixtures import WRITER

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

pytestmark = [pytest.mark.usefixtures("prefect_api", "records"), pytest.mark.slow]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("same", [True, False], ids=["of one checkpoint", "of eight checkpoints"])
def test_all_of_them_end_well_and_leave_each_version_once(
    trained: Trained, tmp_path: Path, s3: S3Client, bucket: str, hub: Hub, same: bool
) -> None:
    api = HfApi(endpoint=hub.url, token=WRITER)
    places = [str(tmp_path / "out"), f"s3://{bucket}/loras", "hf://acme/together"]
    command = [sys.executable, "-W", "ignore", "-m", "adapterline.cli", "export", str(trained.checkpoint), "--json"]
    command += ["--base", str(trained.base), "--name", "together", *(word for to in places for word in ("--to", to))]
    running = []
    for number in range(8):
        # Of one checkpoint with another --dtype or scale, another adapter is made.
        other = [] if same else _other(number)
        environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_TOKEN": WRITER, "OMP_NUM_THREADS": "1"}
        running.append(
            subprocess.Popen(
                [*command, *other, "--run-id", "7" if same else str(number)],
                cwd=Path(__file__).parents[2],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )  # fmt: skip
        )
    ended = [(*process.communicate(), process.returncode) for process in running]
    assert [code for _, _, code in ended] == [0] * 8, [error[-500:] for _, error, code in ended if code]
    records: list[dict[str, Any]] = [json.loads(out) for out, _, _ in ended]
    digests = {record["manifest"]["digest"][:12] for record in records}
    assert len(digests) == (1 if same else 8)
    assert {record["outcome"] for record in records} <= {"exported", "already-exported"}
    assert {folder.parent.name for folder in (tmp_path / "out").glob("together/*/manifest.json")} == digests
    keys = {row["Key"] for row in s3.list_objects_v2(Bucket=bucket, Prefix="loras/")["Contents"]}
    assert {key.split("/")[2] for key in keys if key.endswith("/manifest.json")} == digests
    refs = api.list_repo_refs("acme/together")
    assert {tag.name.removeprefix("sha-") for tag in refs.tags} == digests
    assert [branch.name for branch in refs.branches] == ["main"]
    latest = json.loads((tmp_path / "out/together/latest.json").read_bytes())
    there = json.loads(s3.get_object(Bucket=bucket, Key="loras/together/latest.json")["Body"].read())
    newest = "7"  # of equal times, the last run id
    assert latest["order"]["run_id"] == there["order"]["run_id"] == newest
    assert latest["sha12"] == there["sha12"]


def _other(number: int) -> list[str]:
    kinds = [[], ["--dtype", "float16"], ["--dtype", "bfloat16"], ["--scale", "header"]]
    only = [[], ["--components", "unet"]]
    return [*kinds[number % 4], *only[number // 4]]
