"""What is said of objects beside their bytes, what is left of uploads that died, and how a bucket is found."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from botocore.awsrequest import AWSPreparedRequest, AWSResponse

from adapterline.destinations import open_destination
from adapterline.destinations.s3 import S3Destination
from adapterline.destinations.s3_objects import Content, Objects, Storage, tag_value
from adapterline.digests import sha256_of_file
from adapterline.errors import PublishError, UsageError
from adapterline.s3 import checksum_of, make_client
from adapterline.seaweedfs import SeaweedFS
from adapterline.settings import Settings
from adapterline.values import WEIGHT_NAME, Package, ReadBack, TrainingRun
from tests.packages import make_package, order_of
from tests.s3_fixtures import ADMIN
from tests.s3_wire import (
    CrashError,
    Wire,
    accepting,
    answer,
    answering,
    crash_at,
    objects,
    open_uploads,
    part_of,
    refusal,
    text_of,
    wired,
)

PART = 5 << 20  # the smallest that S3 allows
LARGE = 6 * PART // 5 // 4  # float32 of a file of two parts
LIFECYCLE = Path(__file__).parents[2] / "infra/s3-lifecycle.json"


def place(bucket: str, client: Any = None, **arguments: Any) -> S3Destination:
    return S3Destination(f"s3://{bucket}/loras", "tiny", client=client, multipart=PART, **arguments)


def publish(destination: S3Destination, package: Package) -> None:
    destination.release(package, destination.stage(package), order_of(1))


def key_of(package: Package, path: str) -> str:
    return f"loras/tiny/{package.sha12}/{path}"


def of_run(package: Package, run_id: str) -> Package:
    manifest = package.manifest.model_copy(update={"training_run": TrainingRun(run_id=run_id)})
    return Package(manifest, manifest.to_bytes(), package.folder, package.files)


def tags_of(s3: Any, bucket: str, key: str) -> dict[str, str]:
    found = s3.get_object_tagging(Bucket=bucket, Key=key)["TagSet"]
    return {tag["Key"]: tag["Value"] for tag in found}


# --- what is said of them ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [64, LARGE], ids=["one-put", "multipart"])
def test_objects_say_what_they_are(s3: Any, bucket: str, tmp_path: Path, size: int) -> None:
    package = of_run(make_package(tmp_path, size=size), "run 7/Zürich #1")
    publish(place(bucket), package)
    types = {WEIGHT_NAME: "application/octet-stream", "README.md": "text/markdown; charset=utf-8"}
    about = {"name": "tiny", "family": "sd15", "bundle": package.manifest.digest}
    tags = {"name": "tiny", "family": "sd15", "sha12": package.sha12, "run_id": "run 7/Z_rich _1"}
    for file in package.files:
        key = key_of(package, file.path)
        head = s3.head_object(Bucket=bucket, Key=key)
        assert head["ContentType"] == types[file.path]
        assert head["Metadata"] == {"sha256": file.sha256, **about}
        assert tags_of(s3, bucket, key) == tags
    manifest = s3.head_object(Bucket=bucket, Key=key_of(package, "manifest.json"))
    assert (manifest["ContentType"], manifest["Metadata"]) == ("application/json", about)
    assert tags_of(s3, bucket, key_of(package, "manifest.json")) == tags


def test_metadata_of_the_longest_name_is_within_what_s3_takes(tmp_path: Path) -> None:
    from adapterline.destinations.s3 import _content

    package = make_package(tmp_path, name="n" * 96)
    metadata = _content(package, package.files[0]).metadata
    assert sum(len(key) + len(value) for key, value in metadata.items()) < 2048
    assert all(text.isascii() for pair in metadata.items() for text in pair)


def test_a_tag_has_only_what_every_server_takes() -> None:
    assert tag_value("a b+c-d=e.f_g:h/i@j") == "a b+c-d=e.f_g:h/i@j"
    assert tag_value("é\n;&?") == "_____"
    assert len(tag_value("x" * 1000)) == 256


@pytest.mark.parametrize(("status", "code"), [(501, "NotImplemented"), (403, "AccessDenied"), (400, "InvalidRequest")])
@pytest.mark.parametrize("size", [64, LARGE], ids=["one-put", "multipart"])
def test_who_may_not_set_tags_publishes_without(
    s3: Any, bucket: str, tmp_path: Path, size: int, status: int, code: str
) -> None:
    package, refused = make_package(tmp_path, size=size), []

    def act(request: AWSPreparedRequest) -> AWSResponse | None:
        if "x-amz-tagging" not in request.headers:
            return None
        refused.append(request.url)
        return refusal(request, status, code)

    with answering(act) as client:
        publish(place(bucket, client), package)
    assert len(refused) == 1, "a server that refused once is asked again"
    assert len(objects(s3, bucket)) == 4
    assert tags_of(s3, bucket, key_of(package, WEIGHT_NAME)) == {}


def test_what_is_refused_for_another_reason_stays_refused(s3: Any, bucket: str, tmp_path: Path) -> None:
    with (
        answering(lambda request: refusal(request, 403, "AccessDenied") if request.method == "PUT" else None) as client,
        pytest.raises(PublishError, match="AccessDenied"),
    ):
        place(bucket, client).stage(make_package(tmp_path))
    assert objects(s3, bucket) == {}


# --- checksums --------------------------------------------------------------------------------------------------------


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, list[AWSPreparedRequest]]]:
    """A client of a server with TLS that says yes to everything, and what it was sent."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://s3.example.com")
    with accepting() as (client, requests):
        yield client, requests


def test_every_upload_has_its_sha256_in_a_header_and_no_trailer(
    sent: tuple[Any, list[AWSPreparedRequest]], tmp_path: Path
) -> None:
    client, requests = sent
    small, large = b"small", bytes(range(256)) * (PART // 256 + 1)
    (tmp_path / "file").write_bytes(b"file")
    (tmp_path / "large").write_bytes(large)
    place_of_them = Objects(client, "bucket", Storage(), PART)
    content = Content("text/plain", {}, {})
    place_of_them.put("small", small, content)
    place_of_them.upload("file", tmp_path / "file", content)
    place_of_them.upload("large", tmp_path / "large", content)
    wanted = {"small": small, "file": b"file", "partNumber=1": large[:PART], "partNumber=2": large[PART:]}
    puts = {part_of(each.url) or each.url.rpartition("/")[2]: each.headers for each in requests if each.method == "PUT"}
    assert puts.keys() == wanted.keys()
    for part, data in wanted.items():
        headers = puts[part]
        assert text_of(headers["x-amz-checksum-sha256"]) == base64.b64encode(hashlib.sha256(data).digest()).decode()
        assert "x-amz-trailer" not in headers
        assert "aws-chunked" not in text_of(headers.get("Content-Encoding", ""))


@pytest.mark.parametrize("size", [0, 1, PART - 1, PART, PART + 1, 21 * 10**6])
def test_of_a_file_of_any_size_the_server_states_what_was_sent(s3: Any, bucket: str, tmp_path: Path, size: int) -> None:
    (tmp_path / "file").write_bytes(bytes(size))
    place_of_them = Objects(s3, bucket, Storage(), PART)
    sent = place_of_them.upload("key", tmp_path / "file", Content("text/plain", {}, {}))
    assert (sent.size, sent.sha256) == (size, sha256_of_file(tmp_path / "file"))
    assert place_of_them.states("key", sent)
    assert not place_of_them.states("key", replace(sent, size=size + 1))
    assert not place_of_them.states("key", replace(sent, checksum=checksum_of(b"other")))
    assert not place_of_them.states("another", sent)


@pytest.mark.parametrize("size", [64, LARGE], ids=["one-put", "multipart"])
@pytest.mark.parametrize("read_back", ["checksum", "bytes"])
def test_the_checksum_that_the_server_states_proves_an_upload_or_its_bytes_do(
    s3: Any, bucket: str, tmp_path: Path, size: int, read_back: ReadBack
) -> None:
    package = make_package(tmp_path, size=size)
    with wired() as (client, wire):
        receipt = place(bucket, client, read_back=read_back).stage(package)
        gets = gets_of_weights(wire, bucket, package)
        probes = [path for _, path in wire.requests if "/.probe-" in path]
    assert receipt.read_back == read_back
    # The first looks for leftovers.
    assert gets == {"checksum": 1, "bytes": 2}[read_back]
    assert len(probes) == {"checksum": 1, "bytes": 0}[read_back]
    assert objects(s3, bucket)[key_of(package, WEIGHT_NAME)] == (tmp_path / WEIGHT_NAME).read_bytes()
    assert len(objects(s3, bucket)) == len(package.files)


def gets_of_weights(wire: Wire, bucket: str, package: Package) -> int:
    return wire.requests.count(("GET", f"/{bucket}/{key_of(package, WEIGHT_NAME)}"))


@pytest.mark.parametrize("size", [64, LARGE], ids=["one-put", "multipart"])
def test_what_no_checksum_proves_is_read(s3: Any, bucket: str, tmp_path: Path, size: int) -> None:
    package = make_package(tmp_path, size=size)
    with wired() as (client, wire):
        client.meta.events.register(
            "after-call.s3.HeadObject", lambda parsed, **_: parsed.pop("ChecksumSHA256", None) and None
        )
        assert place(bucket, client).stage(package).read_back == "bytes"
        assert gets_of_weights(wire, bucket, package) == 2


def test_what_somebody_else_left_is_read(s3: Any, bucket: str, tmp_path: Path) -> None:
    package = make_package(tmp_path, size=LARGE)
    place(bucket).stage(package)
    key = key_of(package, WEIGHT_NAME)
    damaged = bytearray(s3.get_object(Bucket=bucket, Key=key)["Body"].read())
    damaged[-1] ^= 1
    s3.put_object(Bucket=bucket, Key=key, Body=bytes(damaged))
    assert place(bucket).stage(package).read_back == "checksum"
    assert objects(s3, bucket)[key] == (tmp_path / WEIGHT_NAME).read_bytes()
    assert place(bucket).stage(package).read_back == "bytes"


@pytest.mark.parametrize("size", [64, LARGE], ids=["one-put", "multipart"])
@pytest.mark.parametrize("read_back", ["checksum", "bytes"])
@pytest.mark.parametrize("published", [False, True], ids=["", "published"])
def test_other_bytes_than_were_sent_are_found_and_removed_unless_they_are_published(
    s3: Any, bucket: str, tmp_path: Path, size: int, read_back: ReadBack, published: bool
) -> None:
    package = make_package(tmp_path, size=size)
    key, right = key_of(package, WEIGHT_NAME), (tmp_path / WEIGHT_NAME).read_bytes()
    wrong = right[:-1] + bytes([right[-1] ^ 1])
    with wired() as (client, wire):

        def act(number: int, request: AWSPreparedRequest) -> None:
            if wire.writes and request.method in ("GET", "HEAD"):
                s3.put_object(Bucket=bucket, Key=key, Body=wrong, ChecksumAlgorithm="SHA256")
                if published:
                    s3.put_object(Bucket=bucket, Key=key_of(package, "manifest.json"), Body=package.manifest_bytes)

        wire.act = act
        with pytest.raises(PublishError, match="other bytes than were uploaded") as caught:
            place(bucket, client, read_back=read_back).stage(package)
    assert caught.value.transient
    assert caught.value.remedy
    assert "\n" not in str(caught.value)
    assert (key in objects(s3, bucket)) == published


@pytest.mark.parametrize("size", [64, LARGE], ids=["one-put", "multipart"])
@pytest.mark.parametrize("read_back", ["checksum", "bytes"])
def test_a_file_that_is_no_longer_what_the_manifest_names_is_not_published(
    s3: Any, bucket: str, tmp_path: Path, size: int, read_back: ReadBack
) -> None:
    package = make_package(tmp_path, size=size)
    with (tmp_path / WEIGHT_NAME).open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))
    with pytest.raises(PublishError, match="no longer what was written") as caught:
        place(bucket, read_back=read_back).stage(package)
    assert not caught.value.transient
    assert key_of(package, WEIGHT_NAME) not in objects(s3, bucket)


def test_where_the_server_compares_no_checksums_every_byte_is_read(s3: Any, bucket: str, tmp_path: Path) -> None:
    package = make_package(tmp_path)
    with wired() as (client, wire):
        client.meta.events.register(
            "before-call.s3.PutObject",
            lambda params, **_: params["headers"].pop("x-amz-checksum-sha256", None) and None,
        )
        assert place(bucket, client).stage(package).read_back == "bytes"
        assert gets_of_weights(wire, bucket, package) == 2
    assert len(objects(s3, bucket)) == len(package.files)


@pytest.mark.parametrize(
    ("status", "code", "read_back"),
    [
        (400, "BadDigest", "checksum"),
        (400, "XAmzContentChecksumMismatch", "checksum"),
        (400, "InvalidRequest", "bytes"),
        (403, "AccessDenied", "bytes"),
        (503, "SlowDown", None),
    ],
)
def test_only_a_refusal_of_a_wrong_checksum_says_that_checksums_are_compared(
    s3: Any, bucket: str, tmp_path: Path, status: int, code: str, read_back: ReadBack | None
) -> None:
    package = make_package(tmp_path)
    with answering(lambda request: refusal(request, status, code) if "/.probe-" in request.url else None) as client:
        if read_back:
            assert place(bucket, client).stage(package).read_back == read_back
        else:
            with pytest.raises(PublishError, match=code) as caught:
                place(bucket, client).stage(package)
            assert caught.value.transient


# --- encryption and class ---------------------------------------------------------------------------------------------


def test_every_object_is_encrypted_as_asked(s3: Any, bucket: str, tmp_path: Path) -> None:
    destination = place(bucket, storage=Storage(encryption="AES256"))
    destination.check()
    publish(destination, make_package(tmp_path, size=LARGE))
    for key in objects(s3, bucket):
        assert s3.head_object(Bucket=bucket, Key=key)["ServerSideEncryption"] == "AES256", key


def test_a_key_of_kms_is_named_at_every_write(sent: tuple[Any, list[AWSPreparedRequest]], tmp_path: Path) -> None:
    client, requests = sent
    storage = Storage(encryption="aws:kms", kms_key="alias/loras")
    (tmp_path / "large").write_bytes(bytes(PART + 1))
    place_of_them = Objects(client, "bucket", storage, PART)
    place_of_them.put("small", b"", Content("text/plain", {}, {}))
    place_of_them.upload("large", tmp_path / "large", Content("text/plain", {}, {}))
    named = [each for each in requests if "x-amz-server-side-encryption" in each.headers]
    assert [urlsplit(each.url).path for each in named] == ["/bucket/small", "/bucket/large"]
    for each in named:
        assert text_of(each.headers["x-amz-server-side-encryption"]) == "aws:kms"
        assert text_of(each.headers["x-amz-server-side-encryption-aws-kms-key-id"]) == "alias/loras"


def test_a_server_that_ignores_encryption_is_refused(s3: Any, bucket: str) -> None:
    with wired() as (client, _):
        client.meta.events.register(
            "before-call.s3.PutObject",
            lambda params, **_: params["headers"].pop("x-amz-server-side-encryption", None) and None,
        )
        with pytest.raises(PublishError, match="with the encryption none") as caught:
            place(bucket, client, storage=Storage(encryption="AES256")).check()
    assert not caught.value.transient
    assert objects(s3, bucket) == {}


@pytest.mark.parametrize("size", [64, LARGE], ids=["one-put", "multipart"])
def test_the_storage_class_is_that_of_the_weights_alone(s3: Any, bucket: str, tmp_path: Path, size: int) -> None:
    destination = place(bucket, storage=Storage(storage_class="STANDARD_IA"))
    destination.check()
    publish(destination, make_package(tmp_path, size=size))
    classes = {
        row["Key"].rpartition("/")[2]: row["StorageClass"] for row in s3.list_objects_v2(Bucket=bucket)["Contents"]
    }
    assert classes.pop(WEIGHT_NAME) == "STANDARD_IA"
    assert set(classes.values()) == {"STANDARD"}


def test_a_storage_class_that_the_server_does_not_have_is_refused_by_the_check(s3: Any, bucket: str) -> None:
    with pytest.raises(PublishError, match="InvalidStorageClass") as caught:
        place(bucket, storage=Storage(storage_class="NO_SUCH")).check()
    assert "ADAPTERLINE_S3_STORAGE_CLASS" in caught.value.remedy
    assert not caught.value.transient
    assert objects(s3, bucket) == {}


def test_settings_say_how_objects_are_kept(
    s3: Any, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAPTERLINE_S3_SSE", "AES256")
    monkeypatch.setenv("ADAPTERLINE_S3_STORAGE_CLASS", "STANDARD_IA")
    monkeypatch.setenv("ADAPTERLINE_S3_READ_BACK", "bytes")
    package = make_package(tmp_path)
    assert open_destination(f"s3://{bucket}/loras", "tiny").stage(package).read_back == "bytes"
    head = s3.head_object(Bucket=bucket, Key=key_of(package, WEIGHT_NAME))
    assert (head["ServerSideEncryption"], head["StorageClass"]) == ("AES256", "STANDARD_IA")


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"S3_KMS_KEY": "alias/x"}, "s3_sse is not aws:kms"),
        ({"S3_KMS_KEY": "alias/x", "S3_SSE": "AES256"}, "s3_sse is not aws:kms"),
        ({"S3_STORAGE_CLASS": "DEEP_ARCHIVE"}, "nothing can be read back"),
        ({"S3_SSE": "rot13"}, "ADAPTERLINE_S3_SSE"),
        ({"S3_ADDRESSING": "dns"}, "ADAPTERLINE_S3_ADDRESSING"),
        ({"S3_READ_BACK": "no"}, "ADAPTERLINE_S3_READ_BACK"),
    ],
)
def test_settings_that_do_not_fit_are_a_usage_error(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"ADAPTERLINE_{name}", value)
    with pytest.raises(UsageError, match=message) as caught:
        Settings()
    assert caught.value.remedy


# --- uploads that died ------------------------------------------------------------------------------------------------


def test_the_next_run_aborts_what_a_killed_one_left_and_nothing_of_others(s3: Any, bucket: str, tmp_path: Path) -> None:
    package = make_package(tmp_path, size=LARGE)
    s3.create_multipart_upload(Bucket=bucket, Key=f"loras/tiny/{package.sha12}0/{WEIGHT_NAME}")
    with wired() as (client, wire):
        for nth in range(2, 6):
            wire.restart(crash_at(nth, delivered=True))
            with suppress(CrashError):
                place(bucket, client).stage(package)
    left = [upload["Key"] for upload in open_uploads(s3, bucket)]
    assert key_of(package, WEIGHT_NAME) in left
    place(bucket).stage(package)
    assert [upload["Key"] for upload in open_uploads(s3, bucket)] == [f"loras/tiny/{package.sha12}0/{WEIGHT_NAME}"]


@pytest.mark.parametrize(("status", "code"), [(403, "AccessDenied"), (501, "NotImplemented")])
def test_who_may_not_list_uploads_publishes(s3: Any, bucket: str, tmp_path: Path, status: int, code: str) -> None:
    def act(request: AWSPreparedRequest) -> AWSResponse | None:
        listing = request.method == "GET" and urlsplit(request.url).query.startswith("uploads")
        return refusal(request, status, code) if listing else None

    with answering(act) as client:
        publish(place(bucket, client), make_package(tmp_path))
    assert len(objects(s3, bucket)) == 4


def test_an_exporter_whose_upload_another_one_made_needless_finds_the_file(
    s3: Any, bucket: str, tmp_path: Path
) -> None:
    package = make_package(tmp_path, size=LARGE)
    with wired() as (client, wire):
        once = threading.Lock()

        def act(number: int, request: AWSPreparedRequest) -> None:
            if "partNumber=2" in request.url and once.acquire(blocking=False):
                place(bucket).stage(package)

        wire.act = act
        with pytest.raises(PublishError) as caught:
            place(bucket, client).stage(package)
        assert caught.value.transient
        wire.restart(lambda number, request: None)
        place(bucket, client).stage(package)
        assert wire.writes == []
    assert open_uploads(s3, bucket) == []


# --- how the bucket is found ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("addressing", "start"),
    [("path", "https://s3.example.com/bucket/key"), ("virtual", "https://bucket.s3.example.com/key")],
)
def test_addressing_is_a_setting(
    sent: tuple[Any, list[AWSPreparedRequest]], monkeypatch: pytest.MonkeyPatch, addressing: str, start: str
) -> None:
    monkeypatch.setenv("ADAPTERLINE_S3_ADDRESSING", addressing)
    seen: list[str] = []

    def act(request: AWSPreparedRequest) -> AWSResponse:
        seen.append(request.url)
        return answer(request, 200)

    with answering(act) as client:
        Objects(client, "bucket", Storage()).delete("key")
    assert seen == [start]


class _Sts(BaseHTTPRequestHandler):
    """Hands out the credentials of `ADMIN` to whoever assumes a role."""

    asked: list[str]

    def do_POST(self) -> None:  # noqa: N802
        self.asked.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
        keys = f"<AccessKeyId>{ADMIN.access_key}</AccessKeyId><SecretAccessKey>{ADMIN.secret_key}</SecretAccessKey>"
        credentials = f"{keys}<SessionToken></SessionToken><Expiration>2099-01-01T00:00:00Z</Expiration>"
        body = (
            '<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult>'
            f"<Credentials>{credentials}</Credentials></AssumeRoleResult></AssumeRoleResponse>"
        ).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def test_a_profile_says_endpoint_region_addressing_and_role(
    bucket: str, seaweedfs: SeaweedFS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = type("Sts", (_Sts,), {"asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        config = tmp_path / "config"
        config.write_text(
            "[profile publisher]\nregion = eu-central-1\nrole_arn = arn:aws:iam::123456789012:role/publisher\n"
            "source_profile = person\nservices = here\ns3 =\n  addressing_style = path\n"
            "[profile person]\naws_access_key_id = nobody\naws_secret_access_key = nothing\nservices = here\n"
            f"[services here]\ns3 =\n  endpoint_url = {seaweedfs.endpoint}\n"
            f"sts =\n  endpoint_url = http://127.0.0.1:{server.server_address[1]}\n"
        )
        for name in ("AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
        monkeypatch.setenv("AWS_PROFILE", "publisher")
        client = make_client()
        place(bucket, client).check()
        assert client.meta.region_name == "eu-central-1"
        assert "RoleArn=arn%3Aaws%3Aiam%3A%3A123456789012%3Arole%2Fpublisher" in handler.asked[0]
        client.close()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_lifecycle_rules_are_taken_by_a_server(s3: Any, bucket: str) -> None:
    rules = json.loads(LIFECYCLE.read_text())
    s3.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration=rules)
    assert s3.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"] == rules["Rules"]
