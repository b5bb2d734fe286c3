"""What an export and an alias may be called, and what an export is called where its name does not fit."""

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


ALIAS_PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
#: What is, or may be, the name of something else: a version, the Hub's branches and tags.
_NO_ALIAS = re.compile(r"[0-9a-f]{8,}|main|(stage|sha)-.*|.*\.\..*|.*\.(lock)?")


def is_alias(text: str) -> bool:
    """Can it be the name of an alias, `latest` among them?"""
    return bool(ALIAS_PATTERN.fullmatch(text)) and not _NO_ALIAS.fullmatch(text)


def check_alias(alias: str) -> str:
    """`alias`, if it can be a file name and a branch of the Hub; UsageError otherwise."""
    if not is_alias(alias):
        raise UsageError(
            f"The alias {alias!r} cannot be used.",
            expected="[a-z0-9][a-z0-9._-]{0,62}, without '..' and not ending in '.' or '.lock'; not 'main', 'stage-…', "
            "'sha-…' or a digest, which mean something else",
            remedy="Pass another --alias.",
        )
    return alias


def make_name(stem: str) -> str:
    """A valid name from a file or folder name. UsageError if nothing of it can be kept."""
    kept = re.sub(r"[^a-z0-9._-]+", "-", stem.lower())
    kept = re.sub(r"\.{2,}", ".", re.sub(r"-{2,}", "-", kept)).strip("-._")[:96].rstrip("-._")
    return check_name(kept)


def slug(name: str) -> str:
    """The Prefect artifact key of a name: made [a-z0-9-], and 6 hex digits of its sha256 so that two never meet."""
    return f"{re.sub(r'[^a-z0-9]+', '-', name).strip('-')}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
