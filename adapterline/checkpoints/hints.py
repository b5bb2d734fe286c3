"""What makes one family likelier than another and proves nothing: for `inspect` alone, where nothing better tells.

    the name of the base         in the parts of a path of the trainer's machine: `/data/FLUX.1-dev`
    tags in README.md            which people put there too
    the files beside a file      which may be another adapter's; of a folder they are evidence

None of this decides anything in an export: see `evidence` for what does. A path is not shown.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from adapterline.checkpoints.architectures import architecture_of
from adapterline.checkpoints.containers.base import STEP
from adapterline.checkpoints.evidence import bases_in_folder, bases_named, folders_of, in_folder
from adapterline.checkpoints.stated import card_of
from adapterline.families import FAMILIES
from adapterline.families.aliases import shipped_family
from adapterline.families.shipped import SHIPPED
from adapterline.values import Source


@dataclass(frozen=True)
class Hint:
    """One of them: what it is, and the family that it speaks for."""

    text: str
    family: str


def hints_of(source: Source) -> Iterator[Hint]:
    """Every hint, what is nearest to the tensors first."""
    yield from _of_paths(bases_named(source))
    for folder in dict.fromkeys((*folders_of(source), *_folders_around(source.path))):
        tags = card_of(folder).get("tags")
        for tag in tags if isinstance(tags, list) else ():
            if family := _family_of_tag(tag):
                yield Hint(f"a tag of README.md is {tag!r}", family)
        yield from (Hint(str(each), each.family) for each in in_folder(folder) if each.family)
        yield from _of_paths(bases_in_folder(folder))


def _of_paths(named: Iterable[tuple[str, Any]]) -> Iterator[Hint]:
    for where, base in named:
        if family := _family_of_path(base):
            yield Hint(f"{where} names a base that is called as one of its bases is", family)


def _folders_around(path: Path) -> Iterator[Path]:
    """Where a file or folder lies, and where the folder of its step lies."""
    folder = path if path.is_dir() else path.parent
    yield folder
    if STEP.fullmatch(folder.name):
        yield folder.parent


def _family_of_tag(tag: Any) -> str | None:
    if not isinstance(tag, str):
        return None
    own = next((family.name for family in FAMILIES if tag in family.tags and not tag.startswith("text-to-")), None)
    meant = architecture_of(tag)
    return own or (meant.families[0] if meant else None)


def _family_of_path(base: Any) -> str | None:
    """By the last part that has a base's name."""
    parts = re.split(r"[/\\]", base) if isinstance(base, str) and len(base) < 4096 else []
    return next((family for part in reversed(parts) if (family := _family_of_name(part))), None)


def _family_of_name(name: str) -> str | None:
    stem = re.sub(r"\.(safetensors|ckpt|sft|gguf|bin|pth?)$", "", name.lower())
    meant = architecture_of(stem)
    return meant.families[0] if meant else _names().get(_plain(stem))


@cache
def _names() -> dict[str, str]:
    """Families by the names that people give to folders of their bases, without dots and dashes."""
    names = {_plain(family.name): family.name for family in FAMILIES}
    for base in SHIPPED:
        family = shipped_family(base.alias).name
        names |= {_plain(base.alias): family, _plain(base.model.rpartition("/")[2]): family}
    return names


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
