"""A part of a multipart upload is hashed once, and hashed and sent from where the page cache has it.

botocore hashes every part a second time to sign it: always over plain HTTP, and over TLS where it did not compute the
checksum itself. Both are the SHA256 of the same bytes, so what goes over the wire is the same, byte for byte. Each
time, boto3 copies the part out of the page cache.
"""

from __future__ import annotations

import base64
import hashlib
import mmap
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from botocore.auth import AUTH_TYPE_MAPS, S3SigV4Auth
from s3transfer.utils import OSUtils

from adapterline.s3 import CHUNK

if TYPE_CHECKING:
    from botocore.awsrequest import AWSRequest
    from mypy_boto3_s3 import S3Client

_SIGNATURE = "adapterline-s3v4"


def hash_parts_once(client: S3Client) -> None:
    """From now on each part that `client` uploads bears its `ChecksumSHA256`, and is read once for it."""
    AUTH_TYPE_MAPS[_SIGNATURE] = _SignedByChecksum
    client.meta.events.register("provide-client-params.s3.UploadPart", _sum)
    client.meta.events.register_first("choose-signer.s3.UploadPart", _choose)  # type: ignore[arg-type]


class _SignedByChecksum(S3SigV4Auth):
    """AWS Signature Version 4 as botocore makes it for S3.

    https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html: the payload's hash is its SHA256 in
    hexadecimal digits; https://docs.aws.amazon.com/AmazonS3/latest/API/API_UploadPart.html: the checksum's is base64.
    """

    def payload(self, request: AWSRequest) -> str:
        checksum = request.headers.get("x-amz-checksum-sha256")
        if checksum is None or not self._should_sha256_sign_payload(request):  # type: ignore[attr-defined]
            return super().payload(request)
        return base64.b64decode(checksum).hex()


class MappedFiles(OSUtils):
    """What boto3's transfer reads files through, for `S3Transfer(client, config, MappedFiles())`."""

    def open(self, filename: str, mode: str) -> Any:
        """For reading, a file whose `read` gives a memoryview; OSError if it cannot be opened."""
        return _MappedFile(filename) if mode == "rb" else super().open(filename, mode)


class _MappedFile:
    """A file that is read as views of the page cache: no byte of it is copied into the process.

    A disk that cannot give a page, or a file that is truncated meanwhile, kills the process, as it does where
    safetensors or torch maps the same file. What was staged by then the next run uses again.
    """

    def __init__(self, path: str) -> None:
        with Path(path).open("rb") as file:
            # mmap refuses to map nothing.
            size = os.fstat(file.fileno()).st_size
            self._bytes = memoryview(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) if size else b"")
        self._at = 0

    def read(self, amount: int | None = None) -> memoryview:
        found = self._bytes[self._at : None if amount is None else self._at + amount]
        self._at += len(found)
        return found

    def seek(self, where: int, whence: int = os.SEEK_SET) -> None:
        self._at = where + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: len(self._bytes)}[whence]

    def tell(self) -> int:
        return self._at

    def close(self) -> None:
        # The mapping ends with the last view of it, which may still be on its way.
        self._bytes = memoryview(b"")


def _sum(params: dict[str, Any], **_: Any) -> None:
    body, digest = params["Body"], hashlib.sha256()
    start = body.tell()
    while chunk := body.read(CHUNK):
        digest.update(chunk)
    body.seek(start)
    params["ChecksumSHA256"] = base64.b64encode(digest.digest()).decode()


def _choose(signature_version: object, **_: Any) -> str | None:
    # Others (v4a, S3 Express, a signature in the URL, none) stay as they are.
    return _SIGNATURE if signature_version == "v4" else None
