"""The Hugging Face Hub: `main` is `latest`, the tag `sha-{sha12}` is the version, `stage-{sha12}` what is not out yet.

Every other alias is a branch of its name. The tag is the commit marker: what has one is published. A package goes to
the branch `stage-{sha12}` in one commit and is read back there. Releasing copies it to `main` in one commit that also
has `latest.json`, sets the tag on that commit (on the staged one when `main` is newer), and deletes the branch. Both
commits name their parent, so nothing that came between is overwritten.

The manifest that counts is the one at the tag; before there is a tag, the one on `main` if it is of the same digest.

Where `hf_xet` is installed huggingface_hub uploads by Xet instead of LFS. That path cannot be tried without the real
Hub; here it makes no difference, since what is read back is the sha256 that the repository states in either case.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

from adapterline.destinations.latest import LATEST_NAME, MANIFEST_NAME, from_bytes, latest_of, moves, to_bytes
from adapterline.destinations.versions import names, pointed, removed, require_expected, version_of
from adapterline.digests import sha256_of_bytes
from adapterline.errors import PublishError, UsageError
from adapterline.hub import Commit, hub_errors, is_repo_name, open_hub, status_of
from adapterline.package.card import CARD_NAME, MARKER, images_shown
from adapterline.values import (
    IMAGE_PATH,
    LATEST,
    Bundle,
    Latest,
    Manifest,
    Order,
    Orphan,
    Package,
    PackagedFile,
    Publication,
    Receipt,
    Version,
    check_name,
    is_alias,
)

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")

_TRIES = 12  # looks at the repository in one call; a quiet one needs four


class HubDestination:
    """One name in `hf://org` (repository `org/{name}`), or the one name of `hf://org/repo`; see `Destination`.

    A repository that has to be created is `private` or not; one that is there stays as it is. `endpoint` and `token`
    None: what HF_ENDPOINT and HF_TOKEN say when it is used. UsageError for a URI or a name that cannot be used.
    """

    def __init__(
        self, uri: str, name: str, *, private: bool = True, endpoint: str | None = None, token: str | None = None
    ) -> None:
        self.uri = uri
        self._name = check_name(name)
        self._repo_id = _repo_id(uri, name)
        self._private = private
        self._endpoint = endpoint
        self._token = token

    # --- can it be used? ----------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Asks for the token's rights. A repository that is not there is not created, only its owner is checked."""
        repository = self._open()
        with hub_errors(f"Checking {self._repo_id}", PublishError):
            namespaces = _namespaces(repository.api.whoami())
            if (refs := repository.refs()) is not None:
                repository.api.auth_check(self._repo_id, write=True)
                _require_name(repository.commit(refs.main), self._name)
        owner = self._repo_id.partition("/")[0]
        if refs is None and owner not in namespaces:
            raise PublishError(
                f"{self._repo_id} does not exist, and the token of {', '.join(namespaces)} cannot create it.",
                expected=f"a token of {owner}, or of one of its members",
                remedy="Set HF_TOKEN to another token, or publish elsewhere.",
            )

    # --- stage --------------------------------------------------------------------------------------------------------

    def stage(self, package: Package) -> Receipt:
        """See `Destination.stage`. A branch that a crashed run left is completed."""
        repository, written = self._open(), list[str]()
        return repository.settle(lambda: self._next_of_stage(repository, package, written))

    def _next_of_stage(self, repository: _Repository, package: Package, written: list[str]) -> _Write | Receipt:
        """What is still to be written, or the receipt. `written` gets the commit of this very call."""
        if (refs := repository.refs()) is None:
            return _Write("Creating it", lambda: repository.create(private=self._private))
        main = repository.commit(refs.main)
        _require_name(main, package.name)
        if tagged := refs.tags.get(_tag(package)):
            return self._receipt(package, repository.commit(tagged), published=True)
        branch = _branch(package)
        if (head := refs.branches.get(branch)) is None:
            return _Write(f"Creating {branch}", lambda: repository.create_branch(branch, main.oid))
        # Another exporter of the same bundle may write to this branch, too: our own commit stays what it is.
        for staged in map(repository.commit, (*written, head)):
            if not _differences(staged, package):
                return self._receipt(package, staged, published=False)
        if written:
            wrong = ", ".join(_differences(repository.commit(written[-1]), package))
            raise PublishError(
                f"{wrong} in {branch} of {self._repo_id} was read back with other bytes than were uploaded.",
                expected="the sha256 of the package",
                remedy="Run the export again; if this stays, something changes files on their way or at the Hub.",
                transient=True,
            )
        parent = repository.commit(head)
        return _Write(f"Committing to {branch}", lambda: written.append(_stage(repository, branch, parent, package)))

    # --- release ------------------------------------------------------------------------------------------------------

    def release(self, package: Package, receipt: Receipt, order: Order) -> Publication:
        """See `Destination.release`. The receipt of the publication has the manifest that counts there."""
        repository = self._open()
        return repository.settle(lambda: self._next_of_release(repository, package, receipt, order))

    def _next_of_release(
        self, repository: _Repository, package: Package, receipt: Receipt, order: Order
    ) -> _Write | Publication:
        tag, branch = _tag(package), _branch(package)
        if (refs := repository.refs()) is None:
            raise _gone(self._repo_id)
        main = repository.commit(refs.main)
        _require_name(main, package.name)
        source = self._source(repository, refs, main, package, receipt)
        receipt = self._receipt(package, source, published=receipt.published)
        wanted = latest_of(package, receipt, order)
        current = _latest(main)
        moved = moves(current, wanted)
        if moved and not (current == wanted and _holds(main, receipt)):
            return _Write("Committing to main", lambda: _move(repository, "main", main, source, receipt.files, wanted))
        if tag not in refs.tags:
            return _Write(f"Setting {tag}", lambda: repository.create_tag(tag, (main if moved else source).oid))
        if branch in refs.branches:
            return _Write(f"Deleting {branch}", lambda: repository.delete_branch(branch))
        url = f"{repository.api.endpoint}/{self._repo_id}/tree/{tag}"
        return Publication(receipt=receipt, latest="moved" if moved else "kept", url=url, load=self._repo_id)

    def _source(self, repository: _Repository, refs: _Refs, main: Commit, package: Package, receipt: Receipt) -> Commit:
        """The commit whose manifest counts: the tagged one, else `main` where an exporter got no further, else ours."""
        from huggingface_hub.errors import RevisionNotFoundError

        if tagged := refs.tags.get(_tag(package)):
            return repository.commit(tagged)
        there = _manifest(main)
        if there and there.digest == package.manifest.digest and not _damaged(main, there):
            return main
        staged = repository.commit(receipt.token)
        try:
            staged.files  # noqa: B018
        except RevisionNotFoundError as error:
            # Other destinations may have taken hours since this one was staged, and somebody may have tidied up.
            raise _gone(self._repo_id) from error
        return staged

    # --- verify -------------------------------------------------------------------------------------------------------

    def verify(self, published: Publication | Version) -> bool:
        """Compares what lies at the tag, whatever `main` has become."""
        repository, receipt = self._open(), published.receipt
        with hub_errors(f"Reading {self._repo_id}", PublishError):
            refs = repository.refs()
            if refs is None or (tagged := refs.tags.get(f"sha-{receipt.digest[:12]}")) is None:
                return False
            commit = repository.commit(tagged)
            return _holds(commit, receipt) and _card_sha256(receipt) in (None, commit.sha256(CARD_NAME))

    # --- what is published already ------------------------------------------------------------------------------------

    def versions(self, digits: str = "") -> tuple[Version, ...]:
        """See `Destination.versions`. A version was published when its manifest was committed."""
        repository = self._open()
        with hub_errors(f"Reading {self._repo_id}", PublishError):
            refs = repository.refs()
            tags = refs.tags if refs else {}
            ours = [tag for tag in sorted(tags) if re.fullmatch("sha-[0-9a-f]{12}", tag)]
            wanted = [tag for tag in ours if tag.startswith(f"sha-{digits[:12]}")]
            found = [self._version(tag, repository.commit(tags[tag])) for tag in wanted]
        return tuple(each for each in found if each and each.digest.startswith(digits))

    def _version(self, tag: str, commit: Commit) -> Version | None:
        """What is tagged; None if it has no manifest."""
        if (manifest := _manifest(commit)) is None:
            return None
        return version_of(
            manifest,
            commit.sha256(MANIFEST_NAME) or "",
            destination=self.uri,
            location=f"hf://{self._repo_id}@{tag}",
            published_at=commit.times([MANIFEST_NAME])[MANIFEST_NAME],
            token=commit.oid,
        )

    def aliases(self) -> Mapping[str, Latest]:
        """See `Destination.aliases`. Every branch that holds a version, whoever made it."""
        repository = self._open()
        with hub_errors(f"Reading {self._repo_id}", PublishError):
            refs = repository.refs()
            return self._aliases(repository, refs) if refs else {}

    def _aliases(self, repository: _Repository, refs: _Refs) -> dict[str, Latest]:
        # Not a branch that somebody called `latest`: that is `main`.
        heads = {branch: oid for branch, oid in refs.branches.items() if is_alias(branch)} | {LATEST: refs.main}
        pointers = {alias: self._pointer(repository.commit(oid)) for alias, oid in heads.items()}
        return {alias: pointer for alias, pointer in pointers.items() if pointer}

    def _pointer(self, head: Commit) -> Latest | None:
        """What a branch holds. Its manifest decides; a `latest.json` of the same digest tells the order, too."""
        if (version := self._version(head.oid[:12], head)) is None:
            return None
        latest = _latest(head)
        return latest if names(latest, version) else version.pointer()

    def point(self, alias: str, version: Version, expect: str | None = None) -> Latest | None:
        """See `Destination.point`. One commit on the branch, which names its parent; a new branch is one request."""
        repository, moved_from = self._open(), list[Latest | None]()
        return repository.settle(lambda: self._next_of_point(repository, alias, version, expect, moved_from))

    def _next_of_point(
        self,
        repository: _Repository,
        alias: str,
        version: Version,
        expect: str | None,
        moved_from: list[Latest | None],
    ) -> _Write | Latest | None:
        """What is still to be written, or what the alias pointed to. `moved_from` gets that when it moves."""
        branch, tag = "main" if alias == LATEST else alias, f"sha-{version.sha12}"
        refs, oid = repository.refs(), version.receipt.token
        if refs is None or (tag not in refs.tags and not moved_from):
            raise removed(version.receipt)
        if tag not in refs.tags:  # removed while the branch moved, which holds all of it
            return _Write(f"Setting {tag}", lambda: repository.create_tag(tag, oid))
        if moved_from:
            return moved_from[0]
        head = repository.commit(refs.branches[branch]) if branch in refs.branches else None
        current = self._pointer(head) if head else None
        if names(current, version):
            return current
        require_expected(current, expect, alias, self.uri)
        source = repository.commit(oid)

        def move() -> None:
            if head is None:
                repository.create_branch(branch, oid, exist_ok=False)
            else:
                files = _files_at(source, version.receipt.files)
                _move(repository, branch, head, source, files, version.pointer())
            moved_from.append(current)

        return _Write(f"Moving {branch}", move)

    def remove(self, version: Version) -> bool:
        """See `Destination.remove`. The tag goes. The history of `main` is never rewritten, so its commit may stay."""
        repository = self._open()
        return repository.settle(lambda: self._next_of_remove(repository, version))

    def _next_of_remove(self, repository: _Repository, version: Version) -> _Write | bool:
        tag = f"sha-{version.sha12}"
        if (refs := repository.refs()) is None:
            raise _gone(self._repo_id)
        if pointed(self._aliases(repository, refs), version):
            # Also if it came to point there after the tag was deleted.
            if tag not in refs.tags:
                return _Write(f"Setting {tag}", lambda: repository.create_tag(tag, version.receipt.token))
            return False
        if tag in refs.tags:
            return _Write(f"Deleting {tag}", lambda: repository.delete_tag(tag))
        return True

    def orphans(self) -> tuple[Orphan, ...]:
        """See `Destination.orphans`. Branches of what was never released, as old as their commit."""
        repository = self._open()
        with hub_errors(f"Reading {self._repo_id}", PublishError):
            refs = repository.refs()
            branches = refs.branches if refs else {}
            return tuple(
                Orphan(
                    kind="staged",
                    place=f"hf://{self._repo_id}@{branch}",
                    changed_at=repository.committed_at(oid),
                    token=oid,
                )
                for branch, oid in sorted(branches.items())
                if re.fullmatch("stage-[0-9a-f]{12}", branch)
            )

    def discard(self, orphan: Orphan) -> bool:
        """See `Destination.discard`."""
        repository, branch = self._open(), orphan.place.rpartition("@")[2]
        return repository.settle(lambda: _next_of_discard(repository, branch, orphan.token))

    # --- details ------------------------------------------------------------------------------------------------------

    def _open(self) -> _Repository:
        with hub_errors(f"Opening {self._repo_id}", PublishError):
            return _Repository(open_hub(self._endpoint, self._token), self._repo_id)

    def _receipt(self, package: Package, commit: Commit, *, published: bool) -> Receipt:
        """Of what lies at a commit, with the card as it is there; PublishError unless it is a whole export of ours."""
        found = _manifest(commit)
        place = f"{self._repo_id} at {commit.oid[:12]}"
        if not found or found.digest != package.manifest.digest or Bundle.digest_of(found.files) != found.digest:
            raise PublishError(
                f"{place} should hold {package.manifest.digest} and holds {found.digest if found else 'no manifest'}.",
                expected=f"that {_tag(package)} names one export only",
                remedy="Publish under another name.",
            )
        if damaged := _damaged(commit, found):
            raise PublishError(
                f"{', '.join(damaged)} in {place} is not what {MANIFEST_NAME} beside it says.",
                expected="the sha256 that the manifest states",
                remedy=f"Delete the tag {_tag(package)} there and run the export again.",
            )
        bundle = [PackagedFile(path=file.path, size=file.size, sha256=file.sha256) for file in found.files]
        return Receipt(
            destination=self.uri,
            name=package.name,
            digest=found.digest,
            location=f"hf://{self._repo_id}@{_tag(package)}",
            manifest_sha256=commit.sha256(MANIFEST_NAME) or "",
            files=_files_at(commit, bundle),
            published=published,
            token=commit.oid,
        )


# --- the repository -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Refs:
    """Names and commits, as they are now."""

    main: str
    branches: dict[str, str]
    tags: dict[str, str]


@dataclass(frozen=True)
class _Write:
    """One change that a repository still needs."""

    what: str
    do: Callable[[], object]


@dataclass(frozen=True)
class _Repository:
    """The repository during one call. What its methods raise is huggingface_hub's, except in `settle`."""

    api: HfApi
    repo_id: str
    _commits: dict[str, Commit] = field(default_factory=dict)

    def settle(self, look: Callable[[], _Write | T]) -> T:
        """Looks, writes what is missing, and looks again until nothing is missing.

        What a write answers proves nothing: the answer may be lost after the write was done, and another exporter may
        have been faster. Only what the repository holds counts. A write that failed and is still missing is not tried
        again, since the caller can wait longer; one that lost a race is decided anew.
        """
        failed: dict[str, PublishError] = {}
        for attempt in range(_TRIES):
            with hub_errors(f"Reading {self.repo_id}", PublishError):
                found = look()
            if not isinstance(found, _Write):
                return found
            if found.what in failed:
                raise failed[found.what]
            try:
                with hub_errors(f"{found.what} ({self.repo_id})", PublishError):
                    found.do()
            except PublishError as error:
                if _lost_race(error):
                    time.sleep(random.uniform(0, min(0.05 * 2**attempt, 2)))
                elif error.transient:
                    failed[found.what] = error
                else:
                    raise
        raise PublishError(
            f"{self.repo_id} was changed by others {_TRIES} times while it was being written.",
            expected="a moment without another writer",
            remedy="Run the same command again.",
            transient=True,
        )

    def refs(self) -> _Refs | None:
        """Never cached. None if there is no repository that this token may see."""
        from huggingface_hub.errors import RepositoryNotFoundError

        try:
            refs = self.api.list_repo_refs(self.repo_id)
        except RepositoryNotFoundError as error:
            if status_of(error) == 404:
                return None
            raise
        branches = {branch.name: branch.target_commit for branch in refs.branches}
        if "main" not in branches:
            raise PublishError(f"{self.repo_id} has no branch main.", remedy="Create it, or publish elsewhere.")
        return _Refs(branches["main"], branches, {tag.name: tag.target_commit for tag in refs.tags})

    def commit(self, oid: str) -> Commit:
        """What lies there."""
        return self._commits.setdefault(oid, Commit(self.api, self.repo_id, oid))

    def create(self, *, private: bool) -> None:
        self.api.create_repo(self.repo_id, private=private, exist_ok=True)

    def create_branch(self, branch: str, oid: str, *, exist_ok: bool = True) -> None:
        self.api.create_branch(self.repo_id, branch=branch, revision=oid, exist_ok=exist_ok)

    def delete_branch(self, branch: str) -> None:
        self.api.delete_branch(self.repo_id, branch=branch)

    def create_tag(self, tag: str, oid: str) -> None:
        self.api.create_tag(self.repo_id, tag=tag, revision=oid)

    def delete_tag(self, tag: str) -> None:
        self.api.delete_tag(self.repo_id, tag=tag)

    def committed_at(self, oid: str) -> datetime:
        return self.api.list_repo_commits(self.repo_id, revision=oid)[0].created_at

    def change(self, branch: str, parent: Commit, operations: list[Any], message: str) -> str:
        """One commit on a branch, whose head must still be `parent`; gives its id."""
        done = self.api.create_commit(
            self.repo_id, operations, commit_message=message, revision=branch, parent_commit=parent.oid
        )
        return str(done.oid)


def _lost_race(error: PublishError) -> bool:
    # 404: what was to be changed or deleted is gone.
    return status_of(error.__cause__) in (404, 409, 412)


def _stage(repository: _Repository, branch: str, parent: Commit, package: Package) -> str:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    contents = {file.path: str(package.folder / file.path) for file in package.files}
    adds = [CommitOperationAdd(path, source) for path, source in contents.items()]
    adds.append(CommitOperationAdd(MANIFEST_NAME, package.manifest_bytes))
    deletions = [CommitOperationDelete(path) for path in _stale(parent, contents, latest=True)]
    return repository.change(branch, parent, [*adds, *deletions], f"Stage {package.name} {package.sha12}")


def _move(
    repository: _Repository,
    branch: str,
    head: Commit,
    source: Commit,
    files: Collection[PackagedFile],
    wanted: Latest,
) -> str:
    from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete

    paths = {file.path for file in files} | {MANIFEST_NAME}
    # By commit, not by branch: another exporter may have put another card and manifest on the branch since.
    copies = [
        CommitOperationCopy(path, path, src_revision=source.oid)
        for path in sorted(paths)
        if not (path == CARD_NAME and _is_written_by_hand(head))
    ]
    latest = CommitOperationAdd(LATEST_NAME, to_bytes(wanted))
    deletions = [CommitOperationDelete(path) for path in _stale(head, paths, latest=False)]
    return repository.change(branch, head, [*copies, latest, *deletions], f"Publish {wanted.name} {wanted.sha12}")


def _next_of_discard(repository: _Repository, branch: str, oid: str) -> _Write | bool:
    refs = repository.refs()
    if refs is None or branch not in refs.branches:
        return True
    if refs.branches[branch] != oid:
        return False  # an export goes on with it
    return _Write(f"Deleting {branch}", lambda: repository.delete_branch(branch))


# --- what lies at a commit ------------------------------------------------------------------------------------------


def _manifest(commit: Commit) -> Manifest | None:
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


def _latest(main: Commit) -> Latest | None:
    data = main.read(LATEST_NAME)
    return None if data is None else from_bytes(data, f"{LATEST_NAME} in {main.repo_id}")


def _require_name(main: Commit, name: str) -> None:
    there = _manifest(main)
    if there and there.name != name:
        raise PublishError(
            f"{main.repo_id} holds the adapter {there.name!r}.",
            expected=f"a repository for {name!r}: each has one name",
            remedy=f"Publish to hf://{main.repo_id.partition('/')[0]}, or to another repository.",
        )


def _damaged(commit: Commit, manifest: Manifest) -> list[str]:
    return [file.path for file in manifest.files if commit.sha256(file.path) != file.sha256]


def _holds(commit: Commit, receipt: Receipt) -> bool:
    """The manifest and the files of the bundle; a person may have changed the card on `main`."""
    files = {file.path: file.sha256 for file in receipt.files if file.path != CARD_NAME}
    files[MANIFEST_NAME] = receipt.manifest_sha256
    return all(commit.sha256(path) == sha256 for path, sha256 in files.items())


def _files_at(commit: Commit, bundle: Collection[PackagedFile]) -> tuple[PackagedFile, ...]:
    """The files of the bundle, the card, and the images that it shows."""
    files = list(bundle)
    if (card := commit.read(CARD_NAME)) is not None:
        files.append(PackagedFile(path=CARD_NAME, size=len(card), sha256=sha256_of_bytes(card)))
        for path in images_shown(card):
            if (entry := commit.files.get(path)) is not None:
                files.append(PackagedFile(path=path, size=entry.size, sha256=commit.sha256(path) or ""))
    return tuple(files)


def _card_sha256(receipt: Receipt) -> str | None:
    return next((file.sha256 for file in receipt.files if file.path == CARD_NAME), None)


def _differences(commit: Commit, package: Package) -> list[str]:
    """Paths that have other bytes than in the package, or are there and should not be."""
    files = {file.path: file.sha256 for file in package.files}
    files[MANIFEST_NAME] = sha256_of_bytes(package.manifest_bytes)
    wrong = [path for path, sha256 in files.items() if commit.sha256(path) != sha256]
    return [*wrong, *_stale(commit, files, latest=True)]


def _stale(commit: Commit, keep: Collection[str], *, latest: bool) -> list[str]:
    """What the manifest there lists and the new one does not, and the images of another export.

    With `latest` also the `latest.json`, for a version.
    """
    there = _manifest(commit)
    listed = [file.path for file in there.files] if there else []
    images = filter(IMAGE_PATH.fullmatch, commit.files)
    return [
        path
        for path in (*listed, *images, *([LATEST_NAME] if latest else []))
        if path in commit.files and path not in keep
    ]


def _is_written_by_hand(commit: Commit) -> bool:
    card = commit.read(CARD_NAME)
    return card is not None and MARKER.encode() not in card


def _gone(repo_id: str) -> PublishError:
    return PublishError(
        f"What was staged in {repo_id} is not there any more.",
        expected="its branch to stay until it is released",
        remedy="Run the export again.",
        transient=True,
    )


# --- names ----------------------------------------------------------------------------------------------------------


def _tag(package: Package) -> str:
    return f"sha-{package.sha12}"


def _branch(package: Package) -> str:
    return f"stage-{package.sha12}"


def _repo_id(uri: str, name: str) -> str:
    scheme, _, rest = uri.partition("://")
    parts = rest.rstrip("/").split("/")
    if scheme != "hf" or len(parts) > 2 or not all(map(is_repo_name, parts)):
        raise UsageError(
            f"{uri!r} is not a place on the Hub.", expected=f"hf://org (for org/{name}) or hf://org/repository"
        )
    return "/".join(parts if len(parts) == 2 else (parts[0], name))


def _namespaces(who: dict[str, Any]) -> list[str]:
    """Whose repositories the token may create, by the answer to whoami; PublishError if it may only read."""
    if who.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise PublishError(
            f"The access token of {who.get('name')} may only read.",
            expected="one that may write",
            remedy="Make one in the account's settings and set HF_TOKEN to it.",
        )
    return [str(who.get("name")), *(str(org.get("name")) for org in who.get("orgs", ()))]
