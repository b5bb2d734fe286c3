"""Several layouts in one publication, on every kind of destination, and one that is added later."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapterline.destinations import open_destination
from adapterline.destinations.base import Destination
from adapterline.errors import PublishError
from adapterline.package import make_package
from adapterline.values import WEIGHT_NAME, ExportOptions, Manifest, Package
from tests.bases import peft_adapter
from tests.hub_double.server import Hub
from tests.hub_fixtures import WRITER
from tests.line import run_line
from tests.packages import make_package as make_small_package
from tests.packages import order_of
from tests.publishing import manifest_of
from tests.s3_wire import objects

NAME = "adapter"  # as `run_line` names the files
ALL = ("diffusers", "kohya", "peft")
Look = Callable[[str], dict[str, bytes]]

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub 2.4.0


@pytest.fixture(scope="module")
def packages(sd15_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Package, Package]:
    """Of one checkpoint: diffusers' layout alone, then all three."""
    folder = tmp_path_factory.mktemp("layouts")
    peft_adapter(sd15_base, "unet", folder / "checkpoint/unet", 4, 6, ["to_q", "to_v"])
    made = []
    for layouts in (("diffusers",), ALL):
        options = ExportOptions(layouts=layouts)
        exported = run_line(folder / "checkpoint", sd15_base, folder / f"work-{len(layouts)}", options)
        work = folder / f"package-{len(layouts)}"
        work.mkdir()
        made.append(make_package(manifest_of(exported, NAME), exported.folder, work))
    return made[0], made[1]


@pytest.fixture(params=["folder", "s3", "hub"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Destination, Look]:
    """A destination, and what lies there of a version."""
    if request.param == "folder":
        root = tmp_path / "published"

        def look(sha12: str) -> dict[str, bytes]:
            folder = root / NAME / sha12
            return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

        return open_destination(str(root), NAME), look
    if request.param == "s3":
        s3, bucket = request.getfixturevalue("s3"), request.getfixturevalue("bucket")

        def look(sha12: str) -> dict[str, bytes]:
            prefix = f"loras/{NAME}/{sha12}/"
            return {key.removeprefix(prefix): data for key, data in objects(s3, bucket, prefix).items()}

        return open_destination(f"s3://{bucket}/loras", NAME), look
    hub: Hub = request.getfixturevalue("hub")

    def look(sha12: str) -> dict[str, bytes]:
        found = hub.content(f"acme/{NAME}", f"sha-{sha12}")
        assert found is not None
        return {path: data for path, data in found.items() if path != "latest.json"}

    return open_destination("hf://acme", NAME), look


def publish(destination: Destination, package: Package, day: int) -> Any:
    return destination.release(package, destination.stage(package), order_of(day))


def test_every_layout_lies_there_with_its_digest_in_the_manifest(
    place: tuple[Destination, Look], packages: tuple[Package, Package]
) -> None:
    destination, look = place
    package = packages[1]
    publication = publish(destination, package, 1)
    there = look(package.sha12)
    manifest = Manifest.model_validate_json(there["manifest.json"])
    assert {file.layout for file in manifest.files} == set(ALL)
    assert {file.path for file in manifest.files} >= {WEIGHT_NAME, f"kohya/{NAME}.safetensors"}
    assert there.keys() == {file.path for file in package.files} | {"manifest.json"}
    for file in manifest.files:
        assert hashlib.sha256(there[file.path]).hexdigest() == file.sha256
    assert {file.path for file in publication.receipt.files} == {file.path for file in package.files}
    assert destination.verify(publication)


def test_a_layout_that_is_added_later_is_a_bundle_beside_the_old_one(
    place: tuple[Destination, Look], packages: tuple[Package, Package]
) -> None:
    destination, look = place
    alone, together = packages
    assert alone.sha12 != together.sha12
    first = publish(destination, alone, 1)
    before = look(alone.sha12)
    second = publish(destination, together, 1)
    assert second.latest == "moved"  # of the same training, the one that came last
    assert look(alone.sha12) == before
    assert look(together.sha12)[WEIGHT_NAME] == before[WEIGHT_NAME]
    assert destination.verify(first)
    assert destination.verify(second)


@pytest.mark.slow
def test_the_name_of_a_repository_is_enough_to_load_it_whatever_layouts_it_has(
    hub: Hub, sd15_base: Path, packages: tuple[Package, Package], tmp_path: Path
) -> None:
    package = packages[1]
    publish(open_destination("hf://acme", NAME), package, 1)
    code = """
import sys, warnings
warnings.simplefilter("ignore")
import diffusers, torch
base, repository, file = sys.argv[1:]
found = []
for where, more in ((repository, {}), (file, {})):
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(base)
    pipe.load_lora_weights(where, **more)
    found.append({k: v for k, v in pipe.unet.state_dict().items() if "lora" in k})
one, other = found
assert one and one.keys() == other.keys()
print(all(torch.equal(one[k], other[k]) for k in one))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(sd15_base), f"acme/{NAME}", str(package.folder / WEIGHT_NAME)],
        env=os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": hub.url, "HF_TOKEN": WRITER},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "True", done.stderr[-2000:]
    assert "more than one weights file" not in done.stderr
    fetched = [line for line in hub.requests if line.startswith("GET /lfs/")]
    assert fetched == [f"GET /lfs/{package.files[0].sha256}"], "only the file for diffusers"
    assert package.files[0].path == WEIGHT_NAME


def test_a_name_that_would_hide_the_usual_file_from_diffusers_is_refused(hub: Hub, tmp_path: Path) -> None:
    name = "my_pytorch_lora_weights"
    package = make_small_package(tmp_path, name=name, configs={f"kohya/{name}.safetensors": b"x" * 64})
    with pytest.raises(PublishError, match="would load") as caught:
        open_destination("hf://acme", name).stage(package)
    assert not caught.value.transient
    assert caught.value.remedy
    assert hub.writes == []
