"""Pixels: from what a pipeline gives to a PNG with base and adapted image side by side."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterline.values import IMAGES, RenderedImage

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

_GAP = 8  # white pixels between two images
#: What an image artifact may have of an image, in bytes of JPEG, and the longest side that it begins with.
_PREVIEW_BYTES, _PREVIEW_SIDE = 60_000, 1024


@dataclass(frozen=True)
class Picture:
    """8-bit RGB pixels [height, width, 3], and how many of the pipeline's values were NaN or infinite; those are 0."""

    pixels: np.ndarray[Any, Any]
    infinite: int


def pictures_of(output: Any) -> list[Picture]:
    """The one image of a pipeline's output, or the first, the middle and the last frame of its video.

    AttributeError if the output has neither.
    """
    if hasattr(output, "frames"):
        frames = output.frames[0]
        chosen = sorted({0, (len(frames) - 1) // 2, len(frames) - 1})
        return [_picture(frames[number]) for number in chosen]
    return [_picture(output.images[0])]


def _picture(values: Any) -> Picture:
    """From [height, width, channels] in [0, 1], or a PIL image."""
    import numpy as np

    array = np.asarray(values)
    array = array / 255.0 if array.dtype == np.uint8 else array.astype(np.float64)
    array = (
        array[..., :3]
        if array.ndim == 3 and array.shape[-1] >= 3
        else np.repeat(array.reshape(*array.shape[:2], 1), 3, -1)
    )
    finite = np.isfinite(array)
    pixels = (np.where(finite, array, 0.0).clip(0, 1) * 255).round().astype(np.uint8)
    return Picture(pixels, int((~finite).sum()))


def save_beside(
    plain: Sequence[Picture], adapted: Sequence[Picture], folder: Path, prompt: str, seed: int
) -> RenderedImage:
    """Base left and adapted right; of a video the base's frames above the adapted ones. OSError if the disk fails.

    The file is named by its bytes, and has nothing in it but pixels.
    """
    rows = [_row([*plain, *adapted])] if len(plain) == 1 else [_row(plain), _row(adapted)]
    image = _stacked(rows)
    data = io.BytesIO()
    image.save(data, "PNG")
    digest = hashlib.sha256(data.getvalue()).hexdigest()
    path = f"{IMAGES}/{digest[:16]}.png"
    (folder / IMAGES).mkdir(parents=True, exist_ok=True)
    (folder / path).write_bytes(data.getvalue())
    return RenderedImage(
        path=path,
        size=len(data.getvalue()),
        sha256=digest,
        width=image.width,
        height=image.height,
        prompt=prompt,
        seed=seed,
    )


def preview(path: Path) -> str:
    """The image as a data: URI of at most some 80 KB: smaller, as JPEG."""
    from PIL import Image

    with Image.open(path) as opened:
        image = opened.convert("RGB")
    side, data = _PREVIEW_SIDE, b""
    while not data or (len(data) > _PREVIEW_BYTES and side > 64):
        small = image.copy()
        small.thumbnail((side, side))
        stream = io.BytesIO()
        small.save(stream, "JPEG", quality=85)
        data, side = stream.getvalue(), side * 3 // 4
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()


def _row(pictures: Sequence[Picture]) -> Image:
    from PIL import Image

    images = [Image.fromarray(picture.pixels) for picture in pictures]
    width = sum(image.width for image in images) + _GAP * (len(images) - 1)
    row = Image.new("RGB", (width, max(image.height for image in images)), "white")
    left = 0
    for image in images:
        row.paste(image, (left, 0))
        left += image.width + _GAP
    return row


def _stacked(rows: Sequence[Image]) -> Image:
    from PIL import Image

    height = sum(row.height for row in rows) + _GAP * (len(rows) - 1)
    stack = Image.new("RGB", (max(row.width for row in rows), height), "white")
    top = 0
    for row in rows:
        stack.paste(row, (0, top))
        top += row.height + _GAP
    return stack
