"""Rendered images come from where they are published, with the digest of their record or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from adapterline.dashboard.access import Access
from adapterline.dashboard.images import read_image
from adapterline.errors import PublishError
from adapterline.lineage import Index
from adapterline.values import Package, RenderedImage
from tests.dashboard.seeded import Seeded
from tests.dashboard.served import served
from tests.destinations.test_images import publish, with_image
from tests.lineage.recorded import record_of
from tests.packages import make_package

if TYPE_CHECKING:
    from tests.hub_double.server import Hub


@pytest.fixture(params=["folder", "s3", "hub"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "published")
    if request.param == "s3":
        request.getfixturevalue("s3")
        return f"s3://{request.getfixturevalue('bucket')}/loras"
    request.getfixturevalue("hub")
    return "hf://acme"


@pytest.fixture
def package(tmp_path: Path) -> Package:
    return with_image(make_package(tmp_path / "package"), 200)


@pytest.fixture
def asked(tmp_path: Path, package: Package) -> Iterator[Callable[..., httpx.Response]]:
    """Publishes the package, and asks for its image."""
    index = Index(f"sqlite:///{tmp_path / 'i.sqlite'}")
    with served(index, Access()) as url:

        def ask(place: str) -> httpx.Response:
            index.add(record_of(package, publish(place, package), images=package.images))
            return httpx.get(f"{url}/adapters/{package.name}/{package.sha12}/{package.images[0].path}")

        yield ask


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_an_image_is_served_from_every_kind_of_place(
    place: str, package: Package, asked: Callable[..., httpx.Response]
) -> None:
    answer = asked(place)
    assert answer.status_code == 200
    assert answer.content == (package.folder / package.images[0].path).read_bytes()
    assert answer.headers["Content-Type"] == "image/png"
    assert answer.headers["Cache-Control"] == "private, max-age=31536000, immutable"


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_whatever_else_lies_there_is_not_served(
    place: str, package: Package, asked: Callable[..., httpx.Response]
) -> None:
    """Of the same length: the record says another digest than what was published has."""
    (rendered,) = package.images
    other = rendered.model_copy(update={"sha256": f"{rendered.sha256[:16]}{'0' * 48}"})
    assert asked(place).status_code == 200
    with pytest.raises(PublishError, match="has other bytes"):
        read_image(other, [_location(place, package)])


def _location(place: str, package: Package) -> str:
    if place.startswith("hf://"):
        return f"{place}/{package.name}@sha-{package.sha12}"
    return f"{place}/{package.name}/{package.sha12}"


def test_a_page_refuses_an_image_that_was_changed_or_is_gone(
    client: httpx.Client, seeded: Seeded, published: Path
) -> None:
    first, second = seeded.shown.images
    file = published / first.path
    whole = file.read_bytes()
    try:
        for there in (bytes([*whole[:-1], whole[-1] ^ 1]), whole + b"x", whole[:-1], b""):
            file.write_bytes(there)
            answer = client.get(f"{seeded.path}/{first.path}")
            assert answer.status_code == 502
            assert "other bytes" in answer.text
        file.unlink()
        assert client.get(f"{seeded.path}/{first.path}").status_code == 502
        assert client.get(f"{seeded.path}/{second.path}").status_code == 200
    finally:
        file.write_bytes(whole)
    assert client.get(f"{seeded.path}/{first.path}").content == whole


def test_where_one_place_has_other_bytes_the_next_is_asked(tmp_path: Path, package: Package) -> None:
    (image,) = package.images
    bad, good = tmp_path / "bad", tmp_path / "good"
    for folder, data in ((bad, b"no"), (good, (package.folder / image.path).read_bytes())):
        (folder / "images").mkdir(parents=True)
        (folder / image.path).write_bytes(data)
    assert read_image(image, [str(bad), str(tmp_path / "none"), str(good)]) == (good / image.path).read_bytes()
    with pytest.raises(PublishError, match="has other bytes") as caught:
        read_image(image, [str(bad), str(tmp_path / "none")])
    assert "has none" in str(caught.value)
    assert not caught.value.transient


@pytest.mark.parametrize("path", ["images/..%2F..%2Fmanifest.png", "images/0123456789abcdef.png", "manifest.json"])
def test_what_no_record_names_is_not_read(client: httpx.Client, seeded: Seeded, published: Path, path: str) -> None:
    (published / "manifest.png").write_bytes(b"private")
    try:
        answer = client.get(f"{seeded.path}/{path}")
    finally:
        (published / "manifest.png").unlink()
    assert answer.status_code == 404
    assert "private" not in answer.text


def test_a_record_that_names_another_path_than_an_images_has_no_image(tmp_path: Path, package: Package) -> None:
    (image,) = package.images
    secret = tmp_path / "secret.png"
    secret.write_bytes((package.folder / image.path).read_bytes())
    other: RenderedImage = image.model_copy(update={"path": "../../secret.png"})
    index = Index(f"sqlite:///{tmp_path / 'i.sqlite'}")
    index.add(record_of(package, publish(str(tmp_path / "published"), package), images=(other,)))
    with served(index, Access()) as url:
        version = f"{url}/adapters/{package.name}/{package.sha12}"
        assert "<img" not in httpx.get(version).text
        assert httpx.get(f"{version}/images/{image.sha256[:16]}.png").status_code == 404


def test_a_hub_that_does_not_answer_is_said_to(package: Package, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(PublishError) as caught:
        read_image(package.images[0], ["hf://acme/tiny@sha-0"])
    assert caught.value.transient
