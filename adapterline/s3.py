"""What S3 destinations and S3 checkpoints share: the URI, the client, the reading of an object, the errors.

Where the server is and who we are is boto3's own configuration: `AWS_*` variables, profiles, `AWS_ENDPOINT_URL_S3`.
Of ours is `ADAPTERLINE_S3_ADDRESSING`, for which boto3 has a profile's line alone.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from adapterline.errors import AdapterlineError, PublishError, UsageError

if TYPE_CHECKING:
    from botocore.loaders import JSONFileLoader
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import GetObjectOutputTypeDef

CHUNK = 1 << 20  # bytes of an object that are read at a time

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_NOT_IN_KEYS = re.compile(r"[\x00-\x1f\x7f]")


def parse_s3_uri(uri: str) -> tuple[str, str]:
    """`s3://bucket/prefix` as (bucket, prefix), the prefix without slashes at its ends and "" for the whole bucket.

    UsageError for another scheme, a bucket name that S3 does not allow, and a prefix with an empty, `.` or `..` part.
    """
    scheme, _, rest = uri.partition("://")
    bucket, _, prefix = rest.partition("/")
    prefix = prefix.rstrip("/")
    parts = prefix.split("/") if prefix else []
    wrong_part = any(part in ("", ".", "..") or _NOT_IN_KEYS.search(part) for part in parts)
    if scheme != "s3" or not _BUCKET.fullmatch(bucket) or wrong_part:
        # Whatever stands before an @ may be a password that somebody put there.
        raise UsageError(
            f"{re.sub(r'//.*@', '//…@', uri)!r} is not a place in S3.",
            expected="s3://bucket or s3://bucket/prefix, without empty, '.' or '..' parts",
            remedy="Credentials and endpoint belong in AWS_* variables or a profile.",
        )
    return bucket, prefix


def make_client(kind: type[AdapterlineError] = PublishError) -> S3Client:
    """A client as boto3's own configuration says, that gives up in bounded time; `kind` if that is broken."""
    import boto3
    import botocore.session
    from botocore.config import Config

    from adapterline.s3_parts import sign_by_checksum
    from adapterline.settings import Settings

    addressing = Settings().s3_addressing
    config = Config(
        connect_timeout=5,
        read_timeout=60,
        retries={"mode": "standard"},
        s3={"addressing_style": addressing} if addressing else None,
    )
    with s3_errors("Reading the AWS configuration", kind):
        # A session of its own: the default session is not safe to use from several threads.
        session = botocore.session.get_session()
        session.get_component("data_loader").file_loader = _descriptions()
        client = boto3.session.Session(botocore_session=session).client("s3", config=config)
    sign_by_checksum(client)
    return client


@cache
def _descriptions() -> JSONFileLoader:
    """Of services and endpoints: megabytes of JSON in botocore's package, which each session would parse anew."""
    from botocore.loaders import JSONFileLoader

    files = JSONFileLoader()
    files.load_file = cache(files.load_file)  # type: ignore[method-assign]
    return files


def checksum_of(data: bytes) -> str:
    """The value of `ChecksumSHA256`, which goes in a header.

    Every write needs one: botocore's own goes over TLS in a trailer, which Cloudflare R2 refuses, and which older
    versions of Ceph store among the bytes.
    """
    return as_checksum(hashlib.sha256(data).digest())


def as_checksum(digest: bytes) -> str:
    """A digest as S3 writes it."""
    return base64.b64encode(digest).decode()


@dataclass(frozen=True)
class Measured:
    """An object as it was read from the first to the last byte."""

    size: int
    sha256: str


def get_object(client: S3Client, bucket: str, key: str) -> GetObjectOutputTypeDef | None:
    """The answer to a GET, whose `Body` the caller closes; None if there is no such object."""
    try:
        return client.get_object(Bucket=bucket, Key=key)
    except client.exceptions.ClientError as error:
        if status_of(error) == 404 and code_of(error) != "NoSuchBucket":
            return None
        raise


def measure(client: S3Client, bucket: str, key: str, *, size: int | None = None) -> Measured | None:
    """Reads an object and hashes it; None if there is none. One of another `size` is not read: its sha256 is ""."""
    if (answer := get_object(client, bucket, key)) is None:
        return None
    with closing(answer["Body"]) as body:
        if size is not None and answer["ContentLength"] != size:
            return Measured(answer["ContentLength"], "")
        digest, read = hashlib.sha256(), 0
        for chunk in body.iter_chunks(CHUNK):
            digest.update(chunk)
            read += len(chunk)
        return Measured(read, digest.hexdigest())


def code_of(error: Exception) -> str:
    """The server's error code ("NoSuchKey", or "404" where an answer to HEAD has none); "" if it is no answer."""
    response = getattr(error, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def status_of(error: Exception) -> int:
    """The HTTP status of a server's refusal; 0 if there was no answer."""
    response = getattr(error, "response", None) or {}
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


@contextmanager
def s3_errors(doing: str, kind: type[AdapterlineError]) -> Iterator[None]:
    """Maps what boto3 and botocore raise inside by `map_s3_error`; everything else passes."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import HTTPError

    try:
        yield
    except (BotoCoreError, ClientError, Boto3Error, ResponseParserError, HTTPError) as error:
        raise map_s3_error(error, doing, kind) from error
    except ValueError as error:
        # botocore has no type of its own for an endpoint that is not a URL.
        if "Invalid endpoint" not in str(error):
            raise
        raise kind(f"{doing}: the configured endpoint is not a URL.", remedy="Correct AWS_ENDPOINT_URL_S3.") from error


def map_s3_error(error: Exception, doing: str, kind: type[AdapterlineError]) -> AdapterlineError:
    """The typed form of what boto3 raised while `doing` something ("Writing s3://…").

    Transient: no answer, a broken answer, 5xx, throttling. Everything else needs somebody who changes something.
    """
    error = origin_of(error)
    if code := code_of(error):
        return _map_answer(error, code, doing, kind)
    return _map_no_answer(error, doing, kind)


def origin_of(error: Exception) -> Exception:
    """The answer itself: the managed transfer says "Failed to upload ...: <text>" and keeps it only as the context."""
    from boto3.exceptions import S3TransferFailedError, S3UploadFailedError

    inner = error.__cause__ or error.__context__
    if isinstance(error, (S3UploadFailedError, S3TransferFailedError)) and isinstance(inner, Exception):
        return inner
    return error


_CREDENTIALS = "Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN or AWS_PROFILE."
_RIGHTS = (
    "Allow this identity s3:ListBucket on the bucket and s3:GetObject below the prefix; to publish also s3:PutObject, "
    "s3:DeleteObject and s3:AbortMultipartUpload; to prune orphans also s3:ListBucketMultipartUploads on the bucket."
)
_REMEDIES = {
    "AccessDenied": _RIGHTS,
    "AllAccessDisabled": _RIGHTS,
    "403": _RIGHTS,
    "InvalidAccessKeyId": _CREDENTIALS,
    "SignatureDoesNotMatch": _CREDENTIALS,
    "InvalidToken": _CREDENTIALS,
    "ExpiredToken": "Sign in again: the session token has expired.",
    "RequestTimeTooSkewed": "Set this machine's clock.",
    "NoSuchBucket": "Create the bucket, or correct its name or the endpoint.",
    "NoSuchKey": "Check the key.",
    "404": "Check the bucket and the key.",
    "PermanentRedirect": "Set AWS_REGION to the bucket's region.",
    "AuthorizationHeaderMalformed": "Set AWS_REGION to the bucket's region.",
    "301": "Set AWS_REGION to the bucket's region.",
    "QuotaExceeded": "Free some space there, or raise the quota.",
    "KeyTooLongError": "Use a shorter prefix.",
    "InvalidStorageClass": "Correct ADAPTERLINE_S3_STORAGE_CLASS.",
    "KMS.NotFoundException": "Correct ADAPTERLINE_S3_KMS_KEY, or make the key in the bucket's region.",
    "KMS.DisabledException": "Enable the key, or set ADAPTERLINE_S3_KMS_KEY to another one.",
    "NotImplemented": "Use a server that implements this: adapterline needs conditional writes and SHA256 checksums.",
}
#: How servers refuse bytes that do not have the checksum they came with; the second is MinIO's.
MISMATCHES = {"BadDigest", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch"}
#: IncompleteBody and the mismatches: bytes were lost or turned on the way. botocore retries none.
_TRANSIENT_CODES = {
    *MISMATCHES,
    "ConditionalRequestConflict",
    "IncompleteBody",
    "InternalError",
    "NoSuchUpload",  # what a repeated completion gets when the answer to the first was lost
    "OperationAborted",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
}


def is_transient(error: Exception) -> bool:
    """May the same request succeed later? For an answer of the server."""
    code, status = code_of(origin_of(error)), status_of(origin_of(error))
    return code in _TRANSIENT_CODES or status == 429 or (status >= 500 and code != "NotImplemented")


def _map_answer(error: Exception, code: str, doing: str, kind: type[AdapterlineError]) -> AdapterlineError:
    transient = is_transient(error)
    remedy = _REMEDIES.get(code, "Try again later." if transient else "")
    return kind(f"{doing}: the server answered {code} ({_message_of(error)}).", remedy=remedy, transient=transient)


def _message_of(error: Exception) -> str:
    # One line, and no query string: a signature or a session token may be in it.
    message = " ".join(str(getattr(error, "response", {}).get("Error", {}).get("Message", "")).split())
    return re.sub(r"\?\S+", "?…", message)[:300].rstrip(" .") or f"HTTP {status_of(error)}"


def _map_no_answer(error: Exception, doing: str, kind: type[AdapterlineError]) -> AdapterlineError:
    from botocore import exceptions as boto
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import HTTPError

    # The texts of these have whole URLs; their class says enough.
    name = type(error).__name__
    if isinstance(error, (boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError)):
        return kind(f"{doing}: there are no usable credentials ({name}).", remedy=_CREDENTIALS)
    if isinstance(error, boto.SSLError):
        return kind(f"{doing}: the server is not trusted ({name}).", remedy="Check AWS_CA_BUNDLE and the endpoint.")
    unreachable = (
        boto.HTTPClientError,
        boto.ConnectionError,
        boto.IncompleteReadError,
        boto.FlexibleChecksumError,
        ResponseParserError,
        HTTPError,
    )
    if isinstance(error, unreachable):
        remedy = "Check the network and AWS_ENDPOINT_URL_S3, then try again."
        return kind(f"{doing}: the server gave no whole answer ({name}).", remedy=remedy, transient=True)
    return kind(f"{doing}: boto3 refused ({name}).", remedy="Check the AWS_* variables and the profile.")
