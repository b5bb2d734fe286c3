"""What lies at a commit of a repository on the Hub, and what a commit that changes it consists of.

Each repository holds one name: at the root of a revision lie the files of one export, its card and its manifest, and on
branches that people follow `latest.json`. Whatever else is there belongs to people and stays.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from adapterline.destinations.latest import LATEST_NAME, MANIFEST_NAME, from_bytes, to_bytes
from adapterline.digests import sha256_of_bytes
from adapterline.errors import PublishError
from adapterline.hub import Commit
from adapterline.package.card import CARD_NAME, images_shown, merge_card
from adapterline.package.siblings import is_sibling, sibling_paths
from adapterline.values import Latest, Manifest, Package, PackagedFile, Receipt

# --- what is there ----------------------------------------------------------------------------------------------------


def manifest_at(commit: Commit) -> Manifest | None:
    """None if there is none; PublishError if adapterline did not write what is there."""
    if (data := commit.read(MANIFEST_NAME)) is None:
        return None
    try:
        return Manifest.model_validate_json(data)
    except ValueError as error:
        raise PublishError(
            f"{MANIFEST_NAME} in {commit.repo_id} is not a manifest that this version of adapterline reads.",
            expected="a repository that holds nothing, or this adapter",
            remedy="Move it away, or publish under another name.",
        ) from error


def latest_at(commit: Commit) -> Latest | None:
    """None if there is none; PublishError if it is not ours."""
    data = commit.read(LATEST_NAME)
    return None if data is None else from_bytes(data, f"{LATEST_NAME} in {commit.repo_id}")


def require_name(commit: Commit, name: str) -> None:
    """PublishError if another adapter lies there."""
    there = manifest_at(commit)
    if there and there.name != name:
        raise PublishError(
            f"{commit.repo_id} holds the adapter {there.name!r}.",
            expected=f"a repository for {name!r}: each has one name",
            remedy=f"Publish to hf://{commit.repo_id.partition('/')[0]}, or to another repository.",
        )


def damaged(commit: Commit, manifest: Manifest) -> list[str]:
    """The paths of the bundle that have other bytes than the manifest says, or none."""
    return [file.path for file in manifest.files if commit.sha256(file.path) != file.sha256]


def has_whole(commit: Commit, digest: str) -> bool:
    """Does the whole bundle of this digest lie there?"""
    there = manifest_at(commit)
    return there is not None and there.digest == digest and not damaged(commit, there)


def holds(commit: Commit, receipt: Receipt) -> bool:
    """The manifest and the files of the receipt, without the card: a person may have changed that."""
    files = {file.path: file.sha256 for file in receipt.files if file.path != CARD_NAME}
    files[MANIFEST_NAME] = receipt.manifest_sha256
    return all(commit.sha256(path) == sha256 for path, sha256 in files.items())


def files_at(commit: Commit, bundle: Collection[PackagedFile]) -> tuple[PackagedFile, ...]:
    """The files of the bundle, and what lies beside the manifest and belongs to it."""
    paths = sibling_paths(commit.sha256(MANIFEST_NAME) or "", commit.read(CARD_NAME))
    there = {path: commit.files.get(path) for path in paths}
    beside = (
        PackagedFile(path=path, size=entry.size, sha256=commit.sha256(path) or "")
        for path, entry in there.items()
        if entry is not None
    )
    return (*bundle, *beside)


def differences(commit: Commit, package: Package) -> list[str]:
    """Paths that have other bytes than in the package, or are there and should not be."""
    files = {file.path: file.sha256 for file in package.files}
    files[MANIFEST_NAME] = sha256_of_bytes(package.manifest_bytes)
    wrong = [path for path, sha256 in files.items() if commit.sha256(path) != sha256]
    return [*wrong, *_stale(commit, files, latest=True)]


def _stale(commit: Commit, keep: Collection[str], *, latest: bool) -> list[str]:
    """What the manifest there lists and the new one does not, and images, provenance and signature of another export.

    With `latest` also the `latest.json`, for a version.
    """
    there = manifest_at(commit)
    listed = [file.path for file in there.files] if there else []
    siblings = filter(is_sibling, commit.files)
    return [
        path
        for path in (*listed, *siblings, *([LATEST_NAME] if latest else []))
        if path in commit.files and path not in keep
    ]


# --- what changes it --------------------------------------------------------------------------------------------------


def operations_of_stage(package: Package, onto: Commit) -> list[Any]:
    """The package's files in place of those of another export; no `latest.json`."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    contents = {file.path: str(package.folder / file.path) for file in package.files}
    adds = [CommitOperationAdd(path, source) for path, source in contents.items()]
    adds.append(CommitOperationAdd(MANIFEST_NAME, package.manifest_bytes))
    return [*adds, *(CommitOperationDelete(path) for path in _stale(onto, contents, latest=True))]


def operations_of_release(source: Commit, files: Collection[PackagedFile], latest: Latest, onto: Commit) -> list[Any]:
    """What was staged in place of another export, with `latest.json`; of a card, what a person wrote stays."""
    from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete

    paths = {file.path for file in files} | {MANIFEST_NAME}
    card = _merged_card(source, onto)
    kept = () if card is None else images_shown(card)
    # By commit, not by branch: another exporter may have put another card and manifest on the branch since.
    writes: list[Any] = [
        CommitOperationCopy(path, path, src_revision=source.oid)
        for path in sorted(paths)
        if path != CARD_NAME or card is None
    ]
    if card is not None:
        writes.append(CommitOperationAdd(CARD_NAME, card))
    writes.append(CommitOperationAdd(LATEST_NAME, to_bytes(latest)))
    return [*writes, *(CommitOperationDelete(path) for path in _stale(onto, {*paths, *kept}, latest=False))]


def _merged_card(source: Commit, onto: Commit) -> bytes | None:
    """The card that a release puts in place of one that is there; None where the export's own does."""
    new, there = source.read(CARD_NAME), onto.read(CARD_NAME)
    if new is None or there is None:
        return there
    merged = merge_card(there, new)
    return None if merged == new else merged
