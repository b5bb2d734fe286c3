"""A repository on the Hub: its names as they are now, its commits, and writes whose answers may be lost.

What a write answers proves nothing. The answer may be lost after the write was done, and another exporter may have been
faster. So `settle` writes only what it sees missing, and believes only what it sees afterwards.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

from adapterline.errors import PublishError
from adapterline.hub import Commit, Patience, hub_errors, status_of

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")

MAIN = "main"
_TRIES = 12  # looks at the repository in one call; a quiet one needs four


@dataclass(frozen=True)
class Refs:
    """Names and commits, as they are now."""

    branches: dict[str, str]
    tags: dict[str, str]
    pull_requests: dict[str, str]

    @property
    def main(self) -> str:
        """Every repository has it."""
        return self.branches[MAIN]


@dataclass(frozen=True)
class PullRequest:
    """Of the Hub."""

    number: int
    status: str  # draft, open, closed or merged
    head: str  # "" for a closed one whose commits somebody deleted
    url: str

    @property
    def ref(self) -> str:
        """The revision that its commits have."""
        return f"refs/pr/{self.number}"


@dataclass(frozen=True)
class Write:
    """One change that a repository still needs."""

    what: str
    do: Callable[[], object]


@dataclass(frozen=True)
class Repository:
    """The repository during one call. What its methods raise is huggingface_hub's, except in `settle` and `reading`."""

    api: HfApi
    repo_id: str
    _patience: Patience = field(default_factory=Patience)
    _commits: dict[str, Commit] = field(default_factory=dict)

    def settle(self, look: Callable[[], Write | T]) -> T:
        """Looks, writes what is missing, and looks again until nothing is missing.

        A write that failed and is still missing is not tried again, since the caller can wait longer; one that lost a
        race is decided anew, and one that the Hub asked to do later is done then.
        """
        failed: dict[str, PublishError] = {}
        for attempt in range(_TRIES):
            found = self.reading(look)
            if not isinstance(found, Write):
                return found
            if found.what in failed:
                raise failed[found.what]
            try:
                with hub_errors(f"{found.what} ({self.repo_id})", PublishError):
                    found.do()
            except PublishError as error:
                if _lost_race(error):
                    time.sleep(random.uniform(0, min(0.05 * 2**attempt, 2)))
                elif not error.transient:
                    raise
                elif not self._patience.wait(error):
                    failed[found.what] = error
        raise PublishError(
            f"{self.repo_id} was changed by others {_TRIES} times while it was being written.",
            expected="a moment without another writer",
            remedy="Run the same command again.",
            transient=True,
        )

    def reading(self, look: Callable[[], T]) -> T:
        """What `look` gives, later where the Hub asks for that; PublishError for what huggingface_hub raises."""
        while True:
            try:
                with hub_errors(f"Reading {self.repo_id}", PublishError):
                    return look()
            except PublishError as error:
                if not self._patience.wait(error):
                    raise

    # --- what is there ------------------------------------------------------------------------------------------------

    def refs(self, *, pull_requests: bool = False) -> Refs | None:
        """Never cached. None if there is no repository that this token may see."""
        from huggingface_hub.errors import RepositoryNotFoundError

        try:
            refs = self.api.list_repo_refs(self.repo_id, include_pull_requests=pull_requests)
        except RepositoryNotFoundError as error:
            if status_of(error) == 404:
                return None
            raise
        branches = {branch.name: branch.target_commit for branch in refs.branches}
        if MAIN not in branches:
            raise PublishError(f"{self.repo_id} has no branch main.", remedy="Create it, or publish elsewhere.")
        tags = {tag.name: tag.target_commit for tag in refs.tags}
        return Refs(branches, tags, {each.ref: each.target_commit for each in refs.pull_requests or ()})

    def pull_requests(self, title: str, refs: Refs) -> list[PullRequest]:
        """Those of this title, the oldest first; none that was merged and whose commits somebody deleted."""
        listed = self.api.get_repo_discussions(self.repo_id, discussion_type="pull_request")
        named = sorted((each for each in listed if each.title == title), key=lambda each: each.num)
        heads = refs.pull_requests
        found = [PullRequest(each.num, each.status, heads.get(f"refs/pr/{each.num}", ""), each.url) for each in named]
        return [each for each in found if each.head or each.status == "closed"]

    def commit(self, oid: str) -> Commit:
        """What lies there."""
        return self._commits.setdefault(oid, Commit(self.api, self.repo_id, oid))

    def committed_at(self, oid: str) -> datetime:
        """When that commit was made."""
        return self.api.list_repo_commits(self.repo_id, revision=oid)[0].created_at

    # --- writes -------------------------------------------------------------------------------------------------------

    def create(self, *, private: bool) -> None:
        """Nothing if it is there already."""
        self.api.create_repo(self.repo_id, private=private, exist_ok=True)

    def create_branch(self, branch: str, oid: str, *, exist_ok: bool = True) -> None:
        """Nothing, or an error, if there is one."""
        self.api.create_branch(self.repo_id, branch=branch, revision=oid, exist_ok=exist_ok)

    def delete_branch(self, branch: str) -> None:
        """Its commits stay as long as a tag or another branch has them."""
        self.api.delete_branch(self.repo_id, branch=branch)

    def create_tag(self, tag: str, oid: str) -> None:
        """An error if there is one."""
        self.api.create_tag(self.repo_id, tag=tag, revision=oid)

    def delete_tag(self, tag: str) -> None:
        """Its commit stays as long as a branch has it."""
        self.api.delete_tag(self.repo_id, tag=tag)

    def change(self, branch: str, parent: Commit, operations: Sequence[Any], message: str) -> str:
        """One commit on a branch, whose head must still be `parent`; gives its id.

        If all of it is there already, huggingface_hub makes no commit and looks at no parent; the id is the head's.
        """
        done = self.api.create_commit(
            self.repo_id, operations, commit_message=message, revision=branch, parent_commit=parent.oid
        )
        return str(done.oid)

    def propose(self, parent: Commit, operations: Sequence[Any], title: str, description: str) -> None:
        """Opens a pull request to main with one commit on `parent`."""
        self.api.create_commit(
            self.repo_id,
            operations,
            commit_message=title,
            commit_description=description,
            parent_commit=parent.oid,
            create_pr=True,
        )


def _lost_race(error: PublishError) -> bool:
    # 404: what was to be changed or deleted is gone.
    return status_of(error.__cause__) in (404, 409, 412)
