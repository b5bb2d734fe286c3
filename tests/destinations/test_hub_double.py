"""The double is believed by other tests, so what they rely on is shown here, with huggingface_hub as its client."""

from __future__ import annotations

import hashlib
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.hub_double.faults import Fault
from tests.hub_double.server import Hub
from tests.hub_fixtures import READER, STRANGER, WRITER, Wire

REPO = "acme/tiny"
BIG = b"\x00large\xff" * 1000


@pytest.fixture
def api(hub: Hub) -> HfApi:
    api = HfApi(endpoint=hub.url, token=WRITER)
    api.create_repo(REPO, private=True)
    return api


def commit(api: HfApi, files: dict[str, bytes], **options: str) -> str:
    operations = [CommitOperationAdd(path, data) for path, data in files.items()]
    return api.create_commit(REPO, operations, commit_message="a commit", **options).oid


def status(call: Callable[[], object]) -> int:
    with pytest.raises(HfHubHTTPError) as caught:
        call()
    return caught.value.response.status_code


def test_repository_is_a_git_repository_that_git_finds_in_order(hub: Hub, api: HfApi) -> None:
    commit(api, {"a.txt": b"a", "b.safetensors": BIG})
    api.create_tag(REPO, tag="v1")
    folder = hub.root / "repositories" / f"{REPO}.git"
    subprocess.run(["git", "-C", str(folder), "fsck", "--strict"], check=True, capture_output=True)
    shown = subprocess.run(["git", "-C", str(folder), "show", "v1:b.safetensors"], check=True, capture_output=True)
    assert f"oid sha256:{hashlib.sha256(BIG).hexdigest()}".encode() in shown.stdout


def test_large_files_are_stored_by_their_digest_and_small_ones_in_git(hub: Hub, api: HfApi) -> None:
    commit(api, {"a.txt": b"a", "b.safetensors": BIG})
    assert hub.stored(hashlib.sha256(BIG).hexdigest()).read_bytes() == BIG
    small, large = api.get_paths_info(REPO, ["a.txt", "b.safetensors", "nothing"])
    assert (small.lfs, small.size) == (None, 1)
    assert (large.lfs.sha256, large.size) == (hashlib.sha256(BIG).hexdigest(), len(BIG))
    assert hub.content(REPO, "main") == {"a.txt": b"a", "b.safetensors": BIG}


def test_upload_whose_bytes_have_another_digest_is_refused(hub: Hub, api: HfApi, wire: Wire) -> None:
    hrefs: list[str] = []
    network = wire.handle_request

    def listen(request: httpx2.Request) -> httpx2.Response:
        if request.method == "PUT":
            hrefs.append(str(request.url))
        return network(request)

    wire.handle_request = listen  # type: ignore[method-assign]
    commit(api, {"b.safetensors": BIG})
    digest = hashlib.sha256(BIG).hexdigest()
    assert httpx2.put(hrefs[0], content=b"other").status_code == 400
    assert httpx2.put(hrefs[0].partition("?")[0], content=BIG).status_code == 403
    assert httpx2.get(f"{hub.url}/lfs/{digest}").status_code == 403


def test_commit_of_an_object_that_was_never_uploaded_is_refused(hub: Hub, api: HfApi) -> None:
    lines = b'{"key": "header", "value": {"summary": "x"}}\n{"key": "lfsFile", "value": {"path": "b", "oid": "%s"}}'
    answer = httpx2.post(
        f"{hub.url}/api/models/{REPO}/commit/main",
        content=lines % (b"0" * 64),
        headers={"Authorization": f"Bearer {WRITER}"},
    )
    assert answer.status_code == 400
    assert hub.content(REPO, "main") == {}


@pytest.mark.parametrize("path", ["../a", "/a", "a/../b", ".git/config", "a//b", "."])
def test_path_that_leaves_the_repository_is_refused(hub: Hub, api: HfApi, path: str) -> None:
    lines = '{"key": "header", "value": {"summary": "x"}}\n{"key": "file", "value": {"path": "%s", "content": ""}}'
    answer = httpx2.post(
        f"{hub.url}/api/models/{REPO}/commit/main",
        content=(lines % path).encode(),
        headers={"Authorization": f"Bearer {WRITER}"},
    )
    assert answer.status_code == 400


def test_commit_on_another_parent_than_the_head_is_412(hub: Hub, api: HfApi) -> None:
    first = commit(api, {"a.txt": b"1"})
    second = commit(api, {"a.txt": b"2"}, parent_commit=first)
    assert status(lambda: commit(api, {"a.txt": b"3"}, parent_commit=first)) == 412
    assert hub.repository(REPO).refs("heads")["main"] == second


def test_of_commits_on_one_parent_exactly_one_lands(hub: Hub, api: HfApi) -> None:
    head = hub.repository(REPO).refs("heads")["main"]
    start, outcomes = threading.Barrier(4), list[int]()

    def run(number: int) -> None:
        start.wait()
        try:
            commit(api, {"a.txt": str(number).encode()}, parent_commit=head)
            outcomes.append(200)
        except HfHubHTTPError as error:
            outcomes.append(error.response.status_code)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [200, 412, 412, 412]
    assert len(hub.repository(REPO).log(hub.repository(REPO).refs("heads")["main"])) == 2


def test_commits_without_a_parent_all_land(hub: Hub, api: HfApi) -> None:
    threads = [threading.Thread(target=commit, args=(api, {f"{number}.txt": b"x"})) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert hub.content(REPO, "main") == {f"{number}.txt": b"x" for number in range(4)}


def test_files_are_copied_from_a_branch_and_deleted_in_one_commit(hub: Hub, api: HfApi) -> None:
    commit(api, {"old.txt": b"old", "dir/x.txt": b"x"})
    api.create_branch(REPO, branch="stage")
    staged = commit(api, {"b.safetensors": BIG, "c.txt": b"c"}, revision="stage")
    api.create_commit(
        REPO,
        [
            CommitOperationCopy("b.safetensors", "b.safetensors", src_revision=staged),
            CommitOperationCopy("c.txt", "c.txt", src_revision="stage"),
            CommitOperationDelete("old.txt"),
            CommitOperationDelete("dir/"),
        ],
        commit_message="release",
    )
    assert hub.content(REPO, "main") == {"b.safetensors": BIG, "c.txt": b"c"}
    with pytest.raises(EntryNotFoundError):
        api.create_commit(REPO, [CommitOperationDelete("old.txt")], commit_message="again")


def test_refs_are_made_once_and_go_when_deleted(hub: Hub, api: HfApi) -> None:
    head = hub.repository(REPO).refs("heads")["main"]
    api.create_branch(REPO, branch="a/b")
    api.create_tag(REPO, tag="v1", revision="a/b")
    assert status(lambda: api.create_branch(REPO, branch="a/b")) == 409
    assert status(lambda: api.create_tag(REPO, tag="v1")) == 409
    found = api.list_repo_refs(REPO)
    assert {(ref.name, ref.target_commit) for ref in found.branches} == {("main", head), ("a/b", head)}
    assert [(ref.name, ref.target_commit) for ref in found.tags] == [("v1", head)]
    api.delete_branch(REPO, branch="a/b")
    api.delete_tag(REPO, tag="v1")
    assert hub.repository(REPO).refs("tags") == {}
    assert status(lambda: api.delete_branch(REPO, branch="a/b")) == 404
    assert status(lambda: api.delete_branch(REPO, branch="main")) == 403
    with pytest.raises(RevisionNotFoundError):
        api.create_branch(REPO, branch="c", revision="nothing")
    assert status(lambda: api.create_branch(REPO, branch="a..b")) == 400


def test_trees_and_logs_are_those_of_the_revision(hub: Hub, api: HfApi) -> None:
    first = commit(api, {"a.txt": b"1", "dir/b.txt": b"2"})
    second = commit(api, {"a.txt": b"3"})
    assert [entry.path for entry in api.list_repo_tree(REPO, revision=first)] == [".gitattributes", "a.txt", "dir"]
    assert [entry.path for entry in api.list_repo_tree(REPO, "dir", recursive=True)] == ["dir/b.txt"]
    assert [entry.commit_id for entry in api.list_repo_commits(REPO)][:2] == [second, first]
    assert api.model_info(REPO, revision=first).sha == first
    last = {
        entry.path: entry.last_commit.oid for entry in api.get_paths_info(REPO, ["a.txt", "dir/b.txt"], expand=True)
    }
    assert last == {"a.txt": second, "dir/b.txt": first}
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(REPO, "nothing"))
    with pytest.raises(RevisionNotFoundError):
        list(api.list_repo_tree(REPO, revision="nothing"))


def test_downloads_give_the_bytes_also_in_ranges(hub: Hub, api: HfApi, tmp_path: Path) -> None:
    oid = commit(api, {"a.txt": b"0123456789", "dir/b.safetensors": BIG})
    folder = Path(snapshot_download(REPO, local_dir=tmp_path / "all", endpoint=hub.url, token=WRITER))
    assert (folder / "dir/b.safetensors").read_bytes() == BIG
    file = hf_hub_download(REPO, "a.txt", revision=oid, cache_dir=tmp_path / "one", endpoint=hub.url, token=WRITER)
    assert Path(file).read_bytes() == b"0123456789"
    headers = {"Authorization": f"Bearer {WRITER}"}
    for path, data in (("a.txt", b"0123456789"), ("dir/b.safetensors", BIG)):
        url = f"{hub.url}/{REPO}/resolve/main/{path}"
        part = httpx2.get(url, headers={**headers, "Range": "bytes=2-4"}, follow_redirects=True)
        assert (part.status_code, part.content) == (206, data[2:5])
        assert part.headers["Content-Range"] == f"bytes 2-4/{len(data)}"
        beyond = httpx2.get(url, headers={**headers, "Range": f"bytes={len(data)}-"}, follow_redirects=True)
        assert beyond.status_code == 416
    with pytest.raises(EntryNotFoundError):
        hf_hub_download(REPO, "nothing", cache_dir=tmp_path / "one", endpoint=hub.url, token=WRITER)


def test_tokens_may_do_what_their_role_and_their_organizations_allow(hub: Hub, api: HfApi) -> None:
    assert HfApi(endpoint=hub.url, token=READER).whoami()["auth"]["accessToken"]["role"] == "read"
    assert [org["name"] for org in api.whoami()["orgs"]] == ["acme"]
    assert HfApi(endpoint=hub.url, token=READER).model_info(REPO).private
    api.auth_check(REPO, write=True)
    head = hub.repository(REPO).refs("heads")["main"]
    for token, expected in ((READER, 403), (STRANGER, 404), ("hf_unknown", 401)):
        other = HfApi(endpoint=hub.url, token=token)
        for call in (
            lambda: commit(other, {"a.txt": b"a"}),  # noqa: B023
            lambda: other.create_branch(REPO, branch="b"),  # noqa: B023
            lambda: other.create_tag(REPO, tag="t"),  # noqa: B023
            lambda: other.auth_check(REPO, write=True),  # noqa: B023
        ):
            assert status(call) == expected
    assert status(lambda: HfApi(endpoint=hub.url, token=STRANGER).create_repo("acme/other")) == 403
    assert status(lambda: HfApi(endpoint=hub.url, token=READER).create_repo("alice/other")) == 403
    assert hub.repository(REPO).refs("heads") == {"main": head}


def test_private_repository_is_as_if_it_were_not_there(hub: Hub, api: HfApi) -> None:
    for token, expected in ((STRANGER, 404), (False, 401)):
        stranger = HfApi(endpoint=hub.url, token=token)
        assert status(lambda: stranger.model_info(REPO)) == expected  # noqa: B023
        assert status(lambda: stranger.model_info("acme/nothing")) == expected  # noqa: B023
    with pytest.raises(RepositoryNotFoundError):
        HfApi(endpoint=hub.url, token=STRANGER).model_info(REPO)
    hub.repository(REPO).private = False
    HfApi(endpoint=hub.url, token=False).model_info(REPO)


def test_repository_is_created_once_and_gone_when_deleted(hub: Hub, api: HfApi) -> None:
    assert status(lambda: api.create_repo(REPO)) == 409
    api.create_repo(REPO, exist_ok=True)
    api.delete_repo(REPO)
    with pytest.raises(RepositoryNotFoundError):
        api.model_info(REPO)


def test_fault_hits_as_many_matching_requests_as_it_says(hub: Hub, api: HfApi) -> None:
    hub.faults.arm(Fault(r"GET .*/refs$", status=418, skip=1, times=2))
    hub.requests.clear()
    api.list_repo_refs(REPO)
    api.model_info(REPO)
    assert [status(lambda: api.list_repo_refs(REPO)) for _ in range(2)] == [418, 418]
    api.list_repo_refs(REPO)
    assert hub.requests == [f"GET /api/models/{REPO}{end}" for end in ("/refs", "", "/refs", "/refs", "/refs")]


def test_dropped_request_is_done_or_not_as_the_fault_says(hub: Hub, api: HfApi) -> None:
    for drop, branches in (("before", {"main"}), ("after", {"main", "after"})):
        hub.faults.arm(Fault("POST .*/branch/", drop=drop))  # type: ignore[arg-type]
        with pytest.raises(httpx2.HTTPError):
            api.create_branch(REPO, branch=drop)
        assert hub.repository(REPO).refs("heads").keys() == branches
