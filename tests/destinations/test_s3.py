from __future__ import annotations

import hashlib
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from botocore.awsrequest import AWSPreparedRequest
from botocore.exceptions import ClientError, ConnectionClosedError

from adapterline.destinations.latest import from_bytes
from adapterline.destinations.s3 import S3Destination
from adapterline.errors import PublishError, UsageError
from adapterline.s3 import make_client, map_s3_error, parse_s3_uri
from adapterline.seaweedfs import SeaweedFS
from adapterline.values import WEIGHT_NAME, Manifest, Package, Publication
from tests.packages import make_package, order_of
from tests.s3_fixtures import ADMIN, READER
from tests.s3_wire import CrashError, Wire, crash_at, lose_answer_of, objects, open_uploads, wired

PART = 5 << 20  # the smallest that S3 allows
LARGE = 6 * PART // 5 // 4  # float32 of a file of two parts


def expected_objects(package: Package, prefix: str = "loras/") -> dict[str, bytes]:
    folder = f"{prefix}{package.name}/{package.sha12}"
    files = {f"{folder}/{file.path}": (package.folder / file.path).read_bytes() for file in package.files}
    return files | {f"{folder}/manifest.json": package.manifest_bytes}


def without_latest(found: dict[str, bytes]) -> dict[str, bytes]:
    return {key: data for key, data in found.items() if not key.endswith("/latest.json")}


def assert_nothing_is_half_done(found: dict[str, bytes]) -> None:
    for key, data in found.items():
        folder, _, path = key.rpartition("/")
        if path == "manifest.json":
            for file in Manifest.model_validate_json(data).files:
                assert hashlib.sha256(found[f"{folder}/{file.path}"]).hexdigest() == file.sha256
        if path == "latest.json":
            latest = from_bytes(data, key)
            assert hashlib.sha256(found[f"{folder}/{latest.sha12}/manifest.json"]).hexdigest() == latest.manifest_sha256


def place(bucket: str, client: Any = None, prefix: str = "loras", **arguments: Any) -> S3Destination:
    return S3Destination(f"s3://{bucket}/{prefix}", "tiny", client=client, **arguments)


def publish(destination: S3Destination, package: Package, day: int = 1) -> Publication:
    destination.check()
    return destination.release(package, destination.stage(package), order_of(day))


def assert_one_paragraph(error: PublishError) -> None:
    text = str(error)
    assert "\n" not in text
    assert error.found
    assert error.remedy
    for secret in (ADMIN.secret_key, READER.secret_key, "Signature=", "X-Amz"):
        assert secret not in text


# --- staging and releasing --------------------------------------------------------------------------------------------


def test_clients_after_the_first_parse_nothing_that_botocore_says_of_services(
    s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("botocore.loaders.json", None)
    again = make_client()
    assert again.list_buckets()["Owner"] == s3.list_buckets()["Owner"]
    again.close()


def test_nothing_is_visible_until_release(s3: Any, bucket: str, tmp_path: Path) -> None:
    package = make_package(tmp_path)
    destination = place(bucket)
    destination.check()
    assert objects(s3, bucket) == {}
    receipt = destination.stage(package)
    staged = {key: data for key, data in expected_objects(package).items() if not key.endswith("manifest.json")}
    assert objects(s3, bucket) == staged
    assert not receipt.published

    publication = destination.release(package, receipt, order_of(1))
    found = objects(s3, bucket)
    assert without_latest(found) == expected_objects(package)
    latest = from_bytes(found["loras/tiny/latest.json"], "")
    assert (latest.sha12, latest.digest) == (package.sha12, package.manifest.digest)
    assert latest.manifest_sha256 == hashlib.sha256(package.manifest_bytes).hexdigest()
    assert publication.latest == "moved"
    assert publication.url == publication.load == f"s3://{bucket}/loras/tiny/{package.sha12}"


def test_whole_bucket_is_a_place_too(s3: Any, bucket: str, tmp_path: Path) -> None:
    package = make_package(tmp_path)
    publish(S3Destination(f"s3://{bucket}/", "tiny"), package)
    assert without_latest(objects(s3, bucket)) == expected_objects(package, prefix="")


def test_second_run_writes_nothing(bucket: str, tmp_path: Path) -> None:
    package = make_package(tmp_path)
    first = publish(place(bucket), package)
    with wired() as (client, wire):
        destination = place(bucket, client)
        receipt = destination.stage(package)
        second = destination.release(package, receipt, order_of(1))
        assert wire.writes == []
    assert receipt.published
    assert second.receipt.manifest_sha256 == first.receipt.manifest_sha256
    assert second.receipt.files == first.receipt.files
    assert second.latest == "moved"


def test_older_export_is_published_and_latest_stays(s3: Any, bucket: str, tmp_path: Path) -> None:
    newer, older = make_package(tmp_path / "newer", seed=1), make_package(tmp_path / "older", seed=2)
    publish(place(bucket), newer, day=9)
    publication = publish(place(bucket), older, day=8)
    found = objects(s3, bucket)
    assert publication.latest == "kept"
    assert without_latest(found) == expected_objects(newer) | expected_objects(older)
    assert from_bytes(found["loras/tiny/latest.json"], "").sha12 == newer.sha12
    assert publish(place(bucket), older, day=10).latest == "moved"
    assert from_bytes(objects(s3, bucket)["loras/tiny/latest.json"], "").sha12 == older.sha12


def test_first_manifest_wins_and_the_second_export_adopts_it(s3: Any, bucket: str, tmp_path: Path) -> None:
    first, second = make_package(tmp_path / "1", tool="1"), make_package(tmp_path / "2", tool="2")
    publish(place(bucket), first)
    publication = publish(place(bucket), second, day=2)
    found = objects(s3, bucket)
    assert without_latest(found) == expected_objects(first)
    assert publication.receipt.published
    assert publication.receipt.files == first.files
    assert publication.receipt.manifest_sha256 == hashlib.sha256(first.manifest_bytes).hexdigest()
    assert_nothing_is_half_done(found)
    assert place(bucket).verify(publication)


def test_other_digest_under_the_same_name_is_refused(s3: Any, bucket: str, tmp_path: Path) -> None:
    package, other = make_package(tmp_path / "1", seed=1), make_package(tmp_path / "2", seed=2)
    key = f"loras/tiny/{package.sha12}/manifest.json"
    s3.put_object(Bucket=bucket, Key=key, Body=other.manifest_bytes)
    with pytest.raises(PublishError, match="manifest of another export") as caught:
        place(bucket).stage(package)
    assert_one_paragraph(caught.value)
    assert not caught.value.transient
    assert objects(s3, bucket) == {key: other.manifest_bytes}


def test_what_is_no_manifest_is_refused(s3: Any, bucket: str, tmp_path: Path) -> None:
    package = make_package(tmp_path)
    s3.put_object(Bucket=bucket, Key=f"loras/tiny/{package.sha12}/manifest.json", Body=b"{}")
    with pytest.raises(PublishError, match="not a manifest") as caught:
        place(bucket).stage(package)
    assert_one_paragraph(caught.value)


def test_damaged_publication_is_refused_by_stage_and_found_by_verify(s3: Any, bucket: str, tmp_path: Path) -> None:
    package = make_package(tmp_path)
    publication = publish(place(bucket), package)
    assert place(bucket).verify(publication)
    key = f"loras/tiny/{package.sha12}/{WEIGHT_NAME}"
    data = bytearray((tmp_path / WEIGHT_NAME).read_bytes())
    data[-1] ^= 1
    # Same size, and metadata that still states the old digest.
    s3.put_object(Bucket=bucket, Key=key, Body=bytes(data), Metadata={"sha256": package.files[0].sha256})
    assert not place(bucket).verify(publication)
    with pytest.raises(PublishError, match="not there as it was published") as caught:
        place(bucket).stage(package)
    assert_one_paragraph(caught.value)
    assert objects(s3, bucket)[key] == bytes(data)


@pytest.mark.parametrize("missing", ["manifest.json", WEIGHT_NAME, "README.md"])
def test_verify_is_false_when_something_is_gone(s3: Any, bucket: str, tmp_path: Path, missing: str) -> None:
    package = make_package(tmp_path)
    publication = publish(place(bucket), package)
    s3.delete_object(Bucket=bucket, Key=f"loras/tiny/{package.sha12}/{missing}")
    assert not place(bucket).verify(publication)


@pytest.mark.parametrize("path", [WEIGHT_NAME, "README.md"])
def test_corrupted_leftover_is_replaced(s3: Any, bucket: str, tmp_path: Path, path: str) -> None:
    package = make_package(tmp_path)
    data = bytearray((tmp_path / path).read_bytes())
    data[-1] ^= 1
    s3.put_object(Bucket=bucket, Key=f"loras/tiny/{package.sha12}/{path}", Body=bytes(data))
    publish(place(bucket), package)
    assert without_latest(objects(s3, bucket)) == expected_objects(package)


def test_right_leftover_is_not_uploaded_again(bucket: str, tmp_path: Path) -> None:
    package = make_package(tmp_path)
    place(bucket).stage(package)
    with wired() as (client, wire):
        assert not place(bucket, client).stage(package).published
        assert wire.writes == []


def test_release_refuses_when_staged_files_are_gone(s3: Any, bucket: str, tmp_path: Path) -> None:
    package = make_package(tmp_path)
    receipt = place(bucket).stage(package)
    s3.delete_object(Bucket=bucket, Key=f"loras/tiny/{package.sha12}/{WEIGHT_NAME}")
    with pytest.raises(PublishError, match="not there any more") as caught:
        place(bucket).release(package, receipt, order_of(1))
    assert caught.value.transient
    assert not any(key.endswith(".json") for key in objects(s3, bucket))


# --- crashes and lost answers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("delivered", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("large", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["one-put", "multipart"])
def test_a_crash_at_any_request_is_completed_by_the_next_run(
    s3: Any, bucket: str, tmp_path: Path, delivered: bool, large: bool
) -> None:
    package = make_package(tmp_path, size=LARGE if large else 64)
    crashes = 0
    with wired() as (client, wire):
        for nth in range(1, 100):
            prefix = f"crash-{nth:02}/"
            wire.restart(crash_at(nth, delivered=delivered))
            destination = place(bucket, client, prefix, multipart=PART)
            with suppress(CrashError):
                destination.release(package, destination.stage(package), order_of(1))
            assert_nothing_is_half_done(objects(s3, bucket, prefix))
            crashed = len(wire.requests) >= nth

            destination = place(bucket, s3, prefix, multipart=PART)
            publication = destination.release(package, destination.stage(package), order_of(1))
            found = objects(s3, bucket, prefix)
            assert without_latest(found) == expected_objects(package, prefix)
            assert_nothing_is_half_done(found)
            assert publication.latest == "moved"
            assert open_uploads(s3, bucket) == []
            if not crashed:
                break
            crashes += 1
    assert 10 < crashes < 99


def test_a_lost_answer_to_any_request_does_no_harm(s3: Any, bucket: str, tmp_path: Path) -> None:
    package = make_package(tmp_path)
    with wired() as (client, wire):
        for nth in range(1, 100):
            prefix = f"lost-{nth:02}/"
            wire.restart(lose_answer_of(nth))
            publication = publish(place(bucket, client, prefix), package)
            assert publication.latest == "moved"
            assert without_latest(objects(s3, bucket, prefix)) == expected_objects(package, prefix)
            if len(wire.requests) < nth:
                break
    assert 12 < nth < 99


def test_a_lost_answer_in_a_multipart_upload_is_completed_or_transient(s3: Any, bucket: str, tmp_path: Path) -> None:
    package = make_package(tmp_path, size=LARGE)
    with wired() as (client, wire):
        for nth in range(1, 100):
            prefix, permanent = f"lost-{nth:02}/", False
            wire.restart(lose_answer_of(nth))
            try:
                place(bucket, client, prefix, multipart=PART).stage(package)
            except PublishError as error:
                permanent = not error.transient
            assert not permanent
            destination = place(bucket, s3, prefix, multipart=PART)
            destination.release(package, destination.stage(package), order_of(1))
            assert without_latest(objects(s3, bucket, prefix)) == expected_objects(package, prefix)
            if len(wire.requests) < nth:
                break
    assert 8 < nth < 99


def test_a_multipart_upload_keeps_the_bytes(s3: Any, bucket: str, tmp_path: Path) -> None:
    package = make_package(tmp_path, size=LARGE)
    with wired() as (client, wire):
        publish(place(bucket, client, multipart=PART), package)
        parts = [
            each for each in wire.requests if each == ("PUT", f"/{bucket}/loras/tiny/{package.sha12}/{WEIGHT_NAME}")
        ]
    assert len(parts) == 2
    assert without_latest(objects(s3, bucket)) == expected_objects(package)
    assert open_uploads(s3, bucket) == []


def test_a_failed_multipart_upload_is_aborted(s3: Any, bucket: str, tmp_path: Path) -> None:
    package = make_package(tmp_path, size=LARGE)
    seen: list[Any] = []
    with wired() as (client, wire):

        def act(number: int, request: AWSPreparedRequest) -> None:
            if "partNumber=2" in request.url:
                seen.extend(open_uploads(s3, bucket))
                raise ConnectionClosedError(endpoint_url=request.url)

        wire.act = act
        with pytest.raises(PublishError) as caught:
            place(bucket, client, multipart=PART).stage(package)
    assert seen
    assert caught.value.transient
    assert_one_paragraph(caught.value)
    assert open_uploads(s3, bucket) == []
    assert objects(s3, bucket) == {}


# --- several exporters ------------------------------------------------------------------------------------------------


def interrupt(wire: Wire, method: str, path_end: str, then: Callable[[], Any]) -> None:
    """Runs `then` right before the first such request leaves."""
    done: list[bool] = []

    def act(number: int, request: AWSPreparedRequest) -> None:
        if request.method == method and urlsplit(request.url).path.endswith(path_end) and not done:
            done.append(True)
            then()

    wire.act = act


@pytest.mark.parametrize("moment", [WEIGHT_NAME, "README.md", "manifest.json", "latest.json"])
def test_who_is_overtaken_adopts_the_winner_with_its_card(s3: Any, bucket: str, tmp_path: Path, moment: str) -> None:
    fast, slow = make_package(tmp_path / "1", tool="1"), make_package(tmp_path / "2", tool="2")
    with wired() as (client, wire):
        destination = place(bucket, client)
        interrupt(wire, "PUT", moment, lambda: publish(place(bucket), fast))
        publication = destination.release(slow, destination.stage(slow), order_of(1))
    winner = slow if moment == "latest.json" else fast  # before its last request the slow one has won already
    found = objects(s3, bucket)
    assert without_latest(found) == expected_objects(winner)
    assert publication.receipt.manifest_sha256 == hashlib.sha256(winner.manifest_bytes).hexdigest()
    assert publication.receipt.files == winner.files
    assert_nothing_is_half_done(found)


def test_the_winner_replaces_the_card_of_one_who_crashed(s3: Any, bucket: str, tmp_path: Path) -> None:
    crashed, package = make_package(tmp_path / "1", tool="1"), make_package(tmp_path / "2", tool="2")
    place(bucket).stage(crashed)
    publication = publish(place(bucket), package)
    assert without_latest(objects(s3, bucket)) == expected_objects(package)
    assert place(bucket).verify(publication)


def test_an_older_export_that_is_overtaken_keeps_latest(s3: Any, bucket: str, tmp_path: Path) -> None:
    older, newer = make_package(tmp_path / "1", seed=1), make_package(tmp_path / "2", seed=2)
    with wired() as (client, wire):
        interrupt(wire, "PUT", "latest.json", lambda: publish(place(bucket), newer, day=9))
        publication = publish(place(bucket, client), older, day=8)
    assert publication.latest == "kept"
    assert from_bytes(objects(s3, bucket)["loras/tiny/latest.json"], "").sha12 == newer.sha12


def test_latest_that_changes_between_read_and_write_is_read_again(s3: Any, bucket: str, tmp_path: Path) -> None:
    first, older, newer = (make_package(tmp_path / str(seed), seed=seed) for seed in range(3))
    publish(place(bucket), first, day=1)
    with wired() as (client, wire):
        interrupt(wire, "PUT", "latest.json", lambda: publish(place(bucket), newer, day=9))
        assert publish(place(bucket, client), older, day=8).latest == "kept"
    assert from_bytes(objects(s3, bucket)["loras/tiny/latest.json"], "").sha12 == newer.sha12


def test_racing_exporters_end_with_one_manifest_and_the_newest_latest(s3: Any, bucket: str, tmp_path: Path) -> None:
    same = [make_package(tmp_path / f"same-{tool}", tool=str(tool)) for tool in range(2)]
    other = [make_package(tmp_path / f"other-{seed}", seed=seed) for seed in (1, 2)]
    clients = [make_client() for _ in range(4)]
    for turn in range(4):
        start = threading.Barrier(4)
        results: dict[int, Publication] = {}

        def run(index: int, package: Package, uri: str, start: threading.Barrier, results: dict[int, Any]) -> None:
            destination = S3Destination(uri, "tiny", client=clients[index])
            start.wait(30)
            results[index] = destination.release(package, destination.stage(package), order_of(index + 1))

        uri = f"s3://{bucket}/turn-{turn}"
        jobs = enumerate([*other, *same])
        threads = [threading.Thread(target=run, args=(index, each, uri, start, results)) for index, each in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(results) == 4
        found = {key: data for key, data in objects(s3, bucket).items() if key.startswith(f"turn-{turn}/")}
        assert_nothing_is_half_done(found)
        manifest = found[f"turn-{turn}/tiny/{same[0].sha12}/manifest.json"]
        winner = next(each for each in same if each.manifest_bytes == manifest)
        assert expected_objects(winner, f"turn-{turn}/").items() <= found.items()
        assert {results[2].receipt.manifest_sha256, results[3].receipt.manifest_sha256} == {
            hashlib.sha256(manifest).hexdigest()
        }
        assert from_bytes(found[f"turn-{turn}/tiny/latest.json"], "").order == order_of(4)
    for client in clients:
        client.close()


# --- places that cannot be used ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", ["If-None-Match", "If-Match"])
def test_a_server_that_ignores_conditions_is_refused(s3: Any, bucket: str, header: str) -> None:
    with wired() as (client, _):
        client.meta.events.register(
            "before-call.s3.PutObject", lambda params, **_: params["headers"].pop(header, None) and None
        )
        with pytest.raises(PublishError, match="overwrites an object") as caught:
            place(bucket, client).check()
    assert_one_paragraph(caught.value)
    assert not caught.value.transient
    assert objects(s3, bucket) == {}


def test_a_reader_is_refused_and_leaves_nothing(
    s3: Any, bucket: str, tmp_path: Path, seaweedfs: SeaweedFS, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in seaweedfs.environment(READER).items():
        monkeypatch.setenv(variable, value)
    for attempt in (place(bucket).check, lambda: place(bucket).stage(make_package(tmp_path))):
        with pytest.raises(PublishError, match="AccessDenied") as caught:
            attempt()
        assert not caught.value.transient
        assert "s3:PutObject" in str(caught.value)
        assert_one_paragraph(caught.value)
    assert objects(s3, bucket) == {}


@pytest.mark.parametrize(
    ("variable", "value", "code"),
    [
        ("AWS_SECRET_ACCESS_KEY", "not-the-secret", "SignatureDoesNotMatch"),
        ("AWS_ACCESS_KEY_ID", "nobody", "InvalidAccessKeyId"),
    ],
)
def test_wrong_credentials_are_refused(
    s3: Any, bucket: str, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, code: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(PublishError, match=code) as caught:
        place(bucket).check()
    assert not caught.value.transient
    assert "AWS_ACCESS_KEY_ID" in caught.value.remedy
    assert "not-the-secret" not in str(caught.value)
    assert_one_paragraph(caught.value)
    assert objects(s3, bucket) == {}


def test_no_credentials_are_refused(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(PublishError, match="no usable credentials") as caught:
        place(bucket).check()
    assert not caught.value.transient


def test_a_missing_bucket_is_refused(s3: Any, tmp_path: Path) -> None:
    for attempt in (place("no-such-bucket").check, lambda: place("no-such-bucket").stage(make_package(tmp_path))):
        with pytest.raises(PublishError, match="NoSuchBucket") as caught:
            attempt()
        assert not caught.value.transient
        assert_one_paragraph(caught.value)
    with pytest.raises(ClientError):
        s3.head_bucket(Bucket="no-such-bucket")


def test_an_unreachable_endpoint_is_transient(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{reserved.getsockname()[1]}")
        for attempt in (place("bucket").check, lambda: place("bucket").stage(make_package(tmp_path))):
            with pytest.raises(PublishError, match="no whole answer") as caught:
                attempt()
            assert caught.value.transient
            assert_one_paragraph(caught.value)


def test_an_endpoint_that_is_no_url_is_refused(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "localhost:9000")
    with pytest.raises(PublishError) as caught:
        place("bucket").check()
    assert_one_paragraph(caught.value)


@pytest.mark.parametrize(
    ("code", "status", "transient"),
    [
        ("SlowDown", 503, True),
        ("InternalError", 500, True),
        ("BadGateway", 502, True),
        ("TooManyRequests", 429, True),
        ("RequestTimeout", 400, True),
        ("BadDigest", 400, True),
        ("XAmzContentChecksumMismatch", 400, True),
        ("NoSuchUpload", 404, True),
        ("NotImplemented", 501, False),
        ("AccessDenied", 403, False),
        ("ExpiredToken", 400, False),
        ("NoSuchBucket", 404, False),
    ],
)
def test_an_answer_is_transient_when_the_same_request_may_succeed(code: str, status: int, transient: bool) -> None:
    message = "First\nsecond https://bucket/key?X-Amz-Security-Token=token&X-Amz-Signature=abc third"
    answer: Any = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    error = map_s3_error(ClientError(answer, "PutObject"), "Writing s3://bucket/key", PublishError)
    assert isinstance(error, PublishError)
    assert error.transient is transient
    assert error.found == (
        f"Writing s3://bucket/key: the server answered {code} (First second https://bucket/key?… third)."
    )
    assert_one_paragraph(error)


@pytest.mark.parametrize(
    "uri",
    ["s3://", "s3:///x", "s3://B/x", "s3://ab", "http://bucket/x", "s3://bucket/a//b", "s3://bucket/../x", "s3://b/\0"],
)
def test_a_bad_uri_is_a_usage_error(uri: str) -> None:
    with pytest.raises(UsageError):
        parse_s3_uri(uri)


def test_a_bad_uri_does_not_repeat_a_password() -> None:
    with pytest.raises(UsageError) as caught:
        parse_s3_uri("s3://key:password@bucket/x")
    assert "password" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "parts"),
    [
        ("s3://bucket", ("bucket", "")),
        ("s3://bucket/", ("bucket", "")),
        ("s3://my.bucket-1/a/b", ("my.bucket-1", "a/b")),
        ("s3://bucket/a/b/", ("bucket", "a/b")),
    ],
)
def test_a_uri_is_a_bucket_and_a_prefix(uri: str, parts: tuple[str, str]) -> None:
    assert parse_s3_uri(uri) == parts
