"""What lies below `{prefix}/{name}/` in S3: versions, aliases, and what interrupted runs left; and how it goes.

`manifest.json` is the commit marker. It goes first, so that nobody ever sees a part of a version, and what has lost
its marker is an orphan like any other.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from adapterline.destinations.latest import MANIFEST_NAME, from_bytes
from adapterline.destinations.versions import version_of
from adapterline.digests import sha256_of_bytes
from adapterline.errors import PublishError
from adapterline.s3 import get_object, status_of
from adapterline.values import Latest, Manifest, Orphan, Version, is_alias

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_BATCH = 1000  # keys that DeleteObjects takes
_SHA12 = re.compile(r"[0-9a-f]{12}")
_PROBE = re.compile(r"\.probe-[0-9a-f]{32}")


@dataclass(frozen=True)
class Shelf:
    """The objects of one name; `root` is `{prefix}/{name}`. Its methods raise what boto3 raises, and PublishError."""

    client: S3Client
    bucket: str
    root: str

    def versions(self, destination: str, digits: str) -> Iterator[Version]:
        """The versions whose digest begins with `digits`, by their names."""
        for key, row in self._objects(digits[:12]).items():
            sha12, _, path = key.partition("/")
            if path != MANIFEST_NAME or not _SHA12.fullmatch(sha12):
                continue
            if (data := self._bytes(key)) is None:
                continue  # removed since it was listed
            location = f"s3://{self.bucket}/{self.root}/{sha12}"
            try:
                manifest = Manifest.model_validate_json(data)
            except ValueError as error:
                raise PublishError(
                    f"{location}/{MANIFEST_NAME} is not a manifest that this version of adapterline reads.",
                    expected="what adapterline published",
                    remedy="Use a later version, or move it away.",
                ) from error
            if manifest.digest.startswith(digits):
                yield version_of(
                    manifest,
                    sha256_of_bytes(data),
                    destination=destination,
                    location=location,
                    published_at=row["LastModified"],
                )

    def aliases(self) -> dict[str, Latest]:
        """Alias -> what it says. Always read anew."""
        found = {}
        for key in self._objects(delimiter="/"):
            alias = key.removesuffix(".json")
            if key != alias and is_alias(alias) and (data := self._bytes(key)) is not None:
                found[alias] = from_bytes(data, f"s3://{self.bucket}/{self.root}/{key}")
        return found

    # --- orphans ------------------------------------------------------------------------------------------------------

    def orphans(self) -> Iterator[Orphan]:
        """Files below a version's folder that has no manifest, the probes of checks, uploads in parts."""
        written: dict[str, list[datetime]] = defaultdict(list)
        staged, published = set[str](), set[str]()
        for upload in self._uploads():
            key = upload["Key"].removeprefix(f"{self.root}/")
            folder = key.partition("/")[0]
            if _SHA12.fullmatch(folder):
                written[folder].append(upload["Initiated"])
                yield self._orphan("upload", key, upload["Initiated"], upload["UploadId"])
        for key, row in self._objects().items():
            folder, _, path = key.partition("/")
            if _PROBE.fullmatch(key):
                yield self._orphan("probe", key, row["LastModified"])
            elif path and _SHA12.fullmatch(folder):
                written[folder].append(row["LastModified"])
                (published if path == MANIFEST_NAME else staged).add(folder)
        for folder in sorted(staged - published):
            yield self._orphan("staged", folder, max(written[folder]))

    def discard(self, orphan: Orphan) -> bool:
        """Deletes it; False if it was changed or published since it was listed."""
        key = orphan.place.removeprefix(f"s3://{self.bucket}/{self.root}/")
        if orphan.kind == "upload":
            return self._abort(key, orphan.token)
        if orphan.kind == "probe":
            self._delete([key])
            return True
        return self.sweep(key, not_after=orphan.changed_at)

    def sweep(self, sha12: str, *, not_after: datetime | None = None) -> bool:
        """Deletes what lies below a version's folder. False if it is published, or changed later than `not_after`.

        No request is atomic over several objects, so an exporter may publish just these files in the moment between
        the list and the deletion. Then its manifest is withdrawn: nothing must be published of which a part is gone.
        """
        rows = self._objects(f"{sha12}/")
        marker = f"{sha12}/{MANIFEST_NAME}"
        if marker in rows or (not_after and any(row["LastModified"] > not_after for row in rows.values())):
            return False
        self._delete(list(rows))
        there = self._objects(f"{sha12}/")
        if marker in there and self._is_whole(sha12, there):
            return False
        if marker in there:
            self._delete([marker])
        return True

    def _is_whole(self, sha12: str, rows: dict[str, Any]) -> bool:
        data = self._bytes(f"{sha12}/{MANIFEST_NAME}")
        files = Manifest.model_validate_json(data).files if data else ()
        return bool(files) and all(rows.get(f"{sha12}/{file.path}", {}).get("Size") == file.size for file in files)

    # --- objects ------------------------------------------------------------------------------------------------------

    def _objects(self, under: str = "", *, delimiter: str = "") -> dict[str, Any]:
        """Key below the root -> its row of the listing."""
        root = f"{self.root}/"
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=f"{root}{under}", Delimiter=delimiter
        )
        return {row["Key"].removeprefix(root): row for page in pages for row in page.get("Contents", ())}

    def _uploads(self) -> Iterator[Any]:
        pages = self.client.get_paginator("list_multipart_uploads").paginate(Bucket=self.bucket, Prefix=f"{self.root}/")
        return (upload for page in pages for upload in page.get("Uploads", ()))

    def _bytes(self, key: str) -> bytes | None:
        if (answer := get_object(self.client, self.bucket, f"{self.root}/{key}")) is None:
            return None
        with closing(answer["Body"]) as body:
            return body.read()

    def _delete(self, keys: Sequence[str]) -> None:
        for first in range(0, len(keys), _BATCH):
            batch = [{"Key": f"{self.root}/{key}"} for key in keys[first : first + _BATCH]]
            answer = self.client.delete_objects(Bucket=self.bucket, Delete={"Objects": batch, "Quiet": True})  # type: ignore[typeddict-item]
            for error in answer.get("Errors", ()):
                raise PublishError(
                    f"s3://{self.bucket}/{error.get('Key')} cannot be deleted: {error.get('Code')}.",
                    expected="s3:DeleteObject below the prefix, and no lock on the object",
                    remedy="Allow it, and run the same command again.",
                    transient=error.get("Code") in ("InternalError", "SlowDown", "ServiceUnavailable"),
                )

    def _abort(self, key: str, upload_id: str) -> bool:
        try:
            self.client.abort_multipart_upload(Bucket=self.bucket, Key=f"{self.root}/{key}", UploadId=upload_id)
        except self.client.exceptions.ClientError as error:
            if status_of(error) != 404:  # completed, or aborted by somebody else
                raise
            return False
        return True

    def _orphan(self, kind: str, key: str, changed_at: datetime, token: str = "") -> Orphan:
        place = f"s3://{self.bucket}/{self.root}/{key}"
        return Orphan.model_validate({"kind": kind, "place": place, "changed_at": changed_at, "token": token})
