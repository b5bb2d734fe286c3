"""The order of exports of one name, and the `latest.json` that states it."""

from __future__ import annotations

from adapterline.errors import PublishError
from adapterline.values import Latest, Order, Package, Receipt, canonical_json

LATEST_NAME = "latest.json"
MANIFEST_NAME = "manifest.json"


def latest_of(package: Package, receipt: Receipt, order: Order) -> Latest:
    """What `latest.json` says once this package is the latest."""
    return Latest(
        name=package.name,
        digest=receipt.digest,
        sha12=receipt.digest[:12],
        manifest_sha256=receipt.manifest_sha256,
        order=order,
    )


def moves(current: Latest | None, wanted: Latest) -> bool:
    """Does `wanted` take the place of `current`? Of two with the same order, the one that came last."""
    return current is None or wanted.order.key() >= current.order.key()


def to_bytes(latest: Latest) -> bytes:
    """The bytes of `latest.json`."""
    return canonical_json(latest.model_dump(mode="json"))


def from_bytes(data: bytes, where: str) -> Latest:
    """Reads `latest.json`; PublishError if it is not ours."""
    try:
        return Latest.model_validate_json(data)
    except ValueError as error:
        raise PublishError(
            f"{where} is not a latest.json that adapterline wrote: {error}.",
            expected="the JSON of adapterline.values.Latest",
            remedy="Move it away, then run the export again: it is written anew.",
        ) from error
