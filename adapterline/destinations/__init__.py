"""Places where adapters are published: a folder, `s3://bucket/prefix`, `hf://org` or `hf://org/repo`."""

from __future__ import annotations

from adapterline.destinations.base import Destination
from adapterline.errors import UsageError
from adapterline.settings import Settings


def open_destination(uri: str, name: str) -> Destination:
    """The destination that `uri` names, for the adapter `name`. UsageError if there is no such kind."""
    scheme, separator, _ = uri.partition("://")
    if not separator or scheme == "file":
        from adapterline.destinations.folder import FolderDestination

        return FolderDestination(uri, name)
    if scheme == "s3":
        from adapterline.destinations.s3 import S3Destination
        from adapterline.destinations.s3_objects import Storage

        settings = Settings()
        storage = Storage(settings.s3_sse, settings.s3_kms_key, settings.s3_storage_class)
        return S3Destination(uri, name, storage=storage, read_back=settings.s3_read_back)
    if scheme == "hf":
        from adapterline.destinations.hub import HubDestination

        settings = Settings()
        return HubDestination(
            uri,
            name,
            private=settings.hub_private,
            create=settings.hub_create,
            branch=settings.hub_branch,
            pull_request=settings.hub_pr,
        )
    raise UsageError(
        f"Nothing can be published to {uri!r}: {scheme!r} is no known scheme.",
        expected="a folder, s3://bucket/prefix, hf://org or hf://org/repo",
    )


def address_of(uri: str) -> str:
    """`uri` with what the settings add to it: a branch of a repository, or a pull request, is a place of its own."""
    if not uri.startswith("hf://"):
        return uri
    settings = Settings()
    if settings.hub_pr:
        return f"{uri}#pull-request"
    return uri if settings.hub_branch == "main" else f"{uri}#{settings.hub_branch}"
