"""A checkpoint on the Hub becomes files in a folder, all of one commit; of a base only the configurations do.

Nothing is executed and no code is fetched. Paths come from a server, so none is trusted, and every file is compared
with what the repository states of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from adapterline.checkpoints import is_wanted
from adapterline.digests import sha256_of_file
from adapterline.errors import CheckpointError, FamilyError, UsageError
from adapterline.hub import Commit, hub_errors, is_repo_name, open_hub

if TYPE_CHECKING:
    from huggingface_hub import HfApi, RepoFile

#: The revision ends at the slash, except in the Hub's names for pull requests and conversions.
_URI = re.compile(r"hf://(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>refs/(?:pr|convert)/[^/]+|[^/]+))?(?:/(?P<path>.*))?")
_INDEXES = ("model_index.json", "modular_model_index.json")
_BASE_CONFIGS = (*_INDEXES, "*/config.json")


def fetch_hub(uri: str, folder: Path, *, endpoint: str | None = None, token: str | None = None) -> Path:
    """Fetches what `hf://org/name[@revision][/path]` names into `folder`, under the paths of the repository.

    The local path of the named file is returned, else that of the folder, of which only those files are fetched that an
    adapter can be made of. The files have the times of the commits that changed them last. UsageError for a bad URI;
    CheckpointError for what is missing, forbidden or damaged, transient if the Hub is not reached.
    """
    place = _parse(uri)
    with hub_errors(f"Reading {uri}", CheckpointError):
        commit = _resolve(open_hub(endpoint, token), place.repo_id, place.revision)
        chosen = _choose(commit, place.path, uri)
        _fetch(commit, chosen, folder, keep_times=True)
    return folder / place.path


def fetch_base_configs(
    model_id: str, revision: str | None, folder: Path, *, endpoint: str | None = None, token: str | None = None
) -> tuple[Path, str]:
    """The `model_index.json` and `*/config.json` of a diffusers pipeline: the folder that has them, and their commit.

    FamilyError if there is no such pipeline, or none that we may see; a transient CheckpointError if the Hub is not
    reached.
    """
    if len(parts := model_id.split("/")) > 2 or not all(map(is_repo_name, parts)):
        raise FamilyError(f"The base {model_id!r} is no Hub id.", expected="org/name")
    try:
        with hub_errors(f"Reading the base {model_id}", CheckpointError):
            commit = _resolve(open_hub(endpoint, token), model_id, revision)
            chosen = [path for path in commit.files if any(fnmatchcase(path, each) for each in _BASE_CONFIGS)]
            # One component deep: fnmatch lets * match slashes.
            chosen = [path for path in chosen if path.count("/") <= 1]
            if not any(index in chosen for index in _INDEXES):
                raise FamilyError(
                    f"{model_id} has no model_index.json.",
                    expected="a repository that holds a diffusers pipeline",
                    remedy="Pass --base with the id of the pipeline that the adapter is for.",
                )
            _fetch(commit, chosen, folder / commit.oid, keep_times=False)
    except CheckpointError as error:
        if error.transient:
            raise
        raise FamilyError(error.found, expected=error.expected, remedy=error.remedy) from error
    return folder / commit.oid, commit.oid


@dataclass(frozen=True)
class _Place:
    repo_id: str
    revision: str | None
    path: str  # without slashes at its ends; "" for the whole repository


def _parse(uri: str) -> _Place:
    match = _URI.fullmatch(uri)
    path = (match["path"] or "").rstrip("/") if match else ""
    if not match or not all(map(is_repo_name, match["repo"].split("/"))) or (path and not _is_safe(path)):
        raise UsageError(
            f"{uri!r} is not a place on the Hub.", expected="hf://org/name, hf://org/name@revision or either with /path"
        )
    return _Place(match["repo"], match["revision"], path)


def _is_safe(path: str) -> bool:
    return not any(part in ("", ".", "..") or "\x00" in part or "\\" in part for part in path.split("/"))


def _resolve(api: HfApi, repo_id: str, revision: str | None) -> Commit:
    """The commit that the revision names now: once, so that all files are of one."""
    oid = api.model_info(repo_id, revision=revision).sha
    if oid is None or not re.fullmatch(r"[0-9a-f]{40}", oid):
        raise CheckpointError(f"The Hub names {oid!r} as the commit of {repo_id}.", expected="40 hexadecimal digits")
    return Commit(api, repo_id, oid)


def _choose(commit: Commit, path: str, uri: str) -> list[str]:
    if path in commit.files:
        return [path]
    below = [each for each in commit.files if not path or each.startswith(f"{path}/")]
    if not below:
        raise CheckpointError(
            f"There is nothing at {uri}.", expected="a file or a folder", remedy="Check the path and the revision."
        )
    if chosen := [each for each in below if is_wanted(each)]:
        return chosen
    raise CheckpointError(
        f"{uri} has {len(below)} files and none that belongs to a checkpoint.",
        expected="a safetensors file, a PEFT folder or a folder that a trainer saved",
        remedy=f"Name the checkpoint's own folder or file; the first file is {min(below)!r}.",
    )


def _fetch(commit: Commit, paths: Iterable[str], folder: Path, *, keep_times: bool) -> None:
    paths = list(paths)
    if unsafe := [path for path in paths if not _is_safe(path)]:
        raise CheckpointError(f"The path {unsafe[0]!r} in {commit.repo_id} cannot be a file.", expected="a plain path")
    for path in paths:
        commit.download(path, folder)
        _compare(folder / path, commit.files[path], commit.repo_id)
    # Where huggingface_hub notes what it did: no part of a checkpoint.
    shutil.rmtree(folder / ".cache" / "huggingface", ignore_errors=True)
    with contextlib.suppress(OSError):  # not empty: the repository has one of its own
        (folder / ".cache").rmdir()
    if keep_times:
        for path, changed_at in commit.times(paths).items():
            os.utime(folder / path, (changed_at.timestamp(), changed_at.timestamp()))


def _compare(file: Path, entry: RepoFile, repo_id: str) -> None:
    if entry.lfs:
        right = sha256_of_file(file) == entry.lfs.sha256
    else:
        # What git calls it: the sha1 of a header and the bytes.
        data = file.read_bytes()
        right = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest() == entry.blob_id
    if not right:
        file.unlink()
        raise CheckpointError(
            f"{entry.path} of {repo_id} arrived with other bytes than the repository states.",
            expected=f"{entry.size} bytes of {entry.lfs.sha256 if entry.lfs else entry.blob_id}",
            remedy="Run it again; if this stays, something changes files on their way.",
            transient=True,
        )
