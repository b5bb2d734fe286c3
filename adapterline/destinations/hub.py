"""The Hugging Face Hub: `main` is `latest`, the tag `sha-{sha12}` is the version, `stage-{sha12}` what is not out yet.

Every other alias is a branch of its name. The tag is the commit marker: what has one is published. A package goes to
the branch `stage-{sha12}` in one commit and is read back there. Releasing copies it to `main` in one commit that also
has `latest.json`, sets the tag on that commit (on the staged one when `main` is newer), and deletes the branch. Both
commits name their parent, so nothing that came between is overwritten.

The manifest that counts is the one at the tag; before there is a tag, the one on `main` if it is of the same digest.

Another branch may take the place of `main`. Or the commit becomes a pull request: then neither `main` nor a tag is
touched, and a pull request that is open says all there is to say. Once somebody merged it, the next run sets the tag;
once somebody closed it, the next run is refused, since what a person decided is not asked again every night.

Where `hf_xet` is installed huggingface_hub uploads by Xet instead of LFS. That path cannot be tried without the real
Hub; here it makes no difference, since what is read back is the sha256 that the repository states in either case.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from adapterline.destinations.hub_content import (
    damaged,
    differences,
    files_at,
    has_whole,
    holds,
    latest_at,
    manifest_at,
    operations_of_release,
    operations_of_stage,
    require_name,
)
from adapterline.destinations.hub_repository import MAIN, PullRequest, Refs, Repository, Write
from adapterline.destinations.latest import MANIFEST_NAME, latest_of, moves
from adapterline.destinations.versions import names, pointed, removed, require_expected, version_of
from adapterline.errors import PublishError, UsageError
from adapterline.hub import Commit, hub_errors, is_repo_name, open_hub
from adapterline.package.card import CARD_NAME
from adapterline.values import (
    LATEST,
    WEIGHT_NAME,
    Bundle,
    Latest,
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


class HubDestination:
    """One name in `hf://org` (repository `org/{name}`), or the one name of `hf://org/repo`; see `Destination`.

    A repository that is not there is created, `private` or not, where `create` allows it; one that is there stays as it
    is. `branch` takes the place of `main`; with `pull_request`, a request to `main` does. `endpoint` and `token` None:
    what HF_ENDPOINT and HF_TOKEN say when it is used. UsageError for a URI or a name that cannot be used.
    """

    def __init__(
        self,
        uri: str,
        name: str,
        *,
        private: bool = True,
        create: bool = True,
        branch: str = MAIN,
        pull_request: bool = False,
        endpoint: str | None = None,
        token: str | None = None,
    ) -> None:
        self.uri = uri
        self._name = check_name(name)
        self._repo_id = _repo_id(uri, name)
        self._private = private
        self._create = create
        self._branch = branch
        self._pull_request = pull_request
        self._endpoint = endpoint
        self._token = token

    # --- can it be used? ----------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Asks for the token's rights. A repository that is not there is not created, only its owner is checked."""
        repository = self._open()
        namespaces = repository.reading(lambda: _namespaces(repository.api.whoami()))
        if (refs := repository.reading(repository.refs)) is not None:
            repository.reading(lambda: repository.api.auth_check(self._repo_id, write=True))
            repository.reading(lambda: self._require_name(repository, refs))
            return
        self._require_creation()
        if self._repo_id.partition("/")[0] not in namespaces:
            raise PublishError(
                f"{self._repo_id} does not exist, and the token of {', '.join(namespaces)} cannot create it.",
                expected=f"a token of {self._repo_id.partition('/')[0]}, or of one of its members",
                remedy="Set HF_TOKEN to another token, or publish elsewhere.",
            )

    def _require_name(self, repository: Repository, refs: Refs) -> Commit:
        """The commit that the release will replace, or begin from; PublishError if another name lies there."""
        require_name(repository.commit(refs.main), self._name)
        commit = repository.commit(refs.branches.get(self._branch, refs.main))
        require_name(commit, self._name)
        return commit

    def _require_creation(self) -> None:
        if not self._create:
            raise PublishError(
                f"{self._repo_id} does not exist, and ADAPTERLINE_HUB_CREATE is false.",
                expected="a repository that is there",
                remedy="Create it, correct its name, or set ADAPTERLINE_HUB_CREATE=true.",
            )

    # --- stage --------------------------------------------------------------------------------------------------------

    def stage(self, package: Package) -> Receipt:
        """See `Destination.stage`. A branch that a crashed run left is completed."""
        _require_plain_load(package)
        repository, written = self._open(), list[str]()
        return repository.settle(lambda: self._next_of_stage(repository, package, written))

    def _next_of_stage(self, repository: Repository, package: Package, written: list[str]) -> Write | Receipt:
        """What is still to be written, or the receipt. `written` gets the commit of this very call."""
        if (refs := repository.refs(pull_requests=self._pull_request)) is None:
            self._require_creation()
            return Write("Creating it", lambda: repository.create(private=self._private))
        onto = self._require_name(repository, refs)
        if tagged := refs.tags.get(_tag(package)):
            return self._receipt(package, repository.commit(tagged), published=True)
        if offer := self._offer(repository, refs, package):
            return self._receipt(package, repository.commit(offer.head), published=True, revision=offer.ref)
        branch = _stage_branch(package)
        if (head := refs.branches.get(branch)) is None:
            return Write(f"Creating {branch}", lambda: repository.create_branch(branch, onto.oid))
        # Another exporter of the same bundle may write to this branch, too: our own commit stays what it is.
        for staged in map(repository.commit, (*written, head)):
            if not differences(staged, package):
                return self._receipt(package, staged, published=False)
        if written:
            wrong = ", ".join(differences(repository.commit(written[-1]), package))
            raise PublishError(
                f"{wrong} in {branch} of {self._repo_id} was read back with other bytes than were uploaded.",
                expected="the sha256 of the package",
                remedy="Run the export again; if this stays, something changes files on their way or at the Hub.",
                transient=True,
            )
        parent = repository.commit(head)
        return Write(f"Committing to {branch}", lambda: written.append(_stage(repository, branch, parent, package)))

    # --- release ------------------------------------------------------------------------------------------------------

    def release(self, package: Package, receipt: Receipt, order: Order) -> Publication:
        """See `Destination.release`. The receipt of the publication has the manifest that counts there."""
        repository = self._open()
        next_of = self._next_of_offer if self._pull_request else self._next_of_release
        return repository.settle(lambda: next_of(repository, package, receipt, order))

    def _next_of_release(
        self, repository: Repository, package: Package, receipt: Receipt, order: Order
    ) -> Write | Publication:
        tag = _tag(package)
        if (refs := repository.refs()) is None:
            raise _gone(self._repo_id)
        there = self._require_name(repository, refs)
        source = self._source(repository, refs, there, package, receipt)
        receipt = self._receipt(package, source, published=receipt.published)
        if self._branch not in refs.branches:
            return Write(f"Creating {self._branch}", lambda: repository.create_branch(self._branch, source.oid))
        wanted = latest_of(package, receipt, order)
        current = latest_at(there)
        moved = moves(current, wanted)
        if moved and not (current == wanted and holds(there, receipt)):
            operations = operations_of_release(source, receipt.files, wanted, there)
            return Write(
                f"Committing to {self._branch}",
                lambda: repository.change(self._branch, there, operations, _title(package)),
            )
        if tag not in refs.tags:
            return Write(f"Setting {tag}", lambda: repository.create_tag(tag, (there if moved else source).oid))
        return self._tidied(repository, refs, package) or Publication(
            receipt=receipt,
            latest="moved" if moved else "kept",
            url=f"{repository.api.endpoint}/{self._repo_id}/tree/{tag}",
            load=self._repo_id,
            revision="" if moved and self._branch == MAIN else tag,
        )

    def _source(self, repository: Repository, refs: Refs, there: Commit, package: Package, receipt: Receipt) -> Commit:
        """The commit whose manifest counts: the tagged one, else one where an exporter got no further, else ours."""
        if tagged := refs.tags.get(_tag(package)):
            return repository.commit(tagged)
        if has_whole(there, package.manifest.digest):
            return there
        return self._staged(repository, receipt)

    def _staged(self, repository: Repository, receipt: Receipt) -> Commit:
        from huggingface_hub.errors import RevisionNotFoundError

        staged = repository.commit(receipt.token)
        try:
            staged.files  # noqa: B018
        except RevisionNotFoundError as error:
            # Other destinations may have taken hours since this one was staged, and somebody may have tidied up.
            raise _gone(self._repo_id) from error
        return staged

    def _tidied(self, repository: Repository, refs: Refs, package: Package) -> Write | None:
        branch = _stage_branch(package)
        if branch not in refs.branches:
            return None
        return Write(f"Deleting {branch}", lambda: repository.delete_branch(branch))

    # --- release as a pull request ------------------------------------------------------------------------------------

    def _next_of_offer(
        self, repository: Repository, package: Package, receipt: Receipt, order: Order
    ) -> Write | Publication:
        if (refs := repository.refs(pull_requests=True)) is None:
            raise _gone(self._repo_id)
        main = self._require_name(repository, refs)
        tag = _tag(package)
        offer = None if tag in refs.tags else self._offer(repository, refs, package)
        merged = offer is not None and offer.status == "merged"
        if not (merged or tag in refs.tags or has_whole(main, package.manifest.digest)):
            if offer is None:
                return self._opening(repository, main, package, receipt, order)
            at = repository.commit(offer.head)
            return self._tidied(repository, refs, package) or Publication(
                receipt=self._receipt(package, at, published=receipt.published, revision=offer.ref),
                latest="proposed",
                url=offer.url,
                load=self._repo_id,
                revision=offer.ref,
            )
        if tag not in refs.tags:
            accepted = offer.head if offer and merged else main.oid
            return Write(f"Setting {tag}", lambda: repository.create_tag(tag, accepted))
        latest = latest_at(main)
        moved = latest is not None and latest.digest == package.manifest.digest
        return self._tidied(repository, refs, package) or Publication(
            receipt=self._receipt(package, repository.commit(refs.tags[tag]), published=receipt.published),
            latest="moved" if moved else "kept",
            url=f"{repository.api.endpoint}/{self._repo_id}/tree/{tag}",
            load=self._repo_id,
            revision="" if moved else tag,
        )

    def _opening(self, repository: Repository, main: Commit, package: Package, receipt: Receipt, order: Order) -> Write:
        staged = self._staged(repository, receipt)
        receipt = self._receipt(package, staged, published=False)
        wanted = latest_of(package, receipt, order)
        operations = operations_of_release(staged, receipt.files, wanted, main)
        why = _description(package, older=not moves(latest_at(main), wanted))
        return Write("Opening a pull request", lambda: repository.propose(main, operations, _title(package), why))

    def _offer(self, repository: Repository, refs: Refs, package: Package) -> PullRequest | None:
        """The pull request that has, or had, this package; PublishError if somebody closed it."""
        if not self._pull_request:
            return None
        found = repository.pull_requests(_title(package), refs)
        for statuses in (("merged",), ("open", "draft")):
            for each in found:
                if each.status in statuses:
                    return each
        if found:
            raise PublishError(
                f"The pull request {found[-1].url} offered {package.name} {package.sha12}, and somebody closed it.",
                expected="one that is open or merged, or none",
                remedy="Reopen it there, or publish without --hub-pr.",
            )
        return None

    # --- verify -------------------------------------------------------------------------------------------------------

    def verify(self, published: Publication | Version) -> bool:
        """Compares what lies at the tag, whatever `main` has become, or in the pull request as long as it is open."""
        repository, receipt = self._open(), published.receipt
        proposed = isinstance(published, Publication) and published.latest == "proposed"
        return repository.reading(lambda: self._is_there(repository, receipt, proposed=proposed))

    def _is_there(self, repository: Repository, receipt: Receipt, *, proposed: bool) -> bool:
        if (refs := repository.refs(pull_requests=proposed)) is None:
            return False
        found = refs.tags.get(f"sha-{receipt.digest[:12]}")
        if found is None and proposed:
            requests = repository.pull_requests(_title_of(receipt.name, receipt.digest[:12]), refs)
            found = next((each.head for each in requests if each.status in ("open", "draft")), None)
        if found is None:
            return False
        commit = repository.commit(found)
        # Whoever reviews a pull request may change its card.
        card = None if proposed else _card_sha256(receipt)
        return holds(commit, receipt) and card in (None, commit.sha256(CARD_NAME))

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
        if (manifest := manifest_at(commit)) is None:
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

    def _aliases(self, repository: Repository, refs: Refs) -> dict[str, Latest]:
        # Not a branch that somebody called `latest`: that is `main`.
        heads = {branch: oid for branch, oid in refs.branches.items() if is_alias(branch)} | {LATEST: refs.main}
        pointers = {alias: self._pointer(repository.commit(oid)) for alias, oid in heads.items()}
        return {alias: pointer for alias, pointer in pointers.items() if pointer}

    def _pointer(self, head: Commit) -> Latest | None:
        """What a branch holds. Its manifest decides; a `latest.json` of the same digest tells the order, too."""
        if (version := self._version(head.oid[:12], head)) is None:
            return None
        latest = latest_at(head)
        return latest if names(latest, version) else version.pointer()

    def point(self, alias: str, version: Version, expect: str | None = None) -> Latest | None:
        """See `Destination.point`. One commit on the branch, which names its parent; a new branch is one request."""
        repository, moved_from = self._open(), list[Latest | None]()
        return repository.settle(lambda: self._next_of_point(repository, alias, version, expect, moved_from))

    def _next_of_point(
        self,
        repository: Repository,
        alias: str,
        version: Version,
        expect: str | None,
        moved_from: list[Latest | None],
    ) -> Write | Latest | None:
        """What is still to be written, or what the alias pointed to. `moved_from` gets that when it moves."""
        branch, tag = MAIN if alias == LATEST else alias, f"sha-{version.sha12}"
        refs, oid = repository.refs(), version.receipt.token
        if refs is None or (tag not in refs.tags and not moved_from):
            raise removed(version.receipt)
        if tag not in refs.tags:  # removed while the branch moved, which holds all of it
            return Write(f"Setting {tag}", lambda: repository.create_tag(tag, oid))
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
                files = files_at(source, version.receipt.files)
                operations = operations_of_release(source, files, version.pointer(), head)
                repository.change(branch, head, operations, _title_of(version.receipt.name, version.sha12))
            moved_from.append(current)

        return Write(f"Moving {branch}", move)

    def remove(self, version: Version) -> bool:
        """See `Destination.remove`. The tag goes. The history of `main` is never rewritten, so its commit may stay."""
        repository = self._open()
        return repository.settle(lambda: self._next_of_remove(repository, version))

    def _next_of_remove(self, repository: Repository, version: Version) -> Write | bool:
        tag = f"sha-{version.sha12}"
        if (refs := repository.refs()) is None:
            raise _gone(self._repo_id)
        if pointed(self._aliases(repository, refs), version):
            # Also if it came to point there after the tag was deleted.
            if tag not in refs.tags:
                return Write(f"Setting {tag}", lambda: repository.create_tag(tag, version.receipt.token))
            return False
        if tag in refs.tags:
            return Write(f"Deleting {tag}", lambda: repository.delete_tag(tag))
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

    def _open(self) -> Repository:
        with hub_errors(f"Opening {self._repo_id}", PublishError):
            return Repository(open_hub(self._endpoint, self._token), self._repo_id)

    def _receipt(self, package: Package, commit: Commit, *, published: bool, revision: str = "") -> Receipt:
        """Of what lies at a commit, with the card as it is there; PublishError unless it is a whole export of ours."""
        revision = revision or _tag(package)
        found = manifest_at(commit)
        place = f"{self._repo_id} at {commit.oid[:12]}"
        if not found or found.digest != package.manifest.digest or Bundle.digest_of(found.files) != found.digest:
            raise PublishError(
                f"{place} should hold {package.manifest.digest} and holds {found.digest if found else 'no manifest'}.",
                expected=f"that {revision} names one export only",
                remedy="Publish under another name.",
            )
        if wrong := damaged(commit, found):
            raise PublishError(
                f"{', '.join(wrong)} in {place} is not what {MANIFEST_NAME} beside it says.",
                expected="the sha256 that the manifest states",
                remedy=f"Delete {revision} there and run the export again.",
            )
        bundle = [PackagedFile(path=file.path, size=file.size, sha256=file.sha256) for file in found.files]
        return Receipt(
            destination=self.uri,
            name=package.name,
            digest=found.digest,
            location=f"hf://{self._repo_id}@{revision}",
            manifest_sha256=commit.sha256(MANIFEST_NAME) or "",
            files=files_at(commit, bundle),
            published=published,
            token=commit.oid,
            read_back="checksum",
        )


def _stage(repository: Repository, branch: str, parent: Commit, package: Package) -> str:
    message = f"Stage {package.name} {package.sha12}"
    return repository.change(branch, parent, operations_of_stage(package, parent), message)


def _next_of_discard(repository: Repository, branch: str, oid: str) -> Write | bool:
    refs = repository.refs()
    if refs is None or branch not in refs.branches:
        return True
    if refs.branches[branch] != oid:
        return False  # an export goes on with it
    return Write(f"Deleting {branch}", lambda: repository.delete_branch(branch))


def _require_plain_load(package: Package) -> None:
    """PublishError if `load_lora_weights(repository)` would take another file than the one for diffusers.

    Without `weight_name` diffusers takes the first path of the repository that ends with the usual name, in whatever
    folder (`_best_guess_weight_name` in `diffusers.loaders.lora_base`).
    """
    paths = [file.path for file in package.files if file.path.endswith(WEIGHT_NAME)]
    if WEIGHT_NAME in paths and len(paths) > 1:
        paths.remove(WEIGHT_NAME)
        raise PublishError(
            f"Of a repository with {paths[0]}, diffusers would load that when no file is named.",
            expected=f"that no other path ends with {WEIGHT_NAME}",
            remedy="Publish under another --name.",
        )


def _card_sha256(receipt: Receipt) -> str | None:
    return next((file.sha256 for file in receipt.files if file.path == CARD_NAME), None)


def _gone(repo_id: str) -> PublishError:
    return PublishError(
        f"What was staged in {repo_id} is not there any more.",
        expected="its branch to stay until it is released",
        remedy="Run the export again.",
        transient=True,
    )


# --- names and words ------------------------------------------------------------------------------------------------


def _tag(package: Package) -> str:
    return f"sha-{package.sha12}"


def _stage_branch(package: Package) -> str:
    return f"stage-{package.sha12}"


def _title(package: Package) -> str:
    return _title_of(package.name, package.sha12)


def _title_of(name: str, sha12: str) -> str:
    """Of the commit, and of the pull request, which is found again by it."""
    return f"Publish {name} {sha12}"


def _description(package: Package, *, older: bool) -> str:
    lines = [f"The export {package.manifest.digest}, proven and read back. Merging it makes it the latest of its name."]
    if older:
        lines.append("What is on main comes from a later training run.")
    return "\n\n".join(lines)


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
