"""Places where adapters are published: a folder, `s3://bucket/prefix`, `hf://org` or `hf://org/repo`."""

from __future__ import annotations

from adapterline.destinations.base import Destination
from adapterline.errors import UsageError


def open_destination(uri: str, name: str) -> Destination:
    """The destination that `uri` names, for the adapter `name`. UsageError if there is no such kind."""
    scheme, separator, _ = uri.partition("://")
    if not separator or scheme == "file":
        from adapterline.destinations.folder import FolderDestination

        return FolderDestination(uri, name)
    if scheme == "s3":
        from adapterline.destinations.s3 import S3Destination

        return S3Destination(uri, name)
    if scheme == "hf":
        from adapterline.destinations.hub import HubDestination
        from adapterline.settings import Settings

        return HubDestination(uri, name, private=Settings().hub_private)
    raise UsageError(
        f"Nothing can be published to {uri!r}: {scheme!r} is no known scheme.",
        expected="a folder, s3://bucket/prefix, hf://org or hf://org/repo",
    )
