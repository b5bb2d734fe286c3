"""A signature covers the files, the manifest and the provenance: whatever is changed, added or taken away is found."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from adapterline.errors import UsageError
from adapterline.package import make_package
from adapterline.package.signature import Signer, open_signer
from adapterline.package.verification import Trust, with_trust
from adapterline.settings import Settings
from adapterline.values import WEIGHT_NAME, Check, Manifest, Package, ValidationReport, signature_name
from tests import packages
from tests.signing_fixtures import PASSWORD, Identity, make_identity

REPORT = ValidationReport(
    bundle_digest="0" * 64, checks=(Check(name="loads", observed="yes", limit="yes", passed=True),)
)


def signer_of(identity: Identity, **more: Any) -> Signer:
    signer = open_signer(Settings(signing_key=identity.key, **more))
    assert signer is not None
    return signer


def certified(identity: Identity) -> Signer:
    return signer_of(identity, signing_certificate=identity.certificate, signing_chain=(identity.intermediate,))


def pack(folder: Path, signer: Signer | None) -> Package:
    """What is published, as it lies at a destination."""
    tiny = packages.make_package(folder.with_name(f"{folder.name}-bundle"))
    folder.mkdir()
    made = make_package(tiny.manifest, tiny.folder, folder, signer=signer)
    (folder / "manifest.json").write_bytes(made.manifest_bytes)
    return made


@pytest.fixture
def published(tmp_path: Path, identity: Identity) -> Path:
    pack(tmp_path / "published", signer_of(identity))
    return tmp_path / "published"


def checks(folder: Path, trust: Trust) -> dict[str, Check]:
    report = with_trust(REPORT, folder, trust)
    return {check.name: check for check in report.checks if check.name != "loads"}


def signature_in(folder: Path) -> Path:
    (found,) = folder.glob("model-*.sig")
    return found


def test_the_signature_is_named_by_the_manifest_and_is_valid_with_the_key_that_made_it(
    published: Path, identity: Identity
) -> None:
    digest = hashlib.sha256((published / "manifest.json").read_bytes()).hexdigest()
    assert signature_in(published).name == signature_name(digest)
    found = checks(published, Trust(identity.public))
    assert {name: check.passed for name, check in found.items()} == {"provenance": True, "signature": True}


@pytest.mark.parametrize("curve", [ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
def test_the_other_curves_of_the_format_sign_too(tmp_path: Path, curve: ec.EllipticCurve) -> None:
    identity = make_identity(tmp_path / "identity", curve)
    pack(tmp_path / "published", signer_of(identity))
    assert checks(tmp_path / "published", Trust(identity.public))["signature"].passed


def test_a_certificate_is_as_good_as_what_vouches_for_it(
    tmp_path: Path, identity: Identity, stranger: Identity
) -> None:
    pack(tmp_path / "published", certified(identity))
    assert checks(tmp_path / "published", Trust(certificate_chain=(identity.root,)))["signature"].passed
    other = checks(tmp_path / "published", Trust(certificate_chain=(stranger.root,)))["signature"]
    assert not other.passed
    assert "certificate" in str(other.observed)


def test_the_library_itself_verifies_it_with_the_command_that_the_card_shows(
    published: Path, identity: Identity
) -> None:
    command = re.search(r"```console\nmodel_signing (.*)\n```", (published / "README.md").read_text())
    assert command
    shutil.copy(identity.public, published.parent / "signer.pub")
    arguments = command[1].replace("signer.pub", "../signer.pub").split()
    run: Callable[[], subprocess.CompletedProcess[str]] = lambda: subprocess.run(  # noqa: E731
        [sys.executable, "-m", "model_signing", *arguments],
        cwd=published,
        capture_output=True,
        text=True,
        check=False,
    )
    done = run()
    assert (done.returncode, done.stdout.strip()) == (0, "Verification succeeded"), done.stderr
    with (published / WEIGHT_NAME).open("ab") as file:
        file.write(b"!")
    assert run().returncode == 1


def test_the_same_export_and_key_give_the_same_bytes(tmp_path: Path, identity: Identity) -> None:
    one, two = (pack(tmp_path / name, signer_of(identity)) for name in ("one", "two"))
    assert signature_in(one.folder).read_bytes() == signature_in(two.folder).read_bytes()
    assert one.files == two.files


def test_the_card_is_the_same_whether_signed_or_not(tmp_path: Path, identity: Identity) -> None:
    one, two = pack(tmp_path / "one", signer_of(identity)), pack(tmp_path / "two", None)
    assert (one.folder / "README.md").read_bytes() == (two.folder / "README.md").read_bytes()
    assert not list(two.folder.glob("*.sig"))


def change_weights(folder: Path) -> None:
    with (folder / WEIGHT_NAME).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")


def link_weights(folder: Path) -> None:
    (folder / WEIGHT_NAME).rename(folder.parent / "elsewhere")
    (folder / WEIGHT_NAME).symlink_to(folder.parent / "elsewhere")


def edit_manifest(folder: Path) -> None:
    file = folder / "manifest.json"
    file.write_bytes(file.read_bytes().replace(b'"rank": 4', b'"rank": 8'))


def provenance_in(folder: Path) -> Path:
    (found,) = folder.glob("provenance-*.json")
    return found


def edit_provenance(folder: Path) -> None:
    file = provenance_in(folder)
    file.write_bytes(file.read_bytes().replace(b"checkpoint-7", b"checkpoint-8"))


def edit_payload(folder: Path) -> None:
    """The digest of the changed weights in the payload, which is not signed again."""
    change_weights(folder)
    rewrite(folder, lambda payload: payload["subject"][0].update(name="another"))


def edit_signature(folder: Path) -> None:
    file = signature_in(folder)
    bundle = json.loads(file.read_bytes())
    raw = bytearray(base64.b64decode(bundle["dsseEnvelope"]["signatures"][0]["sig"]))
    raw[-1] ^= 1
    bundle["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(raw).decode()
    file.write_text(json.dumps(bundle))


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    file = signature_in(folder)
    bundle = json.loads(file.read_bytes())
    payload = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    change(payload)
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(payload).encode()).decode()
    file.write_text(json.dumps(bundle))


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (change_weights, f"^Hash mismatch: {WEIGHT_NAME}$"),
        (lambda folder: (folder / "config.py").write_text("import os"), "^Extra files found: config.py$"),
        (lambda folder: (folder / WEIGHT_NAME).unlink(), f"^Missing files: {WEIGHT_NAME}$"),
        (lambda folder: provenance_in(folder).unlink(), r"^Missing files: provenance-\w+\.json$"),
        (link_weights, "because it is a symlink"),
        (edit_manifest, "manifest.json is not the one that was signed"),
        (edit_provenance, r"^Hash mismatch: provenance-\w+\.json$"),
        (edit_payload, "made with another key, or was changed"),
        (edit_signature, "made with another key, or was changed"),
        (lambda folder: signature_in(folder).write_text("{}"), "cannot be verified"),
        (lambda folder: signature_in(folder).write_text("not JSON"), "Expecting value"),
    ],
    ids=[
        *("changed", "added", "removed", "provenance removed", "symlinked", "manifest edited", "provenance edited"),
        *("payload edited", "signature edited", "signature emptied", "signature no JSON"),
    ],
)
def test_whatever_is_changed_is_found_and_named(
    published: Path, identity: Identity, tamper: Callable[[Path], object], message: str
) -> None:
    tamper(published)
    found = checks(published, Trust(identity.public))["signature"]
    assert not found.passed
    assert re.search(message, str(found.observed)), found.observed


@pytest.mark.parametrize(
    "name",
    [
        *("README.md", "latest.json", ".gitattributes", ".cache/huggingface/download/README.md.metadata"),
        f"images/{hashlib.sha256(b'edited').hexdigest()[:16]}.png",
    ],
)
def test_what_people_edit_or_a_destination_adds_is_not_covered(published: Path, identity: Identity, name: str) -> None:
    (published / name).parent.mkdir(parents=True, exist_ok=True)
    (published / name).write_bytes(b"edited")
    assert checks(published, Trust(identity.public))["signature"].passed


@pytest.mark.parametrize(
    "name",
    [
        *(f"images/{WEIGHT_NAME}", f".cache/{WEIGHT_NAME}", f".git/a/{WEIGHT_NAME}", ".github/run.py"),
        *("images/0123456789abcdef.png", "images/a/text"),
    ],
)
def test_nothing_that_is_loaded_hides_where_nobody_signs(published: Path, identity: Identity, name: str) -> None:
    (published / name).parent.mkdir(parents=True)
    (published / name).write_bytes(b"hidden")
    found = checks(published, Trust(identity.public))["signature"]
    assert (found.passed, found.observed) == (False, f"it does not cover {name}, which must not be there")


def test_a_link_to_the_published_folder_is_that_folder(published: Path, identity: Identity) -> None:
    (published.parent / "newest").symlink_to(published)
    assert checks(published.parent / "newest", Trust(identity.public))["signature"].passed


def test_another_key_and_the_wrong_kind_of_key_are_told(
    published: Path, tmp_path: Path, identity: Identity, stranger: Identity
) -> None:
    other = checks(published, Trust(stranger.public))["signature"]
    assert not other.passed
    assert "Key mismatch" in str(other.observed)
    kind = checks(published, Trust(certificate_chain=(identity.root,)))["signature"]
    assert "it was made with a key: pass --public-key" in str(kind.observed)
    pack(tmp_path / "certified", certified(identity))
    kind = checks(tmp_path / "certified", Trust(identity.public))["signature"]
    assert "it was made with a certificate: pass --certificate-chain" in str(kind.observed)


def test_a_signature_that_leaves_a_file_out_is_not_enough(tmp_path: Path, identity: Identity) -> None:
    made = pack(tmp_path / "published", None)
    digest = hashlib.sha256(made.manifest_bytes).hexdigest()
    signer = signer_of(identity)
    (made.folder / signature_name(digest)).write_bytes(signer.sign("tiny", digest, {"manifest.json": digest}))
    provenance = provenance_in(made.folder)
    for path in (made.folder / WEIGHT_NAME, provenance):  # else they are extra files
        path.unlink()
    found = checks(made.folder, Trust(identity.public))["signature"]
    assert found.observed == f"it does not cover {WEIGHT_NAME}, {provenance.name}"


def test_without_a_key_a_signature_is_not_checked_rather_than_passed_unless_one_is_required(published: Path) -> None:
    report = with_trust(REPORT, published, Trust())
    assert "signature" not in {check.name for check in report.checks}
    assert report.not_run["signature"] == "no key to check it with: pass --public-key or --certificate-chain"
    required = checks(published, Trust(required=True))["signature"]
    assert not required.passed
    assert "no key" in str(required.observed)


def test_one_that_is_required_has_to_be_there(tmp_path: Path, identity: Identity) -> None:
    folder = pack(tmp_path / "published", None).folder
    assert "signature" not in checks(folder, Trust())
    assert with_trust(REPORT, folder, Trust(identity.public)).not_run["signature"] == "there is none"
    required = checks(folder, Trust(identity.public, required=True))["signature"]
    assert (required.passed, required.observed) == (False, "there is none")
    bare = tmp_path / "bare"
    bare.mkdir()
    assert not checks(bare, Trust(identity.public, required=True))["signature"].passed


def test_a_manifest_taken_away_does_not_make_a_signature_disappear(published: Path, identity: Identity) -> None:
    (published / "manifest.json").unlink()
    assert not checks(published, Trust(identity.public))["signature"].passed


def test_an_edited_provenance_is_found_without_a_signature_as_well(tmp_path: Path) -> None:
    folder = pack(tmp_path / "published", None).folder
    assert checks(folder, Trust())["provenance"].passed
    before = provenance_in(folder).read_bytes()
    edit_provenance(folder)
    assert checks(folder, Trust())["provenance"].observed == "it does not name the checkpoint checkpoint-7"
    provenance_in(folder).write_bytes(before.replace(WEIGHT_NAME.encode(), b"other.safetensors"))
    assert checks(folder, Trust())["provenance"].observed == "its subjects are other files"
    provenance_in(folder).write_bytes(b"{}")
    assert "no in-toto statement" in str(checks(folder, Trust())["provenance"].observed)
    provenance_in(folder).write_bytes(before)
    edit_manifest(folder)
    assert "is not the one that it follows from" in str(checks(folder, Trust())["provenance"].observed)


def test_provenance_of_a_version_that_says_more_is_as_good(tmp_path: Path) -> None:
    folder = pack(tmp_path / "published", None).folder
    statement = json.loads(provenance_in(folder).read_bytes())
    statement["predicate"]["buildDefinition"]["resolvedDependencies"].append({"name": "dataset", "uri": "hf://a/b"})
    statement["predicate"]["buildDefinition"]["externalParameters"]["more"] = 1
    provenance_in(folder).write_text(json.dumps(statement))
    assert checks(folder, Trust())["provenance"].passed


# --- the key ----------------------------------------------------------------------------------------------------------


def test_an_encrypted_key_signs_with_its_password_and_tells_nothing_without(identity: Identity) -> None:
    right = open_signer(Settings(signing_key=identity.encrypted, signing_key_password=PASSWORD))
    assert right is not None
    assert PASSWORD not in repr(right)
    for password in (None, f"{PASSWORD}!"):
        with pytest.raises(UsageError, match="cannot be read") as caught:
            open_signer(Settings(signing_key=identity.encrypted, signing_key_password=password))
        assert PASSWORD not in f"{caught.value!r} {caught.value.__cause__!r} {caught.value.__context__!r}"


def test_a_key_or_certificate_that_cannot_be_used_is_refused(
    tmp_path: Path, identity: Identity, stranger: Identity
) -> None:
    other = tmp_path / "rsa.pem"
    key = rsa.generate_private_key(65537, 2048)
    other.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(UsageError, match="of a kind that is not signed with"):
        open_signer(Settings(signing_key=other))
    with pytest.raises(UsageError, match="No such file"):
        open_signer(Settings(signing_key=tmp_path / "nowhere.pem"))
    with pytest.raises(UsageError, match="of another key"):
        open_signer(Settings(signing_key=identity.key, signing_certificate=stranger.certificate))
    with pytest.raises(UsageError, match="cannot be read"):
        open_signer(Settings(signing_key=identity.key, signing_certificate=identity.key))
    with pytest.raises(UsageError, match="signing_key is not"):
        Settings(signing_certificate=identity.certificate)
    assert open_signer(Settings()) is None


def test_what_to_check_with_has_to_be_readable_and_of_one_kind(published: Path, identity: Identity) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        checks(published, Trust(identity.key))
    with pytest.raises(UsageError, match="were given"):
        Trust(identity.public, (identity.root,))


def test_the_manifest_round_trips(published: Path) -> None:
    data = (published / "manifest.json").read_bytes()
    assert Manifest.model_validate_json(data).to_bytes() == data
