"""The checksums of a file that is uploaded in parts, each computed once.

That of a part is also what its signature covers. botocore hashes every part a second time to sign it: always over plain
HTTP, and over TLS where it did not compute the checksum itself. Both are the SHA256 of the same bytes, so what goes
over the wire is the same, byte for byte.
"""

from __future__ import annotations

import base64
import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO

from botocore.auth import AUTH_TYPE_MAPS, S3SigV4Auth

from adapterline.s3 import CHUNK, as_checksum, checksum_of

if TYPE_CHECKING:
    from botocore.awsrequest import AWSRequest
    from mypy_boto3_s3 import S3Client

_SIGNATURE = "adapterline-s3v4"
_UPLOAD_PART = "provide-client-params.s3.UploadPart"


class PartSums:
    """The SHA256 of each part of a file, and of the whole: of one reading from the first byte to the last.

    It goes no further than to the end of the part that is asked for, which is sent next: so it is still in the page
    cache. All parts have `part` bytes but the last. For several threads; OSError if the file cannot be read.
    """

    def __init__(self, file: BinaryIO, part: int) -> None:
        self._file = file
        self._part = part
        self._whole = hashlib.sha256()
        self._parts: list[bytes] = []
        self._lock = threading.Lock()

    def of(self, number: int) -> bytes:
        """The digest of a part; the first has number 1."""
        with self._lock:
            while len(self._parts) < number:
                self._parts.append(self._next())
            return self._parts[number - 1]

    def _next(self) -> bytes:
        digest, left = hashlib.sha256(), self._part
        while left and (chunk := self._file.read(min(CHUNK, left))):
            digest.update(chunk)
            self._whole.update(chunk)
            left -= len(chunk)
        return digest.digest()

    def whole(self) -> str:
        """In hexadecimal digits, of all parts that were asked for."""
        return self._whole.hexdigest()

    def composite(self) -> str:
        """What S3 states of all of them: the SHA256 of their SHA256s, and their number.

        https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity-upload.html
        """
        return f"{checksum_of(b''.join(self._parts))}-{len(self._parts)}"


@contextmanager
def parts_bear(sums: PartSums, client: S3Client, key: str) -> Iterator[None]:
    """Inside, each part that `client` uploads to `key` bears its `ChecksumSHA256`."""

    def add(params: dict[str, Any], **_: Any) -> None:
        if params["Key"] == key:
            params["ChecksumSHA256"] = as_checksum(sums.of(params["PartNumber"]))

    client.meta.events.register(_UPLOAD_PART, add)
    try:
        yield
    finally:
        client.meta.events.unregister(_UPLOAD_PART, add)


def sign_by_checksum(client: S3Client) -> None:
    """From now on the signature of a part that bears its checksum is made of that."""
    AUTH_TYPE_MAPS[_SIGNATURE] = _SignedByChecksum
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


def _choose(signature_version: object, **_: Any) -> str | None:
    # Others (v4a, S3 Express, a signature in the URL, none) stay as they are.
    return _SIGNATURE if signature_version == "v4" else None
