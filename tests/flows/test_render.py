"""A request with prompts, whole, under a real Prefect server: images that are published, shown, and judged."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml
from huggingface_hub import CommitOperationAdd, HfApi
from PIL import Image
from safetensors.torch import load_file, save_file

from adapterline.digests import sha256_of_bytes
from adapterline.errors import UsageError, ValidationFailedError
from adapterline.values import PROVENANCE_PATH, WEIGHT_NAME, ExportOptions, LineageRecord, slug
from tests.conftest import Trained
from tests.hub_double.server import Hub
from tests.hub_fixtures import WRITER

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

pytestmark = pytest.mark.usefixtures("prefect_api")

OPTIONS = ExportOptions(render=("a <b>dog</b> | barks", "a cat"), render_steps=1)


@pytest.fixture
def export(records: Path, trained: Trained) -> Callable[..., LineageRecord]:
    """Runs the flow on the trained checkpoint."""
    from flows.export import export_adapter

    def run(*to: Path | str, base: Path | str = trained.base, **more: Any) -> LineageRecord:
        arguments = {"base": str(base), "name": "sks-dog", "to": tuple(map(str, to)), "options": OPTIONS} | more
        return export_adapter(str(trained.checkpoint), **arguments)

    return run


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def version(root: Path, record: LineageRecord) -> dict[str, bytes]:
    """The files of the published version."""
    assert record.manifest is not None
    return tree(root / "sks-dog" / record.manifest.digest[:12])


def artifacts(key: str) -> list[dict[str, Any]]:
    import httpx
    from prefect.settings import PREFECT_API_URL

    body = {"artifacts": {"key": {"any_": [key]}}, "sort": "CREATED_DESC"}
    answer = httpx.post(f"{PREFECT_API_URL.value()}/artifacts/filter", json=body, timeout=60)
    answer.raise_for_status()
    found: list[dict[str, Any]] = answer.json()
    return found


def pixels(png: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def opened(artifact: dict[str, Any]) -> Image.Image:
    head, _, data = str(artifact["data"]).partition(",")
    assert head == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_images_are_published_beside_the_adapter_and_shown_in_the_card(
    export: Callable[..., LineageRecord], tmp_path: Path, s3: S3Client, bucket: str
) -> None:
    record = export(tmp_path / "out", f"s3://{bucket}/loras")
    files = version(tmp_path / "out", record)
    images = {image.path: image for image in record.images}
    assert len(images) == 2
    named = {path for path in files if PROVENANCE_PATH.fullmatch(path)}
    assert len(named) == 1
    assert set(files) == {WEIGHT_NAME, "README.md", "manifest.json", *named, *images}
    for path, image in images.items():
        assert sha256_of_bytes(files[path]) == image.sha256
        assert path == f"images/{image.sha256[:16]}.png"
    for publication in record.publications:
        assert set(images) <= {file.path for file in publication.receipt.files}
    assert record.manifest is not None
    stem = f"loras/sks-dog/{record.manifest.digest[:12]}"
    assert {path: s3.get_object(Bucket=bucket, Key=f"{stem}/{path}")["Body"].read() for path in files} == files
    _, metadata, body = files["README.md"].decode().split("---\n", 2)
    assert yaml.safe_load(metadata)["widget"] == [
        {"text": image.prompt, "output": {"url": image.path}} for image in record.images
    ]
    first, second = record.images
    assert f"| ![image 1]({first.path}) | a &lt;b&gt;dog&lt;/b&gt; \\| barks | 0 |" in body
    assert f"| ![image 2]({second.path}) | a cat | 0 |" in body


@pytest.mark.slow
def test_the_manifest_is_the_one_without_images(export: Callable[..., LineageRecord], tmp_path: Path) -> None:
    # Images vary by machine, and so do forward passes; a manifest does not.
    with_images = version(tmp_path / "with", export(tmp_path / "with"))
    without = version(tmp_path / "without", export(tmp_path / "without", options=ExportOptions()))
    assert with_images["manifest.json"] == without["manifest.json"]
    assert with_images[WEIGHT_NAME] == without[WEIGHT_NAME]
    assert b"render" not in with_images["manifest.json"]
    assert b"forward" not in with_images["manifest.json"]
    assert b"## Images" not in without["README.md"]


def test_the_record_has_what_the_manifest_may_not_say(export: Callable[..., LineageRecord], tmp_path: Path) -> None:
    record = export(tmp_path / "out")
    assert record.report is not None
    assert record.report.passed
    names = [check.name for check in record.report.checks]
    assert "render: image 2, is not the base's" in names
    assert "forward: unloaded is the base" in names
    (table,) = artifacts(f"{slug('sks-dog')}-checks")[:1]
    assert {row["check"] for row in json.loads(table["data"])} == set(names)


def test_every_image_is_an_artifact(export: Callable[..., LineageRecord]) -> None:
    record = export(name="seen")
    assert record.outcome == "validated"
    for number, image in enumerate(record.images, 1):
        newest = artifacts(f"{slug('seen')}-render-{number}")[0]
        assert newest["type"] == "image"
        assert image.prompt in newest["description"]
        assert opened(newest).size == (image.width, image.height)
    assert artifacts(f"{slug('seen')}-render-3") == []


def test_a_black_image_stops_the_export_is_recorded_and_can_be_seen(
    export: Callable[..., LineageRecord], trained: Trained, records: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained.base, tmp_path / "base")
    vae = tmp_path / "base/vae/diffusion_pytorch_model.safetensors"
    tensors = load_file(vae)
    tensors["decoder.conv_out.weight"].zero_()
    tensors["decoder.conv_out.bias"].fill_(-5)
    save_file(tensors, vae, {"format": "pt"})
    with pytest.raises(ValidationFailedError, match="render: image 1, neither black nor of one colour") as caught:
        export(tmp_path / "out", base=tmp_path / "base", name="black")
    assert {check.name for check in caught.value.report.failures} == {
        f"render: image {number}, {what}"
        for number in (1, 2)
        for what in ("neither black nor of one colour", "is not the base's")
    }
    assert not (tmp_path / "out").exists()
    (stored,) = [LineageRecord.model_validate_json(file.read_bytes()) for file in records.rglob("*.json")]
    assert (stored.outcome, stored.exit_code) == ("failed", 4)
    assert stored.report is not None
    assert stored.report.failures == caught.value.report.failures
    dark = opened(artifacts(f"{slug('black')}-render-1")[0]).convert("L").crop((0, 0, 60, 64))
    assert dark.getextrema() == (0, 0)


def test_a_base_without_weights_is_refused_before_anything_is_computed(
    export: Callable[..., LineageRecord], records: Path
) -> None:
    with pytest.raises(UsageError, match="without weights"):
        export(base="sd15")
    scratch = records.parent / "scratch"
    assert not (scratch / "bundles").exists()


@pytest.mark.slow
def test_who_renders_nothing_takes_no_image_away(
    export: Callable[..., LineageRecord], tmp_path: Path, s3: S3Client, bucket: str
) -> None:
    to = (tmp_path / "out", f"s3://{bucket}/loras")
    first = export(*to)
    before = version(tmp_path / "out", first)
    keys = {item["Key"]: item["ETag"] for item in s3.list_objects_v2(Bucket=bucket)["Contents"]}
    plain = export(*to, options=ExportOptions())
    assert plain.outcome == "exported"
    assert version(tmp_path / "out", first) == before
    assert {item["Key"]: item["ETag"] for item in s3.list_objects_v2(Bucket=bucket)["Contents"]} == keys
    assert export(*to, options=ExportOptions()).outcome == "already-exported"
    assert export(*to).outcome == "already-exported"


@pytest.mark.slow
def test_images_of_a_later_run_leave_a_published_folder_as_it_is(
    export: Callable[..., LineageRecord], tmp_path: Path
) -> None:
    plain = export(tmp_path / "out", options=ExportOptions())
    before = version(tmp_path / "out", plain)
    later = export(tmp_path / "out")
    assert later.outcome == "exported"
    assert version(tmp_path / "out", plain) == before
    assert len(later.images) == 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_weights_of_a_hub_id_are_fetched_to_be_rendered(
    export: Callable[..., LineageRecord], hub: Hub, trained: Trained, tmp_path: Path
) -> None:
    api = HfApi(endpoint=hub.url, token=WRITER)
    api.create_repo("acme/tiny-sd", private=True)
    files = [file for file in sorted(trained.base.rglob("*")) if file.is_file()]
    operations = [CommitOperationAdd(str(file.relative_to(trained.base)), str(file)) for file in files]
    api.create_commit("acme/tiny-sd", operations, commit_message="upload")
    local = export(tmp_path / "local")
    # A process of its own: huggingface_hub reads its endpoint and its cache's place once.
    command = [sys.executable, "-m", "adapterline.cli", "export", str(trained.checkpoint), "--base", "acme/tiny-sd"]
    prompts = [word for prompt in OPTIONS.render for word in ("--render", prompt)]
    done = subprocess.run(
        [*command, "--name", "sks-dog", "--to", str(tmp_path / "remote"), "--render-steps", "1", "--json", *prompts],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": hub.url, "HF_TOKEN": WRITER},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    remote = LineageRecord.model_validate_json(done.stdout)
    for mine, theirs in zip(local.images, remote.images, strict=True):
        assert (mine.prompt, mine.seed) == (theirs.prompt, theirs.seed)
        here, there = (
            pixels(version(tmp_path / folder, record)[image.path])
            for folder, record, image in (("local", local, mine), ("remote", remote, theirs))
        )
        # Two processes share no memory layout, and so not the last bit of a float either: it may tip a rounding.
        assert here.shape == there.shape
        assert np.abs(here - there).max() <= 2


@pytest.mark.slow
def test_the_command_line_takes_several_prompts(
    records: Path, trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from adapterline.cli import app

    arguments = [
        "export",
        str(trained.checkpoint),
        "--base",
        str(trained.base),
        "--to",
        str(tmp_path / "out"),
        "--json",
    ]
    prompts = ["--render", "a dog", "--render", "a cat", "--render-steps", "1", "--render-seed", "7"]
    app([*arguments, *prompts, "--render-width", "32", "--render-height", "32"], result_action="return_value")
    record = LineageRecord.model_validate_json(capsys.readouterr().out)
    assert [(image.prompt, image.seed, image.height) for image in record.images] == [
        ("a dog", 7, 32),
        ("a cat", 7, 32),
    ]
