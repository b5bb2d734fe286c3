"""A Hugging Face Hub for the tests: the part of its HTTP interface that huggingface_hub uses for model repositories.

It answers from real git repositories and an LFS store that checks sha256, and refuses what the Hub refuses: a commit
on another parent than the head, a read token that writes, a repository that the caller may not see. Big files come
from another host name ("localhost") under signed addresses, as from the Hub's CDN. Pull requests to main have one
commit and can be merged as long as main stays. Not there: Xet, multipart uploads, gating, quotas.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import secrets
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from re import Match
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

from tests.hub_double.faults import Faults
from tests.hub_double.repository import Entry, Pointer, PullRequest, Repository
from tests.hub_double.wire import HttpServer, Reply, Request

_PAGE = 2  # pull requests in an answer
LFS_FROM = 10 << 20  # bytes; the Hub takes nothing bigger as a regular file
_REPOSITORY = r"(?P<owner>[^/]+)/(?P<name>[^/]+)"
_API = rf"/api/models/{_REPOSITORY}"


class RefusedError(Exception):
    """An answer that is not 2xx. `code` becomes X-Error-Code, which huggingface_hub makes its exception types from."""

    def __init__(self, status: int, message: str, code: str = "", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        named = {"X-Error-Code": code} if code else {}
        self.reply = Reply.json({"error": message}, status, {"X-Error-Message": message, **named, **(headers or {})})


@dataclass(frozen=True)
class Token:
    """An access token of `user`, who is a member of `orgs`."""

    user: str
    orgs: tuple[str, ...] = ()
    role: Literal["read", "write"] = "write"

    @property
    def namespaces(self) -> tuple[str, ...]:
        return self.user, *self.orgs


@dataclass
class Hub:
    """One server with its own repositories, under `root`. `url` is the endpoint for `HfApi` and `HF_ENDPOINT`."""

    root: Path
    tokens: dict[str, Token] = field(default_factory=dict)
    faults: Faults = field(default_factory=Faults)

    def __post_init__(self) -> None:
        self._secret = secrets.token_bytes(16)
        self._lock = threading.Lock()
        self._http = HttpServer(self._answer, self.faults)
        self.url = f"http://127.0.0.1:{self._http.port}"

    @contextmanager
    def running(self) -> Iterator[Hub]:
        with self._http.running():
            yield self

    @property
    def requests(self) -> list[str]:
        """ "METHOD path" of every request until now, also of those that a fault hit. Clear it as you like."""
        return self._http.requests

    @property
    def writes(self) -> list[str]:
        """Those that may change something. `paths-info`, `preupload` and the card's check are POSTs that do not."""
        reading = re.compile(r"^(GET|HEAD) |/(paths-info|preupload)/|/validate-yaml$|/objects/batch$|/verify$")
        return [request for request in self.requests if not reading.search(request)]

    def repository(self, repo_id: str) -> Repository:
        """Behind the server's back, for assertions and for what other people do."""
        return Repository(self._path(*repo_id.split("/")))

    def stored(self, sha256: str) -> Path:
        """Where the LFS store keeps these bytes, if it does."""
        return self.root / "lfs" / sha256

    def content(self, repo_id: str, revision: str) -> dict[str, bytes] | None:
        """Path -> bytes of every file at a revision, except .gitattributes; None if there is no such revision."""
        repository = self.repository(repo_id)
        if (commit := repository.find(revision)) is None:
            return None
        entries = [entry for entry in repository.tree(commit) if entry.path != ".gitattributes"]
        return {entry.path: self._bytes(repository, entry) for entry in entries}

    def put(self, repo_id: str, files: Mapping[str, bytes | None], branch: str = "main") -> str:
        """A commit by somebody else, whole files by path (None deletes); the repository is created if need be."""
        path = self._path(*repo_id.split("/"))
        repository = Repository(path) if path.exists() else Repository.create(path)
        head = repository.find(branch)
        assert head is not None
        lfs = repository.lfs_paths(head, files)
        changes = {
            path: self._store(data).to_bytes() if data is not None and path in lfs else data
            for path, data in files.items()
        }
        commit = repository.commit(head, changes, "by hand")
        assert repository.swap(f"refs/heads/{branch}", commit, head)
        return commit

    def close(self, repo_id: str, number: int) -> None:
        """What a reviewer does who does not want it."""
        repository = self.repository(repo_id)
        repository.set_pull_request(number, replace(repository.pull_requests[number], status="closed"))

    def merge(self, repo_id: str, number: int) -> None:
        """What a reviewer does who wants it."""
        repository = self.repository(repo_id)
        head, main = repository.find(f"refs/pr/{number}"), repository.find("main")
        assert head is not None
        assert repository.log(head)[1].oid == main, "merging onto a main that moved is not in the double"
        assert repository.swap("refs/heads/main", head, main)
        repository.set_pull_request(number, replace(repository.pull_requests[number], status="merged"))

    # --- who may do what ----------------------------------------------------------------------------------------------

    def _answer(self, request: Request) -> Reply:
        path = urlsplit(request.target).path
        for method, pattern, answer in _ROUTES:
            if method == request.method and (match := re.fullmatch(pattern, path)):
                try:
                    return answer(self, request, match)
                except RefusedError as refused:
                    return refused.reply
        return RefusedError(404, f"No such route: {request.method} {path}").reply

    def _token(self, request: Request) -> Token | None:
        if not (given := request.headers.get("Authorization", "").removeprefix("Bearer ")):
            return None
        if given not in self.tokens:
            raise RefusedError(401, "Invalid credentials in Authorization header")
        return self.tokens[given]

    def _user(self, request: Request) -> Token:
        if token := self._token(request):
            return token
        raise RefusedError(401, "Invalid username or password.")

    def _readable(self, request: Request, match: Match[str]) -> Repository:
        path = self._path(match["owner"], match["name"])
        token = self._token(request)
        repository = Repository(path)
        if not path.exists() or (repository.private and not (token and match["owner"] in token.namespaces)):
            # To somebody unknown the Hub does not even say that there is nothing.
            self._user(request)
            raise RefusedError(404, "Repository not found", "RepoNotFound")
        return repository

    def _writable(self, request: Request, match: Match[str]) -> Repository:
        repository = self._readable(request, match)
        self._require_writer(request, match["owner"])
        return repository

    def _require_writer(self, request: Request, owner: str) -> None:
        token = self._user(request)
        if token.role != "write":
            raise RefusedError(403, "Forbidden: pass a write token to change content of this repository")
        if owner not in token.namespaces:
            raise RefusedError(403, f'You don\'t have the rights to change a model under the namespace "{owner}"')

    def _path(self, owner: str, name: str) -> Path:
        return self.root / "repositories" / owner / f"{name}.git"

    @staticmethod
    def _commit_of(repository: Repository, revision: str) -> str:
        if commit := repository.find(unquote(revision)):
            return commit
        raise RefusedError(404, f"Invalid rev id: {unquote(revision)}", "RevisionNotFound")

    # --- accounts and repositories ------------------------------------------------------------------------------------

    def whoami(self, request: Request, match: Match[str]) -> Reply:
        token = self._user(request)
        return Reply.json(
            {
                "type": "user",
                "name": token.user,
                "orgs": [{"type": "org", "name": name, "roleInOrg": "write"} for name in token.orgs],
                "auth": {"type": "access_token", "accessToken": {"displayName": "test", "role": token.role}},
            }
        )

    def create(self, request: Request, match: Match[str]) -> Reply:
        wanted = json.loads(request.body)
        owner, name = wanted.get("organization") or self._user(request).user, wanted["name"]
        self._require_writer(request, owner)
        if not re.fullmatch(r"[\w][\w.-]{0,95}", name, re.ASCII) or "--" in name or ".." in name:
            raise RefusedError(400, f"Invalid repository name: {name}")
        known = {"url": f"{self.url}/{owner}/{name}", "id": f"{owner}/{name}", "name": f"{owner}/{name}"}
        with self._lock:
            try:
                Repository.create(self._path(owner, name), private=wanted.get("visibility") == "private")
            except FileExistsError:
                return Reply.json({"error": "You already created this model repo", **known}, 409)
        return Reply.json(known)

    def delete(self, request: Request, match: Match[str]) -> Reply:
        wanted = json.loads(request.body)
        owner = wanted.get("organization") or self._user(request).user
        self._require_writer(request, owner)
        with self._lock:
            if not (path := self._path(owner, wanted["name"])).exists():
                raise RefusedError(404, "Repository not found", "RepoNotFound")
            shutil.rmtree(path)
        return Reply.json({})

    def authorize(self, request: Request, match: Match[str]) -> Reply:
        (self._writable if match["write"] else self._readable)(request, match)
        return Reply.json({})

    def models(self, request: Request, match: Match[str]) -> Reply:
        """Those of one author that the token may see."""
        [author] = parse_qs(urlsplit(request.target).query)["author"]
        token = self._token(request)
        member = token is not None and author in token.namespaces
        found = [path.stem for path in sorted((self.root / "repositories" / author).glob("*.git"))]
        seen = [name for name in found if member or not Repository(self._path(author, name)).private]
        return Reply.json([{"_id": "0", "id": f"{author}/{name}", "modelId": f"{author}/{name}"} for name in seen])

    def info(self, request: Request, match: Match[str]) -> Reply:
        repository = self._readable(request, match)
        commit = self._commit_of(repository, match["revision"] or "main")
        repo_id = f"{match['owner']}/{match['name']}"
        return Reply.json(
            {
                "_id": "0",
                "id": repo_id,
                "modelId": repo_id,
                "author": match["owner"],
                "sha": commit,
                "private": repository.private,
                "gated": False,
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "tags": [],
                "lastModified": repository.log(commit, limit=1)[0].date,
                "createdAt": repository.log(commit)[-1].date,
                "siblings": [{"rfilename": entry.path} for entry in repository.tree(commit)],
            }
        )

    # --- refs ---------------------------------------------------------------------------------------------------------

    def refs(self, request: Request, match: Match[str]) -> Reply:
        repository = self._readable(request, match)

        def rows(kind: str) -> list[dict[str, str]]:
            found = repository.refs(kind).items()
            return [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": commit} for name, commit in found]

        requests = []
        if _flag(request, "include_prs"):
            requests = [row | {"ref": f"refs/pr/{row['name']}"} for row in rows("pr")]
        return Reply.json({"branches": rows("heads"), "tags": rows("tags"), "converts": [], "pullRequests": requests})

    def create_branch(self, request: Request, match: Match[str]) -> Reply:
        repository = self._writable(request, match)
        start = json.loads(request.body or b"{}").get("startingPoint") or "main"
        return self._create_ref(repository, f"refs/heads/{unquote(match['branch'])}", start)

    def create_tag(self, request: Request, match: Match[str]) -> Reply:
        repository = self._writable(request, match)
        return self._create_ref(repository, f"refs/tags/{json.loads(request.body)['tag']}", match["revision"])

    def _create_ref(self, repository: Repository, ref: str, revision: str) -> Reply:
        if not repository.allows(ref):
            raise RefusedError(400, f"Invalid reference name: {ref}")
        if not repository.swap(ref, self._commit_of(repository, revision)):
            raise RefusedError(409, f"Reference already exists: {ref}")
        return Reply.json({})

    def delete_branch(self, request: Request, match: Match[str]) -> Reply:
        if (branch := unquote(match["branch"])) == "main":
            raise RefusedError(403, "The branch main is protected")
        return self._delete_ref(request, match, f"refs/heads/{branch}")

    def delete_tag(self, request: Request, match: Match[str]) -> Reply:
        return self._delete_ref(request, match, f"refs/tags/{unquote(match['tag'])}")

    def _delete_ref(self, request: Request, match: Match[str], ref: str) -> Reply:
        if not self._writable(request, match).delete(ref):
            raise RefusedError(404, f"Reference not found: {ref}", "RevisionNotFound")
        return Reply.json({})

    # --- reading ------------------------------------------------------------------------------------------------------

    def tree(self, request: Request, match: Match[str]) -> Reply:
        repository = self._readable(request, match)
        commit = self._commit_of(repository, match["revision"])
        under = unquote(match["path"] or "")
        recursive = _flag(request, "recursive")
        found = [entry for entry in repository.tree(commit, under, recursive=recursive) if entry.path != under]
        if under and not found:
            raise RefusedError(404, f"{under} does not exist on {match['revision']}", "EntryNotFound")
        return Reply.json([_describe(repository, commit, entry, _flag(request, "expand")) for entry in found])

    def paths_info(self, request: Request, match: Match[str]) -> Reply:
        repository = self._readable(request, match)
        commit = self._commit_of(repository, match["revision"])
        form = parse_qs(request.body.decode())
        expand = form.get("expand", ["false"])[0].lower() == "true"
        found = [repository.file(commit, path) for path in form.get("paths", [])]
        return Reply.json([_describe(repository, commit, entry, expand) for entry in found if entry])

    def commits(self, request: Request, match: Match[str]) -> Reply:
        repository = self._readable(request, match)
        log = repository.log(self._commit_of(repository, match["revision"]))
        rows = [
            {
                "id": each.oid,
                "title": each.title,
                "message": each.message,
                "authors": [{"user": "hub"}],
                "date": each.date,
            }
            for each in log
        ]
        return Reply.json(rows)

    def resolve(self, request: Request, match: Match[str]) -> Reply:
        repository = self._readable(request, match)
        commit = self._commit_of(repository, match["revision"])
        headers = {"X-Repo-Commit": commit}
        if (entry := repository.file(commit, unquote(match["path"]))) is None:
            raise RefusedError(404, "Entry not found", "EntryNotFound", headers)
        if entry.pointer:
            linked = {"X-Linked-Etag": f'"{entry.pointer.sha256}"', "X-Linked-Size": str(entry.pointer.size)}
            return Reply(302, headers={**headers, **linked, "Location": self._signed("GET", entry.pointer.sha256)})
        return Reply.file(repository.blob(entry.oid), request, {**headers, "ETag": f'"{entry.oid}"'})

    # --- writing ------------------------------------------------------------------------------------------------------

    def validate_card(self, request: Request, match: Match[str]) -> Reply:
        header = re.match(r"---\r?\n(.*?)\r?\n---", json.loads(request.body)["content"], re.DOTALL)
        try:
            yaml.safe_load(header[1] if header else "")
        except yaml.YAMLError as error:
            return Reply.json({"errors": [{"message": str(error)}], "warnings": []}, 400)
        return Reply.json({"errors": [], "warnings": []})

    def preupload(self, request: Request, match: Match[str]) -> Reply:
        repository = self._writable(request, match)
        commit = self._commit_of(repository, match["revision"])
        files = json.loads(request.body)["files"]
        lfs = repository.lfs_paths(commit, [file["path"] for file in files])
        rows = []
        for file in files:
            mode = "lfs" if file["path"] in lfs or file["size"] > LFS_FROM else "regular"
            there = repository.file(commit, file["path"])
            oid = {"oid": there.pointer.sha256 if there.pointer else there.oid} if there else {}
            rows.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, **oid})
        return Reply.json({"files": rows})

    def lfs_batch(self, request: Request, match: Match[str]) -> Reply:
        wanted = json.loads(request.body)
        if wanted["operation"] != "upload":
            raise RefusedError(422, "Only uploads")
        self._writable(request, match)
        rows: list[dict[str, Any]] = []
        for each in wanted["objects"]:
            verify = f"{self.url}/{match['owner']}/{match['name']}.git/info/lfs/objects/verify"
            actions = {
                "upload": {"href": self._signed("PUT", each["oid"]), "header": {}},
                "verify": {"href": verify, "header": {}},
            }
            there = self.stored(each["oid"]).exists()
            rows.append({"oid": each["oid"], "size": each["size"], **({} if there else {"actions": actions})})
        return Reply.json({"transfer": "basic", "objects": rows})

    def lfs_verify(self, request: Request, match: Match[str]) -> Reply:
        self._writable(request, match)
        wanted = json.loads(request.body)
        path = self.stored(wanted["oid"])
        if not path.exists() or path.stat().st_size != wanted["size"]:
            raise RefusedError(404, "The object is not there as announced")
        return Reply.json({})

    def lfs_put(self, request: Request, match: Match[str]) -> Reply:
        self._require_signature(request, match["oid"])
        if hashlib.sha256(request.body).hexdigest() != match["oid"]:
            raise RefusedError(400, "The bytes do not have this sha256")
        self._store(request.body)
        return Reply()

    def lfs_get(self, request: Request, match: Match[str]) -> Reply:
        self._require_signature(request, match["oid"])
        return Reply.file(self.stored(match["oid"]).read_bytes(), request, {"ETag": f'"{match["oid"]}"'})

    def commit(self, request: Request, match: Match[str]) -> Reply:
        repository = self._writable(request, match)
        branch = unquote(match["branch"])
        header, *operations = (json.loads(line) for line in request.body.splitlines())
        value, ref = header["value"], f"refs/heads/{branch}"
        changes = dict(map(self._change, operations))
        message = "\n\n".join(filter(None, (value["summary"], value.get("description"))))
        if _flag(request, "create_pr"):
            return self._open_pull_request(request, match, repository, value, changes, message)
        while True:
            head = repository.refs("heads").get(branch)
            if head is None:
                raise RefusedError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
            if value.get("parentCommit", head) != head:
                raise RefusedError(412, "A commit has happened since. Please refresh and try again.")
            try:
                commit = repository.commit(head, changes, message)
            except KeyError as error:
                raise RefusedError(404, f"A file with this name doesn't exist: {error}", "EntryNotFound") from None
            # Somebody else may have been faster: with a parent that is refused above, without one it is done again.
            if repository.swap(ref, commit, head):
                url = f"{self.url}/{match['owner']}/{match['name']}/commit/{commit}"
                return Reply.json({"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})

    def _open_pull_request(
        self,
        request: Request,
        match: Match[str],
        repository: Repository,
        value: Mapping[str, Any],
        changes: Mapping[str, bytes | None],
        message: str,
    ) -> Reply:
        commit = repository.commit(value.get("parentCommit") or repository.refs("heads")["main"], changes, message)
        with self._lock:
            number = len(repository.pull_requests) + 1
            author = self._user(request).user
            repository.set_pull_request(
                number, PullRequest(value["summary"], value.get("description") or "", author, "open")
            )
            assert repository.swap(f"refs/pr/{number}", commit)
        place = f"{self.url}/{match['owner']}/{match['name']}"
        opened = {"pullRequestUrl": f"{place}/discussions/{number}", "commitUrl": f"{place}/commit/{commit}"}
        return Reply.json({"success": True, "commitOid": commit, "hookOutput": "", **opened})

    def discussions(self, request: Request, match: Match[str]) -> Reply:
        requests = self._readable(request, match).pull_requests
        repo = {"name": f"{match['owner']}/{match['name']}", "type": "model"}
        rows = [
            {
                "title": each.title,
                "num": number,
                "author": {"name": each.author},
                "createdAt": "2026-05-01T00:00:00.000Z",
                "status": each.status,
                "repo": repo,
                "isPullRequest": True,
            }
            for number, each in sorted(requests.items(), reverse=True)
        ]
        page = int(parse_qs(urlsplit(request.target).query).get("p", ["0"])[0])
        start = page * _PAGE
        return Reply.json({"discussions": rows[start : start + _PAGE], "count": len(rows), "start": start})

    def _change(self, operation: Mapping[str, Any]) -> tuple[str, bytes | None]:
        value = operation["value"]
        path = str(value["path"])
        if any(part in ("", ".", "..", ".git") for part in path.removesuffix("/").split("/")):
            raise RefusedError(400, f"Invalid path: {path}")
        match operation["key"]:
            case "file":
                data = base64.b64decode(value["content"], validate=True)
                if len(data) > LFS_FROM:
                    raise RefusedError(400, f"{path} is too big for a regular file")
                return path, data
            case "lfsFile":
                if not (stored := self.stored(value["oid"])).exists():
                    raise RefusedError(400, f"The LFS object {value['oid']} does not exist")
                return path, Pointer(value["oid"], stored.stat().st_size).to_bytes()
            case "deletedFile" | "deletedFolder":
                return path.removesuffix("/"), None
        raise RefusedError(400, f"Unknown operation: {operation['key']}")

    # --- the LFS store ------------------------------------------------------------------------------------------------

    def _store(self, data: bytes) -> Pointer:
        pointer = Pointer(hashlib.sha256(data).hexdigest(), len(data))
        target = self.stored(pointer.sha256)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(secrets.token_hex(8))
        part.write_bytes(data)
        part.replace(target)
        return pointer

    def _bytes(self, repository: Repository, entry: Entry) -> bytes:
        return self.stored(entry.pointer.sha256).read_bytes() if entry.pointer else repository.blob(entry.oid)

    def _signed(self, method: str, oid: str) -> str:
        host = self.url.replace("127.0.0.1", "localhost")
        return f"{host}/lfs/{oid}?signature={self._signature(method, oid)}"

    def _signature(self, method: str, oid: str) -> str:
        return hmac.new(self._secret, f"{method} {oid}".encode(), "sha256").hexdigest()

    def _require_signature(self, request: Request, oid: str) -> None:
        given = parse_qs(urlsplit(request.target).query).get("signature", [""])[0]
        method = "GET" if request.method == "HEAD" else request.method
        if not hmac.compare_digest(given, self._signature(method, oid)):
            raise RefusedError(403, "SignatureDoesNotMatch")


def _flag(request: Request, name: str) -> bool:
    return parse_qs(urlsplit(request.target).query).get(name, ["false"])[0].lower() in ("true", "1")


def _describe(repository: Repository, commit: str, entry: Entry, expand: bool) -> dict[str, Any]:
    if entry.kind == "tree":
        return {"type": "directory", "oid": entry.oid, "size": 0, "path": entry.path}
    size = entry.pointer.size if entry.pointer else entry.size
    row: dict[str, Any] = {"type": "file", "oid": entry.oid, "size": size, "path": entry.path}
    if entry.pointer:
        row["lfs"] = {"oid": entry.pointer.sha256, "size": size, "pointerSize": entry.size}
    if expand:
        last = repository.log(commit, entry.path, limit=1)[0]
        row["lastCommit"] = {"id": last.oid, "title": last.title, "date": last.date}
    return row


_Answer = Callable[[Hub, Request, Match[str]], Reply]


def _reading(pattern: str, answer: _Answer) -> Iterable[tuple[str, str, _Answer]]:
    return ("GET", pattern, answer), ("HEAD", pattern, answer)


_ROUTES: tuple[tuple[str, str, _Answer], ...] = (
    ("GET", "/api/whoami-v2", Hub.whoami),
    ("POST", "/api/validate-yaml", Hub.validate_card),
    ("POST", "/api/repos/create", Hub.create),
    ("DELETE", "/api/repos/delete", Hub.delete),
    ("GET", "/api/models", Hub.models),
    ("GET", rf"{_API}(?:/revision/(?P<revision>[^/]+))?", Hub.info),
    ("GET", rf"{_API}/auth-check(?P<write>/write)?", Hub.authorize),
    ("GET", rf"{_API}/refs", Hub.refs),
    ("GET", rf"{_API}/discussions", Hub.discussions),
    ("POST", rf"{_API}/branch/(?P<branch>[^/]+)", Hub.create_branch),
    ("DELETE", rf"{_API}/branch/(?P<branch>[^/]+)", Hub.delete_branch),
    ("POST", rf"{_API}/tag/(?P<revision>[^/]+)", Hub.create_tag),
    ("DELETE", rf"{_API}/tag/(?P<tag>[^/]+)", Hub.delete_tag),
    ("GET", rf"{_API}/tree/(?P<revision>[^/]+)(?:/(?P<path>.*))?", Hub.tree),
    ("POST", rf"{_API}/paths-info/(?P<revision>[^/]+)", Hub.paths_info),
    ("GET", rf"{_API}/commits/(?P<revision>[^/]+)", Hub.commits),
    ("POST", rf"{_API}/preupload/(?P<revision>[^/]+)", Hub.preupload),
    ("POST", rf"{_API}/commit/(?P<branch>[^/]+)", Hub.commit),
    ("POST", rf"/{_REPOSITORY}\.git/info/lfs/objects/batch", Hub.lfs_batch),
    ("POST", rf"/{_REPOSITORY}\.git/info/lfs/objects/verify", Hub.lfs_verify),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", Hub.lfs_put),
    *_reading(r"/lfs/(?P<oid>[0-9a-f]{64})", Hub.lfs_get),
    *_reading(rf"/{_REPOSITORY}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", Hub.resolve),
)
