"""Rendered images, from where they are published, and not a byte of another one."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Final

from adapterline.digests import sha256_of_bytes
from adapterline.errors import AdapterlineError, PublishError, from_os_error
from adapterline.lineage.answers import Lineage
from adapterline.values import IMAGE_PATH, RenderedImage

MOST_BYTES: Final = 64 << 20


def images_of(found: Lineage) -> tuple[RenderedImage, ...]:
    """What was rendered of a version, as its records say; the newest first."""
    told = [RenderedImage.model_validate(image) for run in found.runs for image in run["images"]]
    fit = (image for image in told if IMAGE_PATH.fullmatch(image.path) and image.size <= MOST_BYTES)
    return tuple({image.path: image for image in fit}.values())


def read_image(image: RenderedImage, locations: Iterable[str]) -> bytes:
    """Its bytes, from the first of the locations of its version that has it with its digest.

    PublishError, transient if one of them did not answer, where none has.
    """
    missed: list[str] = []
    transient = False
    for location in locations:
        try:
            data = _read(location, image)
        except AdapterlineError as error:
            missed.append(str(error))
            transient = transient or error.transient
            continue
        if data is not None and sha256_of_bytes(data) == image.sha256:
            return data
        missed.append(f"{location} has {'none' if data is None else 'other bytes'}.")
    raise PublishError(
        f"The image {image.path} is nowhere as it was published. {' '.join(missed)}".rstrip(),
        expected=f"the sha256 {image.sha256}",
        remedy="adapterline audit tells what else of this version was changed.",
        transient=transient,
    )


def _read(location: str, image: RenderedImage) -> bytes | None:
    """At most one byte more than it should have; None if it is not there."""
    if location.startswith("s3://"):
        return _read_s3(location, image)
    if location.startswith("hf://"):
        return _read_hub(location, image)
    try:
        with Path(location, image.path).open("rb") as file:
            return file.read(image.size + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise from_os_error(error, f"Reading {location}/{image.path}", otherwise=PublishError) from error


def _read_s3(location: str, image: RenderedImage) -> bytes | None:
    from adapterline.s3 import get_object, make_client, parse_s3_uri, s3_errors

    bucket, prefix = parse_s3_uri(location)
    client = make_client()
    try:
        with s3_errors(f"Reading {location}/{image.path}", PublishError):
            if (answer := get_object(client, bucket, f"{prefix}/{image.path}")) is None:
                return None
            with closing(answer["Body"]) as body:
                return body.read(image.size + 1)
    finally:
        client.close()


def _read_hub(location: str, image: RenderedImage) -> bytes | None:
    from adapterline.hub import hub_errors, open_hub, status_of

    repository, _, revision = location.removeprefix("hf://").partition("@")
    try:
        with hub_errors(f"Reading {location}/{image.path}", PublishError):
            return _download(open_hub().endpoint, repository, image, revision)
    except PublishError as error:
        if status_of(error.__cause__) == 404:
            return None
        raise


def _download(endpoint: str, repository: str, image: RenderedImage, revision: str) -> bytes:
    from huggingface_hub import get_session, hf_hub_url, hf_raise_for_status
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # exported when asked for

    url = hf_hub_url(repository, image.path, revision=revision or None, endpoint=endpoint)
    token = os.environ.get("HF_TOKEN") or None
    read = bytearray()
    with get_session().stream("GET", url, headers=build_hf_headers(token=token), follow_redirects=True) as answer:
        hf_raise_for_status(answer)
        for chunk in answer.iter_bytes():
            read += chunk
            if len(read) > image.size:
                break
    return bytes(read)
