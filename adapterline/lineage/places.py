"""What lies at the places where adapters are published: their names, versions and aliases, whoever published them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapterline.errors import AdapterlineError, PublishError, from_os_error
from adapterline.values import NAME_PATTERN, Latest, Receipt, Version

_AT_ONCE = 8  # names that are read side by side


@dataclass(frozen=True)
class Shelf:
    """One name at one place. With an `error` it could not be read, and the rest is empty."""

    place: str
    name: str
    versions: tuple[Version, ...] = ()
    aliases: Mapping[str, Latest] | None = None
    error: AdapterlineError | None = None


def place_of(receipt: Receipt) -> str:
    """Where a receipt's version lies, without name and version: the same place, however its URI was written.

    A folder as an absolute path, `s3://bucket/prefix`, `hf://org/repository`.
    """
    if receipt.location.startswith("hf://"):
        return receipt.location.partition("@")[0]
    root = receipt.location.removesuffix("/").rsplit("/", 2)[0]
    return root or "/"


def place_named(uri: str, name: str) -> str:
    """The same of a destination's URI."""
    if uri.startswith("s3://"):
        return uri.rstrip("/")
    if uri.startswith("hf://"):
        repository = uri.removeprefix("hf://").rstrip("/")
        return f"hf://{repository}" if "/" in repository else f"hf://{repository}/{name}"
    return str(Path(uri.removeprefix("file://")).expanduser().absolute())


def is_absent(place: str) -> bool:
    """Is it a folder that this machine does not have? It may be another machine's, or not mounted."""
    return not place.startswith(("s3://", "hf://")) and not Path(place).is_dir()


def read_place(uri: str) -> Iterator[Shelf]:
    """Every name at a place: a folder, `s3://bucket/prefix`, `hf://org` or `hf://org/repository`.

    A name that cannot be read is told in its `Shelf`; PublishError where the place itself cannot.
    """
    if uri.startswith("s3://"):
        return _read_s3(uri)
    if uri.startswith("hf://"):
        return _read_hub(uri)
    return _read_folder(Path(place_named(uri, "")))


def _read_folder(root: Path) -> Iterator[Shelf]:
    from adapterline.destinations.folder_versions import aliases_in, versions_in

    def read(name: str) -> Shelf:
        try:
            versions = tuple(versions_in(root / name, str(root), ""))
            return Shelf(str(root), name, versions, aliases_in(root / name) if versions else {})
        except OSError as error:
            raise from_os_error(error, f"Reading {root / name}", otherwise=PublishError) from error

    try:
        names = sorted(path.name for path in root.iterdir() if NAME_PATTERN.fullmatch(path.name) and path.is_dir())
    except OSError as error:
        raise from_os_error(error, f"Reading {root}", otherwise=PublishError) from error
    yield from _read_all(str(root), names, read)


def _read_s3(uri: str) -> Iterator[Shelf]:
    from adapterline.destinations.s3_versions import Shelf as Objects
    from adapterline.s3 import make_client, parse_s3_uri, s3_errors

    bucket, prefix = parse_s3_uri(uri)
    place, under = f"s3://{bucket}/{prefix}".rstrip("/"), f"{prefix}/" if prefix else ""
    client = make_client()

    def read(name: str) -> Shelf:
        with s3_errors(f"Reading {place}/{name}", PublishError):
            objects = Objects(client, bucket, f"{under}{name}")
            versions = tuple(objects.versions(place, ""))
            return Shelf(place, name, versions, objects.aliases() if versions else {})

    with s3_errors(f"Reading {place}", PublishError):
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=under, Delimiter="/")
        found = [row["Prefix"] for page in pages for row in page.get("CommonPrefixes", ())]
    names = [each.removeprefix(under).rstrip("/") for each in found]
    yield from _read_all(place, [name for name in names if NAME_PATTERN.fullmatch(name)], read)


def _read_hub(uri: str) -> Iterator[Shelf]:
    from adapterline.destinations.hub import HubDestination
    from adapterline.hub import hub_errors, open_hub

    organization, _, repository = uri.removeprefix("hf://").rstrip("/").partition("/")
    repositories = [f"{organization}/{repository}"]
    if not repository:
        with hub_errors(f"Listing {uri}", PublishError):
            repositories = sorted(model.id for model in open_hub().list_models(author=organization))

    def read(repo_id: str) -> Shelf:
        # A repository has one name, and which it is its manifests say.
        destination = HubDestination(f"hf://{repo_id}", "any")
        versions = destination.versions()
        # What is on the branches of a repository without a version is none of ours, and may be no manifest.
        aliases = destination.aliases() if versions else {}
        name = versions[0].receipt.name if versions else repo_id.rpartition("/")[2]
        return Shelf(f"hf://{repo_id}", name, versions, aliases)

    for repo_id in repositories:
        yield from _read_all(f"hf://{repo_id}", [repo_id], read)


def _read_all(place: str, names: Iterable[str], read: Callable[[str], Shelf]) -> Iterator[Shelf]:
    def safely(name: str) -> Any:
        try:
            return read(name)
        except AdapterlineError as error:
            return Shelf(place, name, error=error)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        yield from pool.map(safely, names)
