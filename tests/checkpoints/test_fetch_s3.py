from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from botocore.awsrequest import AWSPreparedRequest, AWSResponse

from adapterline.checkpoints.fetch_s3 import fetch_s3
from adapterline.errors import CheckpointError, CheckpointIncompleteError, MachineError, UsageError
from adapterline.s3 import CHUNK
from tests.s3_fixtures import ADMIN


def put(s3: Any, bucket: str, *keys: str) -> dict[str, bytes]:
    contents = {key: f"content of {key}".encode() for key in keys}
    for key, data in contents.items():
        s3.put_object(Bucket=bucket, Key=key, Body=data)
    return contents


def files(folder: Path) -> dict[str, bytes]:
    return {str(each.relative_to(folder)): each.read_bytes() for each in folder.rglob("*") if each.is_file()}


def before_send(s3: Any, act: Callable[[AWSPreparedRequest], AWSResponse | None]) -> None:
    s3.meta.events.register("before-send.s3.GetObject", lambda request, **_: act(request))


class Breaking:
    """The body of an answer that breaks off after some bytes."""

    def __init__(self, raw: Any, after: int) -> None:
        self._raw, self._left = raw, after

    def read(self, amount: int | None = None) -> bytes:
        from urllib3.exceptions import ProtocolError

        if not self._left:
            raise ProtocolError("the connection broke")
        data: bytes = self._raw.read(min(amount or self._left, self._left))
        self._left -= len(data)
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)


def test_an_object_becomes_a_file_with_its_bytes_and_time(s3: Any, bucket: str, tmp_path: Path) -> None:
    data = os.urandom(3 * CHUNK + 7)
    s3.put_object(Bucket=bucket, Key="run/lora.safetensors", Body=data)
    fetched = fetch_s3(f"s3://{bucket}/run/lora.safetensors", tmp_path / "new")
    assert fetched == tmp_path / "new" / "lora.safetensors"
    assert files(tmp_path / "new") == {"lora.safetensors": data}
    modified_at = s3.head_object(Bucket=bucket, Key="run/lora.safetensors")["LastModified"]
    assert fetched.stat().st_mtime == modified_at.timestamp()


@pytest.mark.parametrize("end", ["", "/"])
def test_a_prefix_becomes_a_folder(s3: Any, bucket: str, tmp_path: Path, end: str) -> None:
    put(s3, bucket, "run/a.bin", "run/deep/b.bin", "run-2/other.bin")
    assert fetch_s3(f"s3://{bucket}/run{end}", tmp_path) == tmp_path
    assert files(tmp_path) == {"a.bin": b"content of run/a.bin", "deep/b.bin": b"content of run/deep/b.bin"}
    modified_at = s3.head_object(Bucket=bucket, Key="run/deep/b.bin")["LastModified"].timestamp()
    assert int((tmp_path / "deep/b.bin").stat().st_mtime) == int(modified_at)


def test_a_whole_bucket_is_a_folder(s3: Any, bucket: str, tmp_path: Path) -> None:
    contents = put(s3, bucket, "a.bin", "deep/b.bin")
    fetch_s3(f"s3://{bucket}", tmp_path)
    assert files(tmp_path) == contents


def test_an_exact_object_is_preferred_to_what_lies_below_it(s3: Any, bucket: str, tmp_path: Path) -> None:
    put(s3, bucket, "run", "run/a.bin")
    assert fetch_s3(f"s3://{bucket}/run", tmp_path) == tmp_path / "run"
    assert files(tmp_path) == {"run": b"content of run"}


def test_only_what_is_wanted_is_fetched(s3: Any, bucket: str, tmp_path: Path) -> None:
    put(s3, bucket, "run/a.safetensors", "run/optimizer.bin", "run/deep/optimizer.bin")
    fetch_s3(f"s3://{bucket}/run", tmp_path, lambda path: not path.endswith("optimizer.bin"))
    assert files(tmp_path) == {"a.safetensors": b"content of run/a.safetensors"}
    with pytest.raises(CheckpointError, match="3 objects and none"):
        fetch_s3(f"s3://{bucket}/run", tmp_path, lambda path: False)


def test_more_objects_than_one_page_lists_are_fetched(s3: Any, bucket: str, tmp_path: Path) -> None:
    contents = put(s3, bucket, *(f"run/{number:04}" for number in range(5)))
    pages: list[int] = []
    s3.meta.events.register("before-send.s3.ListObjectsV2", lambda **_: pages.append(1))
    s3.meta.events.register("provide-client-params.s3.ListObjectsV2", lambda params, **_: {**params, "MaxKeys": 2})
    fetch_s3(f"s3://{bucket}/run", tmp_path, client=s3)
    assert len(pages) == 3
    assert sorted(files(tmp_path).values()) == sorted(contents.values())


def test_placeholders_of_folders_are_no_files(s3: Any, bucket: str, tmp_path: Path) -> None:
    put(s3, bucket, "run/a.bin")
    s3.put_object(Bucket=bucket, Key="run/", Body=b"")
    s3.put_object(Bucket=bucket, Key="run/empty/", Body=b"")
    fetch_s3(f"s3://{bucket}/run", tmp_path)
    assert files(tmp_path) == {"a.bin": b"content of run/a.bin"}


@pytest.mark.parametrize(
    "key", ["run/../../evil", "run/./evil", "run//etc/evil", "run/a/../evil", "run/a\0b", "run/a.bin/b"]
)
def test_a_key_that_is_no_safe_path_is_refused(s3: Any, bucket: str, tmp_path: Path, key: str) -> None:
    put(s3, bucket, "run/a.bin")

    # SeaweedFS cleans such keys, AWS stores them: so the real listing is given one more row.
    def add(parsed: dict[str, Any], **_: Any) -> None:
        parsed["Contents"].append({**parsed["Contents"][0], "Key": key})

    s3.meta.events.register("after-call.s3.ListObjectsV2", add)
    target = tmp_path / "deep" / "target"
    with pytest.raises(CheckpointError, match="cannot be a file") as caught:
        fetch_s3(f"s3://{bucket}/run", target, client=s3)
    assert not caught.value.transient
    assert files(tmp_path) == {}


def test_what_changes_meanwhile_is_incomplete(s3: Any, bucket: str, tmp_path: Path) -> None:
    put(s3, bucket, "run/a.bin", "run/b.bin")

    def act(request: AWSPreparedRequest) -> None:
        if urlsplit(request.url).path.endswith("b.bin"):
            s3.put_object(Bucket=bucket, Key="run/b.bin", Body=b"newer")

    before_send(s3, act)
    with pytest.raises(CheckpointIncompleteError, match="changed or deleted"):
        fetch_s3(f"s3://{bucket}/run", tmp_path, client=s3)
    assert files(tmp_path) == {"a.bin": b"content of run/a.bin"}


def test_what_is_deleted_meanwhile_is_incomplete(s3: Any, bucket: str, tmp_path: Path) -> None:
    put(s3, bucket, "run/a.bin")
    before_send(s3, lambda request: s3.delete_object(Bucket=bucket, Key="run/a.bin") and None)
    with pytest.raises(CheckpointIncompleteError, match="changed or deleted"):
        fetch_s3(f"s3://{bucket}/run", tmp_path, client=s3)
    assert files(tmp_path) == {}


@pytest.mark.parametrize("breaks", [2, 3])
def test_a_body_that_breaks_off_is_read_again_a_few_times(s3: Any, bucket: str, tmp_path: Path, breaks: int) -> None:
    data = os.urandom(2 * CHUNK)
    s3.put_object(Bucket=bucket, Key="a.bin", Body=data)
    broken: list[int] = []

    def cut(parsed: dict[str, Any], **_: Any) -> None:
        if len(broken) < breaks:
            broken.append(1)
            parsed["Body"]._raw_stream = Breaking(parsed["Body"]._raw_stream, CHUNK + 5)

    s3.meta.events.register("after-call.s3.GetObject", cut)
    if breaks < 3:
        fetch_s3(f"s3://{bucket}/a.bin", tmp_path, client=s3)
        assert files(tmp_path) == {"a.bin": data}
    else:
        with pytest.raises(CheckpointError, match="no whole answer") as caught:
            fetch_s3(f"s3://{bucket}/a.bin", tmp_path, client=s3)
        assert caught.value.transient
        assert files(tmp_path) == {}


def test_bytes_that_differ_from_the_stated_digest_are_refused(s3: Any, bucket: str, tmp_path: Path) -> None:
    stated = hashlib.sha256(b"other").hexdigest()
    s3.put_object(Bucket=bucket, Key="a.bin", Body=b"bytes", Metadata={"sha256": stated})
    with pytest.raises(CheckpointError, match="as its metadata says"):
        fetch_s3(f"s3://{bucket}/a.bin", tmp_path)
    assert files(tmp_path) == {}


def test_bytes_that_differ_from_the_servers_checksum_are_refused(s3: Any, bucket: str, tmp_path: Path) -> None:
    s3.put_object(Bucket=bucket, Key="a.bin", Body=b"bytes", ChecksumAlgorithm="SHA256")

    class Turned:
        def __init__(self, raw: Any) -> None:
            self._raw = raw

        def read(self, amount: int | None = None) -> bytes:
            return bytes(self._raw.read(amount)).replace(b"bytes", b"bites")

        def __getattr__(self, name: str) -> Any:
            return getattr(self._raw, name)

    def turn(parsed: dict[str, Any], **_: Any) -> None:
        parsed["Body"]._raw_stream = Turned(parsed["Body"]._raw_stream)

    s3.meta.events.register("after-call.s3.GetObject", turn)
    with pytest.raises(CheckpointError, match="FlexibleChecksumError"):
        fetch_s3(f"s3://{bucket}/a.bin", tmp_path, client=s3)
    assert files(tmp_path) == {}


def test_an_earlier_file_stays_whole_when_a_fetch_fails(s3: Any, bucket: str, tmp_path: Path) -> None:
    put(s3, bucket, "a.bin")
    fetch_s3(f"s3://{bucket}/a.bin", tmp_path)
    before_send(s3, lambda request: s3.delete_object(Bucket=bucket, Key="a.bin") and None)
    with pytest.raises(CheckpointIncompleteError):
        fetch_s3(f"s3://{bucket}/a.bin", tmp_path, client=s3)
    assert files(tmp_path) == {"a.bin": b"content of a.bin"}


@pytest.mark.parametrize("path", ["nothing", ""])
def test_nothing_there_is_a_checkpoint_error(bucket: str, tmp_path: Path, path: str) -> None:
    with pytest.raises(CheckpointError, match="nothing at") as caught:
        fetch_s3(f"s3://{bucket}/{path}", tmp_path)
    assert not caught.value.transient


def test_a_missing_bucket_is_a_checkpoint_error(s3: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="NoSuchBucket") as caught:
        fetch_s3("s3://no-such-bucket/run", tmp_path)
    assert not caught.value.transient


def test_wrong_credentials_are_a_checkpoint_error(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    with pytest.raises(CheckpointError) as caught:
        fetch_s3(f"s3://{bucket}/run", tmp_path)
    assert not caught.value.transient
    assert "not-the-secret" not in str(caught.value)
    assert ADMIN.access_key not in str(caught.value)
    assert caught.value.remedy


def test_an_unreachable_endpoint_is_transient(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{reserved.getsockname()[1]}")
        with pytest.raises(CheckpointError, match="no whole answer") as caught:
            fetch_s3("s3://bucket/run", tmp_path)
    assert caught.value.transient


def test_a_folder_that_cannot_be_made_is_a_typed_error(s3: Any, bucket: str, tmp_path: Path) -> None:
    put(s3, bucket, "a.bin")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises((CheckpointError, MachineError), match="Writing s3://"):
        fetch_s3(f"s3://{bucket}/a.bin", tmp_path / "file" / "deep")


def test_a_bad_uri_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        fetch_s3("s3://bucket/../x", tmp_path)
