"""A signature of an export in OpenSSF's format, which `model_signing verify` checks.

A Sigstore bundle (v0.3) with one DSSE envelope, whose payload is an in-toto statement that lists the sha256 of each
file (https://github.com/ossf/model-signing-spec, `model_signing._signing.signing.Payload`). It covers the files of the
bundle, the manifest and the provenance. The card is not covered: people edit it. Images are not: machines differ.

The same export and key give the same bytes: ECDSA is deterministic (RFC 6979), where the signer of model-signing draws
a random number. So a second run finds its own signature and changes nothing.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterline.errors import MachineError, UsageError, from_os_error
from adapterline.package.card import CARD_NAME
from adapterline.values import IMAGES, signature_name

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.x509 import Certificate

    from adapterline.settings import Settings

MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"
#: What may lie in the folder and is not signed; anything else that is added makes the verification fail.
UNSIGNED_FOLDERS = (IMAGES, ".cache", ".git", ".github")
UNSIGNED = (CARD_NAME, "latest.json", ".gitattributes", ".gitignore", *UNSIGNED_FOLDERS)
_HASHES = {"secp256r1": "SHA256", "secp384r1": "SHA384", "secp521r1": "SHA512"}


@dataclass(frozen=True)
class Signer:
    """A private key, and the certificates that vouch for it, the key's own first; none: the public key is passed on."""

    key: EllipticCurvePrivateKey = field(repr=False)
    certificates: tuple[Certificate, ...] = ()

    def sign(self, name: str, manifest_sha256: str, files: Mapping[str, str]) -> bytes:
        """The bytes of the signature of `files`, path -> sha256, for the export `name`."""
        payload = _payload(name, manifest_sha256, files)
        bundle = {
            "mediaType": MEDIA_TYPE,
            "verificationMaterial": {**self._material(), "tlogEntries": []},
            "dsseEnvelope": {
                "payload": _base64(payload),
                "payloadType": PAYLOAD_TYPE,
                "signatures": [{"sig": _base64(self._signature(payload)), "keyid": ""}],
            },
        }
        return (json.dumps(bundle, sort_keys=True) + "\n").encode()

    def _signature(self, payload: bytes) -> bytes:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec

        # DSSE's pre-authentication encoding (https://github.com/secure-systems-lab/dsse/blob/master/protocol.md)
        encoded = b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload)
        algorithm = getattr(hashes, _HASHES[self.key.curve.name])()
        try:
            return self.key.sign(encoded, ec.ECDSA(algorithm, deterministic_signing=True))
        except UnsupportedAlgorithm as error:
            raise MachineError(
                f"The installed cryptography cannot sign deterministically: {error}.",
                expected="one with OpenSSL 3.2 or later",
                remedy="Install cryptography from PyPI.",
            ) from error

    def _material(self) -> dict[str, Any]:
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        if self.certificates:
            chain = [{"rawBytes": _base64(each.public_bytes(Encoding.DER))} for each in self.certificates]
            return {"x509CertificateChain": {"certificates": chain}}
        public = self.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        return {"publicKey": {"hint": hashlib.sha256(public).hexdigest()}}


def open_signer(settings: Settings) -> Signer | None:
    """The signer that `ADAPTERLINE_SIGNING_KEY` and its like name; None without a key.

    UsageError for a key or a certificate that cannot be used. Nothing of the key or its password is in a message.
    """
    if settings.signing_key is None:
        return None
    key = _private_key(settings)
    paths = ([settings.signing_certificate] if settings.signing_certificate else []) + list(
        settings.signing_chain or ()
    )
    certificates = tuple(_certificates(paths))
    if settings.signing_certificate and certificates[0].public_key() != key.public_key():
        raise UsageError(
            f"{settings.signing_certificate} is the certificate of another key than {settings.signing_key}.",
            expected="the certificate of the signing key",
            remedy="Correct ADAPTERLINE_SIGNING_CERTIFICATE or ADAPTERLINE_SIGNING_KEY.",
        )
    return Signer(key, certificates)


def _private_key(settings: Settings) -> EllipticCurvePrivateKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    assert settings.signing_key is not None
    secret = settings.signing_key_password
    password = secret.get_secret_value().encode() if secret else None
    try:
        key = load_pem_private_key(_read(settings.signing_key), password)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # Not as its cause: what the library says of a key stays here.
        raise UsageError(
            f"The signing key {settings.signing_key} cannot be read.",
            expected="a private key in PEM, and ADAPTERLINE_SIGNING_KEY_PASSWORD if, and only if, it is encrypted",
            remedy="Check both.",
        ) from None
    if not isinstance(key, EllipticCurvePrivateKey) or key.curve.name not in _HASHES:
        raise UsageError(
            f"The signing key {settings.signing_key} is of a kind that is not signed with.",
            expected=f"one on the elliptic curve {', '.join(_HASHES)}",
            remedy="Make one with: openssl ecparam -name prime256v1 -genkey -noout.",
        )
    return key


def _certificates(paths: Iterable[Path]) -> Iterable[Certificate]:
    from cryptography.x509 import load_pem_x509_certificates

    for path in paths:
        try:
            yield from load_pem_x509_certificates(_read(path))
        except ValueError as error:
            raise UsageError(f"{path} cannot be read: {error}.", expected="certificates in PEM") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise from_os_error(error, f"Reading {path}", otherwise=UsageError) from error


def _payload(name: str, manifest_sha256: str, files: Mapping[str, str]) -> bytes:
    root = hashlib.sha256(b"".join(bytes.fromhex(sha256) for _, sha256 in sorted(files.items()))).hexdigest()
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": name, "digest": {"sha256": root}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "resources": [
                {"name": path, "algorithm": "sha256", "digest": sha256} for path, sha256 in sorted(files.items())
            ],
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": [signature_name(manifest_sha256), *UNSIGNED],
            },
        },
    }
    return json.dumps(statement, sort_keys=True, separators=(",", ":")).encode()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
