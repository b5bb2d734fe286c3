"""What all readers ask of files and folders, and how they refuse a file that is not what its name says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeGuard

from adapterline.checkpoints.containers.base import FINAL_NAMES, STEP, NotMyKindError
from adapterline.errors import CheckpointError, CheckpointIncompleteError, from_os_error

_PLAIN_NAME = re.compile(r"(?!\.)[\w.-]{1,200}")
#: https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md: a pointer has less than 1024 bytes.
_POINTER: Final = b"version https://git-lfs.github.com/spec/"
_POINTED_SIZE = re.compile(rb"^size (\d{1,18})$", re.MULTILINE)
_PAGE = re.compile(rb"\s*<(!doctype html|html|\?xml)", re.IGNORECASE)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """An `OSError` inside is a CheckpointError about this file."""
    try:
        yield
    except OSError as error:
        raise from_os_error(error, f"Reading {path.name}", otherwise=CheckpointError) from error


def read_json(path: Path, most: int, expected: str) -> Any:
    """The value of a JSON file of at most `most` bytes.

    CheckpointIncompleteError if it is no whole JSON, CheckpointError if it is larger or something else.
    """
    with reading(path):
        if path.stat().st_size > most:
            raise CheckpointError(
                f"{path.name} has over {most} bytes.",
                expected=expected,
                remedy="Copy it again, or save the adapter again.",
            )
        data = path.read_bytes()
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise mistaken(path) or cut_off(f"{path.name} is not whole JSON.", expected) from error


def final_file(folder: Path) -> Path | None:
    """The final file in a folder, by the names that diffusers gives it; None without one."""
    return next((folder / name for name in FINAL_NAMES if (folder / name).is_file()), None)


def refuse_where_final(folder: Path) -> None:
    """NotMyKindError for a folder with a final file: that is preferred to what else is in it."""
    if final := final_file(folder):
        raise NotMyKindError(f"{final.name} in it is preferred")


def step_of(folder: Path, named: re.Pattern[str] = STEP) -> int | None:
    """The step that a folder's own name says."""
    match = named.fullmatch(folder.name)
    return int(match[1]) if match else None


def is_plain_name(value: Any) -> TypeGuard[str]:
    """Is it the name of something that lies beside the file that names it: no path, and nothing hidden?"""
    return isinstance(value, str) and _PLAIN_NAME.fullmatch(value) is not None


def cut_off(found: str, expected: str) -> CheckpointIncompleteError:
    """The refusal of a file that is not whole."""
    return CheckpointIncompleteError(
        found, expected=expected, remedy="If it is still being written, wait for its end; otherwise copy it again."
    )


def mistaken(path: Path) -> CheckpointError | None:
    """The refusal of a file whose first bytes tell what it is instead; None if they do not."""
    with reading(path), path.open("rb") as file:
        head = file.read(1024)
    if head.startswith(_POINTER):
        size = _POINTED_SIZE.search(head)
        return CheckpointError(
            f"{path.name} is a Git LFS pointer: a short text that stands for the file.",
            expected="the file itself" + (f", of {int(size[1])} bytes" if size else ""),
            remedy="Run `git lfs pull` in the repository that it is from, or download the file again.",
        )
    if _PAGE.match(head):
        return CheckpointError(
            f"{path.name} is a web page.",
            expected="the file itself",
            remedy="Download it again by its direct link, with a token if that asks to log in.",
        )
    if head.startswith(b"PK\x03\x04"):
        return CheckpointError(
            f"{path.name} is a zip archive, as torch.save writes it.",
            expected="such a file under a name that ends in .pt, .pth, .bin or .ckpt",
            remedy="Rename it if torch.save wrote it; if it is a packed folder, unpack it.",
        )
    if path.suffix != ".safetensors" and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:
        return CheckpointError(
            f"{path.name} is a safetensors file.",
            expected="such a file under a name that ends in .safetensors",
            remedy="Rename it.",
        )
    if head and not head.strip(b"\0"):
        return cut_off(f"{path.name} has zeros where its header should be.", "a whole file")
    return None
