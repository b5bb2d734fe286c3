"""The checksums of parts, and of what is made of them.

A part of a multipart upload is hashed once: its checksum is also what its signature covers.

botocore hashes every part a second time to sign it: always over plain HTTP, and over TLS where it did not compute the
checksum itself. Both are the SHA256 of the same bytes, so what goes over the wire is the same, byte for byte.
"""

from __future__ import annotations

import base64
import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from botocore.auth import AUTH_TYPE_MAPS, S3SigV4Auth

from adapterline.digests import sha256_of_file
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


def checksum_of_file(path: Path, part: int | None) -> tuple[str, str]:
    """Its SHA256 in hexadecimal digits, and the checksum that S3 states of it. OSError if it cannot be read.

    Uploaded in parts of `part` bytes, that is the SHA256 of their SHA256s, and their number:
    https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity-upload.html
    """
    if part is None:
        found = sha256_of_file(path)
        return found, base64.b64encode(bytes.fromhex(found)).decode()
    whole, parts, left = hashlib.sha256(), [], 0
    with path.open("rb") as file, ThreadPoolExecutor(1) as beside:
        while chunk := file.read(min(CHUNK, left or part)):
            if not left:
                parts.append(hashlib.sha256())
                left = part
            hashed = beside.submit(whole.update, chunk)
            parts[-1].update(chunk)
            hashed.result()
            left -= len(chunk)
    composite = hashlib.sha256(b"".join(each.digest() for each in parts)).digest()
    return whole.hexdigest(), f"{base64.b64encode(composite).decode()}-{len(parts)}"


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
