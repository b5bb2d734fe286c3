"""The three kinds of destination, as a person looks at them: what is visible, is it whole, what is left over."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from adapterline.hub import Commit
from adapterline.seaweedfs import run_seaweedfs
from tests.hub_double.server import Hub, Token

NAME = "tiny"
State = dict[str, str]


class Place(Protocol):
    """A fresh place for one name."""

    uri: str
    environment: dict[str, str]

    def state(self) -> State:
        """Everything that is there, visible or not: where it lies -> sha256 of it, or what it says."""
        ...

    def read(self) -> list[str]:
        """Follows `latest` as a consumer does: what is wrong with what it finds; [] if it is whole, or nothing yet."""
        ...

    def versions(self) -> set[str]:
        """The sha12 of every version that is published."""
        ...

    def latest(self) -> dict[str, Any] | None:
        """What `latest` says."""
        ...


@dataclass(frozen=True)
class FolderPlace:
    """A folder."""

    uri: str
    environment: dict[str, str] = field(default_factory=dict)

    def state(self) -> State:
        root = Path(self.uri)
        files = sorted(path for path in root.rglob("*") if path.is_file())
        # The lock is the folder's own, and has nothing in it.
        return {
            str(p.relative_to(root)): _sha256(p.read_bytes()) for p in files if p.name != "lock" and p.stat().st_size
        }

    def read(self) -> list[str]:
        return _wrong(lambda path: _read_file(Path(self.uri, NAME, path)))

    def versions(self) -> set[str]:
        return {file.parent.name for file in Path(self.uri, NAME).glob("*/manifest.json")}

    def latest(self) -> dict[str, Any] | None:
        return _json(_read_file(Path(self.uri, NAME, "latest.json")))


@dataclass(frozen=True)
class S3Place:
    """A prefix in a bucket."""

    uri: str
    environment: dict[str, str]

    def _client(self) -> Any:
        import boto3

        given = self.environment
        session = boto3.session.Session(given["AWS_ACCESS_KEY_ID"], given["AWS_SECRET_ACCESS_KEY"])
        return session.client("s3", endpoint_url=given["AWS_ENDPOINT_URL_S3"], region_name="us-east-1")

    def _at(self) -> tuple[str, str]:
        bucket, _, prefix = self.uri.removeprefix("s3://").partition("/")
        return bucket, prefix

    def _get(self, client: Any, path: str) -> bytes | None:
        bucket, prefix = self._at()
        try:
            data: bytes = client.get_object(Bucket=bucket, Key=f"{prefix}/{NAME}/{path}")["Body"].read()
        except client.exceptions.NoSuchKey:
            return None
        return data

    def state(self) -> State:
        client, (bucket, prefix) = self._client(), self._at()
        found = {}
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/"):
            for row in page.get("Contents", ()):
                body = client.get_object(Bucket=bucket, Key=row["Key"])["Body"].read()
                found[row["Key"].removeprefix(f"{prefix}/")] = _sha256(body)
        for upload in client.list_multipart_uploads(Bucket=bucket).get("Uploads", ()):
            if upload["Key"].startswith(f"{prefix}/"):
                found[f"open upload of {upload['Key'].removeprefix(f'{prefix}/')}"] = "open"
        return found

    def read(self) -> list[str]:
        client = self._client()
        return _wrong(lambda path: self._get(client, path))

    def versions(self) -> set[str]:
        return {path.split("/")[1] for path in self.state() if path.endswith("/manifest.json")}

    def latest(self) -> dict[str, Any] | None:
        return _json(self._get(self._client(), "latest.json"))


@dataclass(frozen=True)
class HubPlace:
    """A repository."""

    uri: str
    environment: dict[str, str]

    def _api(self) -> Any:
        from huggingface_hub import HfApi

        return HfApi(endpoint=self.environment["HF_ENDPOINT"], token=self.environment["HF_TOKEN"])

    @property
    def _id(self) -> str:
        return self.uri.removeprefix("hf://")

    def _refs(self, api: Any) -> dict[str, str]:
        from huggingface_hub.errors import RepositoryNotFoundError

        try:
            refs = api.list_repo_refs(self._id)
        except RepositoryNotFoundError:
            return {}
        return {f"{kind} {ref.name}": ref.target_commit for kind in ("branch", "tag")
                for ref in (refs.branches if kind == "branch" else refs.tags)}  # fmt: skip

    def state(self) -> State:
        api, found = self._api(), {}
        for ref, oid in self._refs(api).items():
            commit = Commit(api, self._id, oid)
            for path in commit.files:
                if path != ".gitattributes":
                    found[f"{ref}: {path}"] = str(commit.sha256(path))
        return found

    def read(self) -> list[str]:
        api = self._api()
        refs = self._refs(api)
        if "branch main" not in refs:
            return []
        commit = Commit(api, self._id, refs["branch main"])
        if (latest := _json(commit.read("latest.json"))) is None:
            return []
        if (manifest := commit.read("manifest.json")) is None or _sha256(manifest) != latest["manifest_sha256"]:
            return ["main has a latest.json that is not of its manifest"]
        files = json.loads(manifest)["files"]
        return [f"main has another {file['path']}" for file in files if commit.sha256(file["path"]) != file["sha256"]]

    def versions(self) -> set[str]:
        return {ref.removeprefix("tag sha-") for ref in self._refs(self._api()) if ref.startswith("tag sha-")}

    def latest(self) -> dict[str, Any] | None:
        api = self._api()
        refs = self._refs(api)
        return _json(Commit(api, self._id, refs["branch main"]).read("latest.json")) if "branch main" in refs else None


@dataclass(frozen=True)
class Places:
    """Servers on this machine, and fresh places on them."""

    folder: Path
    hub: Hub
    s3: dict[str, str]

    def make(self, kind: str) -> Place:
        fresh = f"p{uuid.uuid4().hex[:10]}"
        if kind == "folder":
            return FolderPlace(str(self.folder / fresh))
        if kind == "s3":
            return S3Place(f"s3://faults/{fresh}", self.s3)
        return HubPlace(f"hf://acme/{fresh}", {"HF_ENDPOINT": self.hub.url, "HF_TOKEN": "hf_writer"})


@contextmanager
def places(folder: Path) -> Iterator[Places]:
    """A SeaweedFS, a Hub and a folder."""
    import boto3

    with ExitStack() as stack:
        stack.enter_context(_environment())
        server = stack.enter_context(run_seaweedfs(folder / "s3"))
        hub = stack.enter_context(Hub(folder / "hub", {"hf_writer": Token("alice", ("acme",))}).running())
        given = server.environment()
        session = boto3.session.Session(given["AWS_ACCESS_KEY_ID"], given["AWS_SECRET_ACCESS_KEY"])
        session.client("s3", endpoint_url=given["AWS_ENDPOINT_URL_S3"], region_name="us-east-1").create_bucket(
            Bucket="faults"
        )
        (folder / "places").mkdir()
        yield Places(folder / "places", hub, given)
        shutil.rmtree(folder / "places")


@contextmanager
def _environment() -> Iterator[None]:
    """In the block, this process and those that are started from it have no account but the places' own."""
    before = dict(os.environ)
    for variable in [each for each in os.environ if each.startswith(("AWS_", "HF_"))]:
        del os.environ[variable]
    os.environ |= {"HF_HUB_DISABLE_XET": "1", "AWS_CONFIG_FILE": os.devnull, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def poll(place: Place, stop: Any, answer: Any) -> None:
    """A reader's life: looks again and again until it is told to stop; sends how often, and what was wrong."""
    os.environ.update(place.environment)
    reads, wrong = 0, []
    while not stop.is_set():
        try:
            wrong += place.read()
        except Exception as error:  # a server that is slow or gone is no half publication
            if not isinstance(error, OSError) and "HTTP" not in type(error).__name__:
                wrong.append(f"{type(error).__name__}: {error}")
        reads += 1
        time.sleep(0.01)
    answer.send((reads, wrong))
    answer.close()


def _wrong(read: Any) -> list[str]:
    """`latest.json`, the manifest that it names, and every file of that."""
    if (latest := _json(read("latest.json"))) is None:
        return []
    version = latest["sha12"]
    manifest = read(f"{version}/manifest.json")
    if manifest is None or _sha256(manifest) != latest["manifest_sha256"]:
        return [f"latest names {version}, whose manifest is {'not there' if manifest is None else 'another'}"]
    found = {file["path"]: (file, read(f"{version}/{file['path']}")) for file in json.loads(manifest)["files"]}
    return [
        f"{version}/{path} is {'not there' if data is None else 'not what the manifest says'}"
        for path, (file, data) in found.items()
        if data is None or _sha256(data) != file["sha256"]
    ]


def _read_file(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _json(data: bytes | None) -> dict[str, Any] | None:
    return json.loads(data) if data else None


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
