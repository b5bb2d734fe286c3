"""Each kind of destination, seen by a reader who knows the documented layout and nothing of the code."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from adapterline.destinations import open_destination
from adapterline.destinations.base import Destination
from adapterline.destinations.s3 import S3Destination
from adapterline.values import Manifest, Package, Publication
from tests.hub_double.server import Hub
from tests.packages import order_of

#: Every kind, for tests of what differs little between them: git makes the Hub the slow one.
EVERY_PLACE = pytest.mark.parametrize(
    "place", ["folder", "s3", pytest.param("hub", marks=pytest.mark.slow)], indirect=True
)


class Place(ABC):
    """One destination; the name is always `tiny`."""

    uri: str

    def open(self) -> Destination:
        return open_destination(self.uri, "tiny")

    def publish(self, package: Package, day: int = 1) -> Publication:
        place = self.open()
        return place.release(package, place.stage(package), order_of(day))

    @abstractmethod
    def everything(self) -> Mapping[str, Any]:
        """All that is there, in a form that differs when anything is written."""

    @abstractmethod
    def visible(self) -> dict[str, dict[str, bytes]]:
        """sha12 -> path -> bytes of what bears a commit marker."""

    @abstractmethod
    def alias(self, name: str) -> str | None:
        """The sha12 that it points to."""

    def assert_whole(self) -> None:
        """Every version has all of its files, and every alias points to one that is there."""
        for sha12, files in self.visible().items():
            manifest = Manifest.model_validate_json(files["manifest.json"])
            assert manifest.digest[:12] == sha12
            for file in manifest.files:
                assert len(files[file.path]) == file.size


def bytes_of(package: Package) -> dict[str, bytes]:
    files = {file.path: (package.folder / file.path).read_bytes() for file in package.files}
    return {**files, "manifest.json": package.manifest_bytes}


class FolderPlace(Place):
    def __init__(self, root: Path) -> None:
        self.uri, self.root = str(root), root

    def everything(self) -> Mapping[str, Any]:
        return {str(path.relative_to(self.root)): path.stat().st_mtime_ns for path in self.root.rglob("*")}

    def visible(self) -> dict[str, dict[str, bytes]]:
        folders = [manifest.parent for manifest in self.root.glob("tiny/*/manifest.json")]
        return {
            folder.name: {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*")}
            for folder in folders
        }

    def alias(self, name: str) -> str | None:
        path = self.root / "tiny" / f"{name}.json"
        return json.loads(path.read_bytes())["sha12"] if path.exists() else None


class S3Wire:
    """Between one client and the server: `act` gets the number of each request, from 1, and the request."""

    def __init__(self, client: Any) -> None:
        self.count = 0
        self.act: Callable[[int, Any], None] = lambda number, request: None
        client.meta.events.register("before-send.s3", self._before_send)

    def _before_send(self, request: Any, **_: Any) -> None:
        self.count += 1
        self.act(self.count, request)


class S3Place(Place):
    def __init__(self, client: Any, bucket: str) -> None:
        self.uri, self.client, self.bucket = f"s3://{bucket}/loras", client, bucket

    def open_wired(self) -> tuple[Destination, S3Wire]:
        """One with a client of its own, and what goes from that to the server."""
        from adapterline.s3 import make_client

        client = make_client()
        return S3Destination(self.uri, "tiny", client=client), S3Wire(client)

    def objects(self) -> dict[str, bytes]:
        rows = self.client.list_objects_v2(Bucket=self.bucket, Prefix="loras/tiny/").get("Contents", ())
        keys = [row["Key"] for row in rows]
        found = {key: self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read() for key in keys}
        return {key.removeprefix("loras/tiny/"): data for key, data in found.items()}

    def everything(self) -> Mapping[str, Any]:
        rows = self.client.list_objects_v2(Bucket=self.bucket).get("Contents", ())
        return {row["Key"]: (row["ETag"], row["LastModified"]) for row in rows}

    def visible(self) -> dict[str, dict[str, bytes]]:
        objects = self.objects()
        published = {key.partition("/")[0] for key in objects if key.endswith("/manifest.json")}
        return {
            sha12: {key.partition("/")[2]: data for key, data in objects.items() if key.startswith(f"{sha12}/")}
            for sha12 in published
        }

    def alias(self, name: str) -> str | None:
        data = self.objects().get(f"{name}.json")
        return json.loads(data)["sha12"] if data else None


class HubPlace(Place):
    def __init__(self, hub: Hub) -> None:
        self.uri, self.hub = "hf://acme", hub

    def everything(self) -> Mapping[str, Any]:
        repository = self.hub.repository("acme/tiny")
        return {**repository.refs("heads"), **repository.refs("tags")}

    def at(self, revision: str) -> dict[str, bytes]:
        files = dict(self.hub.content("acme/tiny", revision) or {})
        files.pop("latest.json", None)
        return files

    def visible(self) -> dict[str, dict[str, bytes]]:
        tags = self.hub.repository("acme/tiny").refs("tags")
        return {tag.removeprefix("sha-"): self.at(tag) for tag in tags}

    def alias(self, name: str) -> str | None:
        files = self.hub.content("acme/tiny", "main" if name == "latest" else name)
        if not files:
            return None
        manifest = Manifest.model_validate_json(files["manifest.json"])
        for file in manifest.files:  # a branch is a version of its own: all of it has to be there
            assert len(files[file.path]) == file.size
        if "latest.json" in files:
            assert json.loads(files["latest.json"])["digest"] == manifest.digest
        return manifest.digest[:12]
