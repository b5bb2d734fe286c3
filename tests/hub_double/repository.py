"""A bare git repository and what the Hub does with one. Git's own plumbing, so trees, refs and races are real."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

NO_COMMIT = "0" * 40
#: What the Hub writes into a new model repository, shortened.
GITATTRIBUTES = "".join(
    f"*.{suffix} filter=lfs diff=lfs merge=lfs -text\n"
    for suffix in ("bin", "ckpt", "h5", "model", "msgpack", "npz", "onnx", "pkl", "pt", "pth", "safetensors", "zip")
)
_POINTER = re.compile(rb"version https://git-lfs\.github\.com/spec/v1\noid sha256:([0-9a-f]{64})\nsize (\d+)\n")
_ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("GIT_")},
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "hub",
    "GIT_AUTHOR_EMAIL": "hub@localhost",
    "GIT_COMMITTER_NAME": "hub",
    "GIT_COMMITTER_EMAIL": "hub@localhost",
}


@dataclass(frozen=True)
class Pointer:
    """What git holds of a file in the LFS store."""

    sha256: str
    size: int

    def to_bytes(self) -> bytes:
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n".encode()


@dataclass(frozen=True)
class Entry:
    """One line of a tree."""

    path: str
    kind: str  # blob or tree
    oid: str
    size: int  # bytes, as git holds it
    pointer: Pointer | None


@dataclass(frozen=True)
class PullRequest:
    title: str
    description: str
    author: str
    status: str  # open, closed or merged


@dataclass(frozen=True)
class LogEntry:
    oid: str
    title: str
    message: str
    date: str


class Repository:
    """Revisions are branches, tags or whole commit ids; the methods that take a `commit` want the id."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @classmethod
    def create(cls, path: Path, *, private: bool = False) -> Repository:
        """Appears whole. FileExistsError if there is one."""
        if path.exists():
            raise FileExistsError(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        repository = cls(Path(tempfile.mkdtemp(dir=path.parent)))
        repository._git("init", "--quiet", "--bare", "--initial-branch=main", ".")
        first = repository.commit(None, {".gitattributes": GITATTRIBUTES.encode()}, "initial commit")
        repository.swap("refs/heads/main", first)
        repository.private = private
        repository._path = repository._path.rename(path)
        return repository

    @property
    def private(self) -> bool:
        return (self._path / "private").exists()

    @private.setter
    def private(self, private: bool) -> None:
        if private:
            (self._path / "private").touch()
        else:
            (self._path / "private").unlink(missing_ok=True)

    @property
    def pull_requests(self) -> dict[int, PullRequest]:
        """By number. Their commits are the refs `refs/pr/{number}`."""
        path = self._path / "pull-requests.json"
        rows = json.loads(path.read_text()) if path.exists() else {}
        return {int(number): PullRequest(**row) for number, row in rows.items()}

    def set_pull_request(self, number: int, request: PullRequest) -> None:
        """A new one, or one with another status."""
        requests = {**self.pull_requests, number: request}
        rows = {number: asdict(each) for number, each in requests.items()}
        (self._path / "pull-requests.json").write_text(json.dumps(rows))

    def find(self, revision: str) -> str | None:
        """The commit id of a revision."""
        whole = re.fullmatch("[0-9a-f]{40}|refs/pr/[0-9]+", revision)
        for name in [revision] if whole else [f"refs/heads/{revision}", f"refs/tags/{revision}"]:
            if oid := self._git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}", check=False).strip():
                return oid.decode()
        return None

    def refs(self, kind: str) -> dict[str, str]:
        """Name -> commit id of all `heads`, `tags` or `pr`."""
        lines = self._git("for-each-ref", "--format=%(refname:lstrip=2) %(objectname)", f"refs/{kind}").decode()
        return dict(line.split() for line in lines.splitlines())

    def swap(self, ref: str, new: str, old: str = NO_COMMIT) -> bool:
        """Sets a ref that is `old`, or is not there; False if it is anything else. Atomic."""
        return self._try("update-ref", ref, new, old)

    def delete(self, ref: str) -> bool:
        return self._try("show-ref", "--verify", "--quiet", ref) and self._try("update-ref", "-d", ref)

    def allows(self, ref: str) -> bool:
        """Does git allow this name?"""
        return self._try("check-ref-format", ref)

    def tree(self, commit: str, under: str = "", *, recursive: bool = True) -> list[Entry]:
        """The entries below a folder, or the one file of that path."""
        names = ["-r"] if recursive else []
        places = [f"{under}/", under] if under else []
        lines = _unchanging(self._path, "ls-tree", "-z", "-l", *names, commit, "--", *places).split(b"\0")
        return [self._entry(*line.split(b"\t", 1)) for line in lines if line]

    def file(self, commit: str, path: str) -> Entry | None:
        return next((entry for entry in self.tree(commit, path) if entry.path == path), None)

    def blob(self, oid: str) -> bytes:
        return _unchanging(self._path, "cat-file", "blob", oid)

    def lfs_paths(self, commit: str, paths: Iterable[str]) -> set[str]:
        """Those of the paths that .gitattributes of that commit wants in the LFS store."""
        with tempfile.TemporaryDirectory() as folder:
            index = {"GIT_INDEX_FILE": f"{folder}/index"}
            self._git("read-tree", commit, env=index)
            stdin = "".join(f"{path}\0" for path in paths).encode()
            words = self._git("check-attr", "--cached", "-z", "--stdin", "filter", stdin=stdin, env=index).split(b"\0")
        return {words[i].decode() for i in range(0, len(words) - 2, 3) if words[i + 2] == b"lfs"}

    def commit(self, parent: str | None, changes: Mapping[str, bytes | None], message: str) -> str:
        """A commit that no ref names yet. None deletes the path, and what is below it; KeyError if nothing is there."""
        with tempfile.TemporaryDirectory() as folder:
            index = {"GIT_INDEX_FILE": f"{folder}/index"}
            self._git("read-tree", parent or "--empty", env=index)
            for path, data in changes.items():
                if data is None:
                    found = self._git("ls-files", "-z", "--", f":(literal){path}", env=index)
                    if not found:
                        raise KeyError(path)
                    lines = [b"0 %s\t%s\0" % (NO_COMMIT.encode(), name) for name in found.split(b"\0") if name]
                else:
                    blob = self._git("hash-object", "-w", "--stdin", stdin=data).strip()
                    lines = [b"100644 %s\t%s\0" % (blob, path.encode())]
                self._git("update-index", "-z", "--index-info", stdin=b"".join(lines), env=index)
            tree = self._git("write-tree", env=index).decode().strip()
        parents = ["-p", parent] if parent else []
        return self._git("commit-tree", tree, *parents, "-m", message).decode().strip()

    def log(self, commit: str, path: str | None = None, limit: int = 1000) -> list[LogEntry]:
        """The newest first; with a path, those that changed it."""
        places = ["--", path] if path else []
        form = ["--date=format-local:%Y-%m-%dT%H:%M:%S.000Z", "--format=%H%x01%s%x01%b%x01%cd"]
        text = self._git("log", "-z", f"-{limit}", *form, commit, *places, env={"TZ": "UTC"}).decode()
        return [LogEntry(*(part.strip() for part in line.split("\1"))) for line in text.split("\0") if line]

    def _entry(self, meta: bytes, path: bytes) -> Entry:
        _, kind, oid, size = meta.decode().split()
        length = int(size) if size != "-" else 0
        pointer = None
        if kind == "blob" and length < 200 and (match := _POINTER.fullmatch(self.blob(oid))):
            pointer = Pointer(match[1].decode(), int(match[2]))
        return Entry(path.decode(), kind, oid, length, pointer)

    def _try(self, *arguments: str) -> bool:
        return _run(self._path, arguments).returncode == 0

    def _git(
        self, *arguments: str, stdin: bytes = b"", env: Mapping[str, str] | None = None, check: bool = True
    ) -> bytes:
        return _output(_run(self._path, arguments, stdin, env), check)


@lru_cache(maxsize=10_000)
def _unchanging(path: Path, *arguments: str) -> bytes:
    """For what is named by its id: git is a process for each answer, and tests ask for the same thing often."""
    return _output(_run(path, arguments), check=True)


def _output(done: subprocess.CompletedProcess[bytes], check: bool) -> bytes:
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(map(str, done.args))}: {done.stderr.decode()}")
    return done.stdout


def _run(
    path: Path, arguments: Iterable[str], stdin: bytes = b"", env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    command = ["git", "-C", str(path), *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, env={**_ENVIRONMENT, **(env or {})})
