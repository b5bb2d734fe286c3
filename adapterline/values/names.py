"""What an export may be called, and what it is called where that name does not fit."""

from __future__ import annotations

import hashlib
import re

from adapterline.errors import UsageError

NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]{0,95}")


def check_name(name: str) -> str:
    """`name`, if it can be a folder, a key prefix and a Hub repository; UsageError otherwise."""
    if not NAME_PATTERN.fullmatch(name) or name.endswith((".lock", ".git")) or ".." in name or "--" in name:
        raise UsageError(
            f"The name {name!r} cannot be used.",
            expected="[a-z0-9][a-z0-9._-]{0,95}, without '..' or '--' and not ending in .git (the Hub's rule)",
            remedy="Pass another --name.",
        )
    return name


def make_name(stem: str) -> str:
    """A valid name from a file or folder name. UsageError if nothing of it can be kept."""
    kept = re.sub(r"[^a-z0-9._-]+", "-", stem.lower())
    kept = re.sub(r"\.{2,}", ".", re.sub(r"-{2,}", "-", kept)).strip("-._")[:96].rstrip("-._")
    return check_name(kept)


def slug(name: str) -> str:
    """The Prefect artifact key of a name: made [a-z0-9-], and 6 hex digits of its sha256 so that two never meet."""
    return f"{re.sub(r'[^a-z0-9]+', '-', name).strip('-')}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
