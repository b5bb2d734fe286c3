"""What is signed stays signed, by the manifest that counts, on every kind of destination."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from adapterline.checkpoints import fetch
from adapterline.destinations import open_destination
from adapterline.destinations.s3 import S3Destination
from adapterline.package import make_package
from adapterline.package.signature import Signer, open_signer
from adapterline.package.verification import Trust, with_trust
from adapterline.settings import Settings
from adapterline.values import SIGNATURE_PATH, Check, Package, Publication, ValidationReport, signature_name
from tests import packages
from tests.signing_fixtures import Identity

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

REPORT = ValidationReport(bundle_digest="0" * 64, checks=(Check(name="loads", observed="", limit="", passed=True),))
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(params=["folder", "s3", "hub"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "folder":
        yield str(tmp_path / "out")
    elif request.param == "s3":
        yield f"s3://{request.getfixturevalue('bucket')}/loras"
    else:
        request.getfixturevalue("hub")
        yield "hf://acme"


@pytest.fixture
def signers(identity: Identity, stranger: Identity) -> tuple[Signer, Signer]:
    one, other = (open_signer(Settings(signing_key=each.key)) for each in (identity, stranger))
    assert one is not None
    assert other is not None
    return one, other


def pack(folder: Path, signer: Signer | None, tool: str = "1") -> Package:
    """Another `tool` gives another manifest of the same bundle."""
    tiny = packages.make_package(folder / "bundle", tool=tool)
    (folder / "package").mkdir()
    return make_package(tiny.manifest, tiny.folder, folder / "package", signer=signer)


def publish(uri: str, package: Package) -> Publication:
    place = open_destination(uri, package.name)
    return place.release(package, place.stage(package), packages.order_of(1))


def signed_in(publication: Publication) -> set[str]:
    return {file.path for file in publication.receipt.files if SIGNATURE_PATH.fullmatch(file.path)}


def signature_of(package: Package) -> str:
    return signature_name(hashlib.sha256(package.manifest_bytes).hexdigest())


def state(uri: str, publication: Publication, folder: Path, key: Path) -> str:
    """What a reader finds of the signature there: "valid", what is wrong, or why it was not checked."""
    at = publication.receipt.location if not uri.startswith("/") else publication.load
    report = with_trust(REPORT, fetch(at, folder), Trust(key))
    assert all(check.passed for check in report.checks if check.name == "provenance")
    found = next((check.observed for check in report.checks if check.name == "signature"), None)
    return str(found or report.not_run["signature"])


def test_what_is_published_signed_is_verified_where_it_lies(
    uri: str, tmp_path: Path, signers: tuple[Signer, Signer], identity: Identity
) -> None:
    package = pack(tmp_path / "one", signers[0])
    publication = publish(uri, package)
    assert signed_in(publication) == {signature_of(package)}
    assert {file.path: file.sha256 for file in publication.receipt.files} == {
        file.path: file.sha256 for file in package.files
    }
    assert state(uri, publication, tmp_path / "read", identity.public) == "valid"
    again = publish(uri, pack(tmp_path / "again", signers[0]))
    assert again.receipt.files == publication.receipt.files
    assert open_destination(uri, package.name).verify(publication)


@pytest.mark.parametrize("second", [None, 1], ids=["who signs nothing", "who signs with another key"])
def test_of_the_same_manifest_the_first_signature_stays(
    uri: str, tmp_path: Path, signers: tuple[Signer, Signer], identity: Identity, second: int | None
) -> None:
    first = publish(uri, pack(tmp_path / "one", signers[0]))
    other = publish(uri, pack(tmp_path / "two", None if second is None else signers[second]))
    assert set(other.receipt.files) == set(first.receipt.files)
    assert state(uri, other, tmp_path / "read", identity.public) == "valid"
    assert open_destination(uri, "tiny").verify(first)


def test_what_was_published_unsigned_stays_so(uri: str, tmp_path: Path, signers: tuple[Signer, Signer]) -> None:
    first = publish(uri, pack(tmp_path / "one", None))
    second = publish(uri, pack(tmp_path / "two", signers[0]))
    assert set(second.receipt.files) == set(first.receipt.files)
    assert signed_in(second) == set()
    there = fetch(second.receipt.location if "://" in uri else second.load, tmp_path / "read")
    assert not list(there.glob("*.sig"))
    assert open_destination(uri, "tiny").verify(first)


def test_who_comes_second_takes_over_the_first_manifest_and_its_signature(
    uri: str, tmp_path: Path, signers: tuple[Signer, Signer], identity: Identity
) -> None:
    first = publish(uri, pack(tmp_path / "one", signers[0], tool="1"))
    second = publish(uri, pack(tmp_path / "two", signers[1], tool="2"))
    assert second.receipt.manifest_sha256 == first.receipt.manifest_sha256
    assert set(second.receipt.files) == set(first.receipt.files)
    assert state(uri, second, tmp_path / "read", identity.public) == "valid"


def test_who_loses_the_race_after_staging_leaves_no_signature_that_counts(
    uri: str, tmp_path: Path, signers: tuple[Signer, Signer], identity: Identity
) -> None:
    loser, winner = pack(tmp_path / "one", signers[0], tool="1"), pack(tmp_path / "two", None, tool="2")
    place = open_destination(uri, "tiny")
    late = place.stage(loser)
    won = publish(uri, winner)
    lost = place.release(loser, late, packages.order_of(1))
    assert lost.receipt.manifest_sha256 == won.receipt.manifest_sha256
    assert signed_in(lost) == signed_in(won) == set()
    assert state(uri, lost, tmp_path / "read", identity.public) == "there is none"


def test_from_the_moment_a_manifest_counts_what_lies_beside_it_is_its_own(
    bucket: str, tmp_path: Path, signers: tuple[Signer, Signer], identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(Exception):
        pass

    def killed(*given: object) -> None:
        raise KilledError

    uri = f"s3://{bucket}/loras"
    one, two = pack(tmp_path / "one", signers[1], tool="1"), pack(tmp_path / "two", signers[0], tool="2")
    S3Destination(uri, "tiny").stage(one)
    place = S3Destination(uri, "tiny")
    receipt = place.stage(two)
    monkeypatch.setattr(place, "_put_siblings", killed)
    with pytest.raises(KilledError):
        place.release(two, receipt, packages.order_of(1))
    publication = Publication(receipt=receipt, latest="moved", url="", load="")
    assert state(uri, publication, tmp_path / "read", identity.public) == "valid"


def test_who_comes_second_and_is_not_done_makes_nothing_wrong(
    bucket: str, tmp_path: Path, signers: tuple[Signer, Signer], identity: Identity
) -> None:
    place = S3Destination(f"s3://{bucket}/loras", "tiny")
    unsigned, other = pack(tmp_path / "one", None, tool="1"), pack(tmp_path / "two", signers[0], tool="2")
    place.stage(other)
    publication = place.release(unsigned, place.stage(unsigned), packages.order_of(1))
    report = with_trust(REPORT, fetch(publication.receipt.location, tmp_path / "read"), Trust())
    assert report.passed
    assert report.not_run == {"signature": "there is none of this manifest"}


def test_who_loses_takes_away_what_nobody_reads(
    bucket: str, s3: S3Client, tmp_path: Path, signers: tuple[Signer, Signer]
) -> None:
    place = S3Destination(f"s3://{bucket}/loras", "tiny")
    one, two = pack(tmp_path / "one", signers[0], tool="1"), pack(tmp_path / "two", signers[1], tool="2")
    staged = [place.stage(each) for each in (one, two)]
    for package, receipt in zip((one, two), staged, strict=True):
        place.release(package, receipt, packages.order_of(1))
    stem = f"loras/tiny/{one.sha12}/"
    there = {item["Key"].removeprefix(stem) for item in s3.list_objects_v2(Bucket=bucket, Prefix=stem)["Contents"]}
    assert there == {file.path for file in one.files} | {"manifest.json"}


def test_who_releases_after_another_staged_brings_its_own_card_and_signature(
    uri: str, tmp_path: Path, signers: tuple[Signer, Signer], identity: Identity
) -> None:
    package = pack(tmp_path / "one", signers[0], tool="1")
    place = open_destination(uri, "tiny")
    receipt = place.stage(package)
    place.stage(pack(tmp_path / "two", None, tool="2"))  # and dies
    publication = place.release(package, receipt, packages.order_of(1))
    assert {(file.path, file.sha256) for file in publication.receipt.files} == {
        (file.path, file.sha256) for file in package.files
    }
    assert place.verify(publication)
    assert state(uri, publication, tmp_path / "read", identity.public) == "valid"


def test_a_newer_version_on_the_hub_leaves_no_signature_of_the_older_on_main(
    hub: object, tmp_path: Path, signers: tuple[Signer, Signer], identity: Identity
) -> None:
    old = pack(tmp_path / "old", signers[0])
    tiny = packages.make_package(tmp_path / "bundle", 1)
    (tmp_path / "new").mkdir()
    new = make_package(tiny.manifest, tiny.folder, tmp_path / "new")
    for package in (old, new):
        publish("hf://acme", package)
    main = fetch("hf://acme/tiny@main", tmp_path / "main")
    assert not list(main.glob("*.sig"))
    tag = fetch(f"hf://acme/tiny@sha-{old.sha12}", tmp_path / "tag")
    assert [file.name for file in tag.glob("*.sig")] == [signature_of(old)]
