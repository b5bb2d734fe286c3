"""Keys and certificates to sign with."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

PASSWORD = "canary-password-of-the-signing-key"


@dataclass(frozen=True)
class Identity:
    """PEM files: a private key, the same encrypted with `PASSWORD`, its public key, its certificate and who made it."""

    key: Path
    encrypted: Path
    public: Path
    certificate: Path
    intermediate: Path
    root: Path


def make_identity(folder: Path, curve: ec.EllipticCurve | None = None) -> Identity:
    folder.mkdir(parents=True)
    key, root_key, middle_key = (ec.generate_private_key(curve or ec.SECP256R1()) for _ in range(3))
    root = _certificate("root", root_key, "root", root_key, authority=True)
    middle = _certificate("middle", middle_key, "root", root_key, authority=True)
    own = _certificate("signer", key, "middle", middle_key, authority=False)
    password = BestAvailableEncryption(PASSWORD.encode())
    written = {
        "key.pem": _private(key, NoEncryption()),
        "encrypted.pem": _private(key, password),
        "key.pub": key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        "signer.crt": own.public_bytes(Encoding.PEM),
        "middle.crt": middle.public_bytes(Encoding.PEM),
        "root.crt": root.public_bytes(Encoding.PEM),
    }
    for name, data in written.items():
        (folder / name).write_bytes(data)
    return Identity(*(folder / name for name in written))


def _private(key: ec.EllipticCurvePrivateKey, encryption: KeySerializationEncryption) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


def _certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: str,
    issuer_key: ec.EllipticCurvePrivateKey,
    *,
    authority: bool,
) -> x509.Certificate:
    def called(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

    now = datetime.now(UTC) - timedelta(days=1)
    usage = x509.KeyUsage(not authority, False, False, False, False, authority, authority, False, False)
    return (
        x509.CertificateBuilder()
        .subject_name(called(name))
        .issuer_name(called(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=30))
        .add_extension(x509.BasicConstraints(authority, None), critical=True)
        .add_extension(usage, critical=True)
        .sign(issuer_key, hashes.SHA256())
    )


@pytest.fixture(scope="session")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return make_identity(tmp_path_factory.mktemp("signing") / "ours")


@pytest.fixture(scope="session")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return make_identity(tmp_path_factory.mktemp("signing") / "theirs")
