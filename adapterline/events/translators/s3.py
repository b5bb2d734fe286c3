"""S3's "ObjectCreated", of a marker `_SUCCESS`: as a notification, and as EventBridge says it.

docs.aws.amazon.com/AmazonS3/latest/userguide/notification-content-structure.html: the key of a notification is quoted
as in a query, that of EventBridge (ev-events.html) is not. MinIO, Ceph and SeaweedFS send the former too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import unquote_plus

from adapterline.events.training_completed import TrainingCompleted
from adapterline.events.translators.base import Surroundings, completed, get, moment, needed
from adapterline.sweeps.runs import MARKER
from adapterline.values import TrainingRun

_SENDER = "S3"


def recognizes(payload: Any) -> bool:
    """Is it S3's?"""
    records = get(payload, "Records")
    return (
        get(payload, "Event") == "s3:TestEvent"
        or get(payload, "source") == "aws.s3"
        or (isinstance(records, list) and bool(records) and all(get(row, "s3") is not None for row in records))
    )


def translate(payload: Any, around: Surroundings) -> tuple[TrainingCompleted, ...]:
    """The runs in whose folder a marker was put; what S3 sends to try the way, and other objects, are none."""
    return tuple(_run(bucket, key, at, around) for bucket, key, at in _created(payload))


def _run(bucket: str, key: str, at: Any, around: Surroundings) -> TrainingCompleted:
    uri = f"s3://{bucket}/{key.removesuffix(MARKER).rstrip('/')}".rstrip("/")
    said = around.describe(uri)
    run = said.run or TrainingRun()
    if run.finished_at is None:
        run = run.model_copy(update={"finished_at": moment(at)})
    return completed(_SENDER, checkpoint=uri, name=said.name, base=said.base, run=run)


def _created(payload: Any) -> Iterator[tuple[str, str, Any]]:
    """Bucket, key and time of each marker."""
    if get(payload, "Event") == "s3:TestEvent":
        return
    if get(payload, "source") == "aws.s3":
        rows = [(payload, get(payload, "detail"), get(payload, "time"))]
        rows = [row for row in rows if get(payload, "detail-type") == "Object Created"]
        unquote: Callable[[str], str] = str
    else:
        records = needed(payload, "Records", sender=_SENDER, kind=list)
        names = [str(get(row, "eventName") or "").removeprefix("s3:") for row in records]
        rows = [
            (row, get(row, "s3"), get(row, "eventTime"))
            for row, name in zip(records, names, strict=True)
            if name.startswith("ObjectCreated:")
        ]
        unquote = unquote_plus
    for _, where, at in rows:
        key = unquote(needed(where, "object", "key", sender=_SENDER, kind=str))
        if key.rpartition("/")[2] == MARKER:
            yield needed(where, "bucket", "name", sender=_SENDER, kind=str), key, at
