"""Images beside an adapter, at every kind of destination: with the card that shows them, gone with its version."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from adapterline.destinations import open_destination
from adapterline.package.card import CARD_NAME, images_shown
from adapterline.values import Package, PackagedFile, Publication, RenderedImage
from tests.hub_double.server import Hub
from tests.packages import make_package, order_of

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

#: What lies there: path -> bytes, of the newest version, and of the version of a package.
Look = Callable[[Package], dict[str, bytes]]


def with_image(package: Package, shade: int) -> Package:
    """The same, with an image of one shade and a card that shows it."""
    data = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(data, "PNG")
    digest = hashlib.sha256(data.getvalue()).hexdigest()
    image = RenderedImage(
        path=f"images/{digest[:16]}.png",
        size=len(data.getvalue()),
        sha256=digest,
        width=8,
        height=8,
        prompt="x",
        seed=0,
    )
    (package.folder / "images").mkdir(exist_ok=True)
    (package.folder / image.path).write_bytes(data.getvalue())
    before, mark, end = (package.folder / CARD_NAME).read_bytes().partition(b"\n<!-- /adapterline")
    card = before + f"\n## Images\n\n| ![image 1]({image.path}) |\n".encode() + mark + end
    (package.folder / CARD_NAME).write_bytes(card)
    files = [file for file in package.files if file.path != CARD_NAME]
    files.append(PackagedFile(path=CARD_NAME, size=len(card), sha256=hashlib.sha256(card).hexdigest()))
    files.append(PackagedFile(path=image.path, size=image.size, sha256=image.sha256))
    return replace(package, files=tuple(files), images=(image,))


@pytest.fixture(params=["folder", "s3", "hub"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Look]:
    """A destination's URI, and what lies there of a package's version."""
    if request.param == "folder":
        root = tmp_path / "published"
        return str(root), lambda package: {
            file.relative_to(root / package.name / package.sha12).as_posix(): file.read_bytes()
            for file in (root / package.name / package.sha12).rglob("*")
            if file.is_file()
        }
    if request.param == "s3":
        s3: S3Client = request.getfixturevalue("s3")
        bucket: str = request.getfixturevalue("bucket")

        def objects(package: Package) -> dict[str, bytes]:
            stem = f"loras/{package.name}/{package.sha12}/"
            keys = [item["Key"] for item in s3.list_objects_v2(Bucket=bucket, Prefix=stem)["Contents"]]
            return {key.removeprefix(stem): s3.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}

        return f"s3://{bucket}/loras", objects
    request.getfixturevalue("hub")
    return "hf://acme", lambda package: hub_files(package, f"sha-{package.sha12}")


def hub_files(package: Package, revision: str) -> dict[str, bytes]:
    from adapterline.hub import open_hub

    api = open_hub()
    paths = api.list_repo_files(f"acme/{package.name}", revision=revision)
    return {
        path: Path(api.hf_hub_download(f"acme/{package.name}", path, revision=revision)).read_bytes()
        for path in paths
        if path != ".gitattributes"
    }


def publish(uri: str, package: Package, day: int = 1) -> Publication:
    destination = open_destination(uri, package.name)
    return destination.release(package, destination.stage(package), order_of(day))


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_images_arrive_and_count_for_the_receipt(place: tuple[str, Look], tmp_path: Path) -> None:
    uri, look = place
    package = with_image(make_package(tmp_path / "package"), 200)
    publication = publish(uri, package)
    there = look(package)
    (image,) = package.images
    assert there[image.path] == (package.folder / image.path).read_bytes()
    assert images_shown(there[CARD_NAME]) == (image.path,)
    assert {file.path: file.sha256 for file in publication.receipt.files} == {
        file.path: file.sha256 for file in package.files
    }
    assert open_destination(uri, package.name).verify(publication)


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_the_same_without_images_takes_none_away(place: tuple[str, Look], tmp_path: Path) -> None:
    uri, look = place
    package = with_image(make_package(tmp_path / "package"), 200)
    publish(uri, package)
    before = look(package)
    publication = publish(uri, make_package(tmp_path / "plain"))
    assert look(package) == before
    assert {file.path for file in publication.receipt.files} == {file.path for file in package.files}
    assert open_destination(uri, package.name).verify(publication)


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_a_card_never_shows_an_image_that_is_not_there(place: tuple[str, Look], tmp_path: Path) -> None:
    # Two machines render one export, and their pixels differ.
    uri, look = place
    one, other = (with_image(make_package(tmp_path / str(shade)), shade) for shade in (100, 200))
    for package in (make_package(tmp_path / "plain"), one, other):
        publication = publish(uri, package)
        there = look(package)
        assert set(images_shown(there[CARD_NAME])) <= set(there)
        assert open_destination(uri, package.name).verify(publication)


def test_on_the_hub_the_images_of_an_older_version_go_from_main_and_stay_at_its_tag(hub: Hub, tmp_path: Path) -> None:
    old, new = (with_image(make_package(tmp_path / str(seed), seed), 100 + seed) for seed in (0, 1))
    publish("hf://acme", old, 1)
    publish("hf://acme", new, 2)
    images = {name: package.images[0].path for name, package in (("old", old), ("new", new))}
    main = hub_files(new, "main")
    assert images["new"] in main
    assert images["old"] not in main
    assert images["old"] in hub_files(old, f"sha-{old.sha12}")
