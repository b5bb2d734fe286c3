"""Are provenance and signature of a published folder what its manifest and its signer say?"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adapterline.digests import sha256_of_bytes, sha256_of_file
from adapterline.errors import MachineError, UsageError
from adapterline.package.provenance import contradiction
from adapterline.package.signature import UNSIGNED_FOLDERS
from adapterline.validation.files import MANIFEST_NAME
from adapterline.validation.findings import Findings
from adapterline.values import (
    IMAGE_PATH,
    IMAGES,
    PROVENANCE_PATH,
    SIGNATURE_PATH,
    Manifest,
    ValidationReport,
    provenance_name,
    signature_name,
)

if TYPE_CHECKING:
    from model_signing.verifying import Config

PROVENANCE, SIGNATURE = "provenance", "signature"
_SAID = f"what {MANIFEST_NAME} says"
#: What some program loads or runs.
_LOADED = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".py", ".so")
#: In model-signing's list of differences.
_CHANGED = re.compile(r"Hash mismatch for \\*'(.+?)\\*': Expected")
_OTHERS = re.compile(r"(Extra files found|Missing files) in model \\*'.*?\\*': ([^\"'\]]+)")
_GIVE_A_KEY = "pass --public-key or --certificate-chain"


@dataclass(frozen=True)
class Trust:
    """Whose signatures count: of one key, or of what certificates vouch for. `required`: there has to be one."""

    public_key: Path | None = None
    certificate_chain: tuple[Path, ...] = ()
    required: bool = False

    def __post_init__(self) -> None:
        if self.public_key and self.certificate_chain:
            raise UsageError(
                "--public-key and --certificate-chain were given.", expected="what the signature was made with: one"
            )

    @property
    def has_key(self) -> bool:
        """Is there anything to check a signature with?"""
        return bool(self.public_key or self.certificate_chain)


def with_trust(report: ValidationReport, path: Path, trust: Trust) -> ValidationReport:
    """The report, with a check of the provenance and of the signature of what was published at `path`, a folder or a
    file in one. UsageError for a key that cannot be read; MachineError without the library.
    """
    findings = Findings(None, list(report.checks), dict(report.not_run))
    folder = path if path.is_dir() else path.parent
    data = _manifest_bytes(folder, path)
    if data is not None:
        _check_provenance(findings, folder, data)
    _check_signature(findings, folder, data, trust)
    return report.model_copy(update={"checks": tuple(findings.checks), "not_run": findings.not_run})


def _manifest_bytes(folder: Path, path: Path) -> bytes | None:
    """None if there is no manifest of adapterline, or the file is none of its files."""
    try:
        data = (folder / MANIFEST_NAME).read_bytes()
        manifest = Manifest.model_validate_json(data)
    except (OSError, ValueError):
        return None
    return data if path == folder or any(file.path == path.name for file in manifest.files) else None


def _check_provenance(findings: Findings, folder: Path, manifest: bytes) -> None:
    file = folder / provenance_name(sha256_of_bytes(manifest))
    if file.is_file():
        wrong = contradiction(file.read_bytes(), Manifest.model_validate_json(manifest), manifest)
    elif any(PROVENANCE_PATH.fullmatch(path.name) for path in folder.iterdir()):
        wrong = f"{MANIFEST_NAME} is not the one that it follows from"
    else:
        return
    findings.that(PROVENANCE, not wrong, observed=wrong or _SAID, limit=_SAID)


def _check_signature(findings: Findings, folder: Path, manifest: bytes | None, trust: Trust) -> None:
    """A signature that nothing is there to check with is not passed, and not failed unless one is insisted on."""
    there = sorted(file.name for file in folder.iterdir() if SIGNATURE_PATH.fullmatch(file.name))
    name = signature_name(sha256_of_bytes(manifest)) if manifest is not None else ""
    if name in there and trust.has_key:
        wrong = _wrong(folder, name, manifest or b"", trust)
    elif there and name not in there and (trust.has_key or trust.required):
        wrong = f"{MANIFEST_NAME} is not the one that was signed"
    elif trust.required:
        wrong = f"no key to check it with: {_GIVE_A_KEY}" if there else "there is none"
    else:
        if name in there:
            findings.not_run[SIGNATURE] = f"no key to check it with: {_GIVE_A_KEY}"
        elif there or trust.has_key:
            findings.not_run[SIGNATURE] = "there is none of this manifest" if there else "there is none"
        return
    findings.that(SIGNATURE, not wrong, observed=wrong or "valid", limit="valid")


def _wrong(folder: Path, name: str, manifest: bytes, trust: Trust) -> str:
    """What is wrong with the signature; "" if it is right."""
    from cryptography.exceptions import InvalidSignature

    verifier = _verifier(trust)
    try:
        bundle = json.loads((folder / name).read_bytes())
        certified = "x509CertificateChain" in bundle["verificationMaterial"]
        if certified == bool(trust.public_key):
            made, needed = ("certificate", "--certificate-chain") if certified else ("key", "--public-key")
            return f"it was made with a {made}: pass {needed}"
        _ignore(verifier, _of_others(folder, manifest))
        with contextlib.redirect_stdout(io.StringIO()):  # the library prints its advice
            verifier.verify(folder.resolve(), folder.resolve() / name)
        signed = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))["predicate"]["resources"]
        covered = {each["name"]: each["digest"] for each in signed}
    except InvalidSignature:
        return "it was made with another key, or was changed"
    except ValueError as error:
        return _readable(str(error))
    except Exception as error:  # whatever a broken bundle makes the library stumble over
        return f"it cannot be verified ({type(error).__name__}: {str(error)[:200]})"
    provenance = provenance_name(sha256_of_bytes(manifest))
    wanted = [*(file.path for file in Manifest.model_validate_json(manifest).files), MANIFEST_NAME, provenance]
    if missing := [path for path in wanted if path not in covered]:
        return f"it does not cover {', '.join(missing)}"
    strangers = sorted(_strangers(folder))
    return f"it does not cover {', '.join(strangers)}, which must not be there" if strangers else ""


def _ignore(verifier: Config, paths: list[str]) -> None:
    """These besides those that the signature itself names."""
    from model_signing import hashing

    config: hashing.Config = hashing.Config()  # type: ignore[no-untyped-call]
    verifier.set_hashing_config(config.set_ignored_paths(paths=paths))


def _of_others(folder: Path, manifest: bytes) -> list[str]:
    """Provenance and signatures of other manifests: in S3, of an exporter who came second and is not done."""
    digest = sha256_of_bytes(manifest)
    own = provenance_name(digest), signature_name(digest)
    kinds = PROVENANCE_PATH, SIGNATURE_PATH
    there = (path.name for path in folder.iterdir() if any(kind.fullmatch(path.name) for kind in kinds))
    return [name for name in there if name not in own]


def _strangers(folder: Path) -> Iterator[str]:
    """What lies among the images and in the folders of git and of downloads, which nobody signs, and does not belong.

    A loader that is given no file name takes the first that looks like weights, in whatever folder: of a repository,
    `images/pytorch_lora_weights.safetensors` comes before the one that was signed.
    """
    for place in UNSIGNED_FOLDERS:
        for path in (folder / place).rglob("*"):
            if not path.is_file():
                continue
            name = path.relative_to(folder).as_posix()
            image = IMAGE_PATH.fullmatch(name) and sha256_of_file(path).startswith(path.stem)
            if not image and (place == IMAGES or path.suffix in _LOADED):
                yield name


def _readable(message: str) -> str:
    """The library's message without the digests, which it shows as Python's bytes."""
    found = [f"{what}: {names}" for what, names in _OTHERS.findall(message)]
    if changed := _CHANGED.findall(message):
        found.append(f"Hash mismatch: {', '.join(changed)}")
    return "; ".join(found) or " ".join(message.split())


def _verifier(trust: Trust) -> Config:
    try:
        from model_signing import verifying
    except ImportError as error:
        raise MachineError(
            f"Signatures cannot be verified: {error}.",
            expected="the package model-signing",
            remedy="pip install 'adapterline[sign]'.",
        ) from error
    try:
        config: Config = verifying.Config()  # type: ignore[no-untyped-call]
        if trust.public_key:
            return config.use_elliptic_key_verifier(public_key=trust.public_key)
        return config.use_certificate_verifier(certificate_chain=trust.certificate_chain)
    except (OSError, ValueError) as error:
        names = ", ".join(map(str, filter(None, (trust.public_key, *trust.certificate_chain))))
        raise UsageError(
            f"{names} cannot be read: {error}.",
            expected="a public key on an elliptic curve, or certificates, in PEM",
            remedy="Correct --public-key or --certificate-chain.",
        ) from error
