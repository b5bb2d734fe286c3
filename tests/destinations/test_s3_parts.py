"""What a part of a multipart upload bears, how often it is read, and how a file is divided."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import random
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import pytest
from botocore import UNSIGNED
from s3transfer.utils import ReadFileChunk

from adapterline.destinations.s3_objects import MULTIPART_THRESHOLD, Content, Objects, Storage
from adapterline.s3 import CHUNK
from adapterline.s3_parts import PartSums, _choose, parts_bear
from tests.s3_wire import accepting, part_of, text_of

PART = 5 << 20  # the smallest that S3 allows
DATA = bytes(range(256)) * (PART // 256 + 1)  # of two parts
BODIES = {"partNumber=1": DATA[:PART], "partNumber=2": DATA[PART:]}
CONTENT = Content("text/plain", {}, {})


@pytest.fixture(autouse=True)
def account(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "large"
    path.write_bytes(DATA)
    return path


def parts_of(file: Path, bucket: str = "bucket") -> dict[str, Mapping[str, Any]]:
    """The headers of every part that was sent."""
    with accepting() as (client, requests):
        Objects(client, bucket, Storage(), PART).upload("large", file, CONTENT)
    return {part_of(each.url): each.headers for each in requests if part_of(each.url)}


def checksum(data: bytes) -> str:
    return base64.b64encode(hashlib.sha256(data).digest()).decode()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_part_is_read_once_before_it_is_sent_and_signed_by_its_checksum(
    file: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"{scheme}://s3.example.com")
    read: list[int] = []

    class Counted(PartSums):
        def __init__(self, file: BinaryIO, part: int) -> None:
            super().__init__(counting(file, read), part)

    monkeypatch.setattr("adapterline.destinations.s3_objects.PartSums", Counted)
    monkeypatch.setattr(ReadFileChunk, "read", lambda *_: pytest.fail("read again before it is sent"))
    parts = parts_of(file)
    assert parts.keys() == BODIES.keys()
    for part, body in BODIES.items():
        assert text_of(parts[part]["x-amz-checksum-sha256"]) == checksum(body)
        assert text_of(parts[part]["X-Amz-Content-SHA256"]) == hashlib.sha256(body).hexdigest()
        assert ";x-amz-checksum-sha256;x-amz-content-sha256;" in text_of(parts[part]["Authorization"])
    assert sum(read) == len(DATA)


def counting(file: BinaryIO, read: list[int]) -> Any:
    def read_some(amount: int) -> bytes:
        found = file.read(amount)
        read.append(len(found))
        return found

    return SimpleNamespace(read=read_some)


def test_digests_of_parts_and_of_the_whole_are_of_one_reading_that_goes_no_further_than_asked() -> None:
    data = bytes(range(256)) * (3 * CHUNK // 256) + b"end"
    part, read = 3 * CHUNK // 2, list[int]()
    sums = PartSums(counting(io.BytesIO(data), read), part)
    pieces = [data[start : start + part] for start in range(0, len(data), part)]
    digests = [hashlib.sha256(piece).digest() for piece in pieces]
    assert len(pieces) == 3
    assert sums.of(2) == digests[1]
    assert sum(read) == 2 * part
    assert (sums.of(1), sums.of(3)) == (digests[0], digests[2])
    assert sum(read) == len(data)
    assert sums.whole() == hashlib.sha256(data).hexdigest()
    assert sums.composite() == f"{checksum(b''.join(digests))}-3"


def test_parts_that_threads_ask_for_in_any_order_are_summed_in_theirs() -> None:
    data = random.Random(1).randbytes(40 * CHUNK)
    sums = PartSums(io.BytesIO(data), CHUNK)
    numbers = random.Random(2).sample(range(1, 41), 40)
    with ThreadPoolExecutor(8) as threads:
        found = dict(zip(numbers, threads.map(sums.of, numbers), strict=True))
    assert found == {n: hashlib.sha256(data[(n - 1) * CHUNK : n * CHUNK]).digest() for n in numbers}
    assert sums.whole() == hashlib.sha256(data).hexdigest()


def test_only_the_parts_of_that_upload_bear_its_checksums(file: Path) -> None:
    with accepting() as (client, requests), file.open("rb") as opened:
        sums = PartSums(opened, PART)
        with parts_bear(sums, client, "large"):
            client.upload_part(Bucket="bucket", Key="other", UploadId="1", PartNumber=1, Body=b"1")
            client.upload_part(Bucket="bucket", Key="large", UploadId="1", PartNumber=1, Body=DATA[:PART])
        client.upload_part(Bucket="bucket", Key="large", UploadId="1", PartNumber=2, Body=b"2")
    borne = [text_of(each.headers.get("x-amz-checksum-sha256", "")) for each in requests]
    assert borne == ["", checksum(DATA[:PART]), ""]


def test_a_part_is_signed_as_botocore_signs_it(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda **_: datetime(2026, 1, 2, 3, 4, 5))
    ours = parts_of(file)
    monkeypatch.setattr("adapterline.s3_parts._choose", lambda **_: None)
    theirs = parts_of(file)
    assert ours.keys() == BODIES.keys()
    for part in BODIES:
        assert text_of(ours[part]["Authorization"]) == text_of(theirs[part]["Authorization"])


def test_a_profile_that_wants_no_payload_signed_gets_that(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").write_text("[default]\ns3 =\n  payload_signing_enabled = false\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    parts = parts_of(file)
    assert parts.keys() == BODIES.keys()
    for part, body in BODIES.items():
        assert text_of(parts[part]["X-Amz-Content-SHA256"]) == "UNSIGNED-PAYLOAD"
        assert text_of(parts[part]["x-amz-checksum-sha256"]) == checksum(body)


@pytest.mark.parametrize("other", [UNSIGNED, "s3", "v4a", "v4-s3express", "v4-query"])
def test_other_signatures_are_made_by_botocore_alone(other: object) -> None:
    assert _choose(other) is None


@pytest.mark.parametrize(("size", "count"), [(MULTIPART_THRESHOLD + 1, 4), (300 * 10**6, 8), (512 * 2**20, 12)])
def test_a_file_is_divided_so_that_each_of_four_connections_sends_equally_many_parts(
    tmp_path: Path, size: int, count: int
) -> None:
    path = tmp_path / "sparse"
    path.touch()
    os.truncate(path, size)
    with accepting() as (client, requests):
        Objects(client, "bucket", Storage()).upload("large", path, CONTENT)
    sizes = {part_of(each.url): int(each.headers["Content-Length"]) for each in requests if part_of(each.url)}
    assert len(sizes) == count
    assert sum(sizes.values()) == size
    last = sizes.pop(f"partNumber={count}")
    assert {*sizes.values()} == {max(sizes.values())}
    assert last <= max(sizes.values()) <= MULTIPART_THRESHOLD


def test_no_file_has_more_parts_than_s3_takes() -> None:
    with accepting() as (client, _):
        place_of_them = Objects(client, "bucket", Storage(), PART)
    for size in (10_000 * PART - 1, 10_000 * PART + 1, 10**12):
        part = place_of_them._part_size(size)
        assert -(-size // part) <= 10_000
        assert part <= 5 << 30
