"""The folder destination: nothing before release, all of it after, and what crashed is completed by the next run."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from adapterline.destinations.folder import FolderDestination
from adapterline.errors import MachineError, PublishError
from adapterline.values import Package, Publication
from tests.packages import make_package, order_of


@pytest.fixture
def package(tmp_path: Path) -> Package:
    return make_package(tmp_path / "package")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "published"


def publish(root: Path, package: Package, day: int = 1) -> Publication:
    destination = FolderDestination(str(root), package.name)
    return destination.release(package, destination.stage(package), order_of(day))


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def is_whole_or_absent(root: Path, package: Package) -> bool:
    """Never a version folder that lacks something, never a `latest.json` that points to nothing."""
    target = root / package.name / package.sha12
    if target.exists():
        expected = {file.path: (package.folder / file.path).read_bytes() for file in package.files}
        return tree(target) == expected | {"manifest.json": package.manifest_bytes}
    return not (root / package.name / "latest.json").exists()


def test_nothing_is_visible_before_release(root: Path, package: Package) -> None:
    receipt = FolderDestination(str(root), package.name).stage(package)
    assert {path.name for path in root.iterdir()} == {".staging"}
    assert (receipt.published, receipt.read_back) == (False, "bytes")


def test_everything_is_visible_after_release_and_nothing_else(root: Path, package: Package) -> None:
    publication = publish(root, package)
    stem = f"{package.name}/{package.sha12}"
    files = {f"{stem}/{file.path}": (package.folder / file.path).read_bytes() for file in package.files}
    assert tree(root) == files | {
        f"{stem}/manifest.json": package.manifest_bytes,
        f"{package.name}/latest.json": (root / package.name / "latest.json").read_bytes(),
    }
    assert json.loads((root / package.name / "latest.json").read_bytes())["digest"] == package.manifest.digest
    assert publication.latest == "moved"
    assert Path(publication.load) == root / stem


def test_publishing_twice_changes_no_byte_and_no_time(root: Path, package: Package) -> None:
    publish(root, package)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    again = publish(root, package)
    assert again.receipt.published
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_an_older_run_publishes_and_latest_stays(root: Path, tmp_path: Path, package: Package) -> None:
    publish(root, package, day=2)
    latest = (root / package.name / "latest.json").read_bytes()
    older = make_package(tmp_path / "older", seed=1)
    assert publish(root, older, day=1).latest == "kept"
    assert (root / package.name / "latest.json").read_bytes() == latest
    assert is_whole_or_absent(root, older)
    assert publish(root, older, day=3).latest == "moved"


def test_of_two_manifests_of_one_bundle_the_first_counts(root: Path, tmp_path: Path, package: Package) -> None:
    first = publish(root, package)
    second = publish(root, make_package(tmp_path / "second", tool="2"))
    assert second.receipt.manifest_sha256 == first.receipt.manifest_sha256
    assert is_whole_or_absent(root, package)
    assert FolderDestination(str(root), package.name).verify(second)


def test_another_bundle_under_the_same_short_digest_is_refused(root: Path, package: Package) -> None:
    target = root / package.name / package.sha12
    target.mkdir(parents=True)
    other = package.manifest.model_copy(update={"digest": package.manifest.digest[:12] + "0" * 52})
    (target / "manifest.json").write_bytes(other.to_bytes())
    with pytest.raises(PublishError, match="same first 12 digits"):
        FolderDestination(str(root), package.name).stage(package)


def test_verify_notices_a_changed_byte_and_a_missing_file(root: Path, package: Package) -> None:
    publication = publish(root, package)
    destination = FolderDestination(str(root), package.name)
    assert destination.verify(publication)
    file = root / package.name / package.sha12 / package.files[0].path
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert not destination.verify(publication)
    file.unlink()
    assert not destination.verify(publication)


def test_a_damaged_publication_is_refused_not_repaired_silently(root: Path, package: Package) -> None:
    publish(root, package)
    (root / package.name / package.sha12 / package.files[0].path).write_bytes(b"damaged")
    with pytest.raises(PublishError, match="its bytes are not what"):
        publish(root, package)


def test_a_damaged_leftover_of_a_crashed_run_is_replaced(root: Path, package: Package) -> None:
    destination = FolderDestination(str(root), package.name)
    destination.stage(package)
    (leftover,) = (root / ".staging").iterdir()
    (leftover / package.files[0].path).write_bytes(b"half")
    publish(root, package)
    assert is_whole_or_absent(root, package)


def test_check_leaves_nothing(root: Path) -> None:
    FolderDestination(str(root), "tiny").check()
    assert not root.exists()


def test_a_place_that_cannot_be_written_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(PublishError):
        FolderDestination(str(tmp_path / "file"), "tiny").check()


class Crash(BaseException):
    """The process is gone: no handler may turn this into anything else."""


@pytest.fixture(params=["before", "after"])
def crashing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every call that changes the file system counts down; at zero the process "dies" before or after it."""
    left = [10**6]

    def counted(module: object, name: str) -> None:
        real = getattr(module, name)

        def call(*args: object, **kwargs: object) -> object:
            left[0] -= 1
            if left[0] == 0 and request.param == "before":
                raise Crash
            result = real(*args, **kwargs)
            if left[0] == 0:
                raise Crash
            return result

        monkeypatch.setattr(module, name, call)

    for name in ("fsync", "mkdir", "unlink", "rmdir", "rename", "replace"):
        counted(os, name)
    for name in ("rename", "replace", "mkdir"):
        counted(Path, name)
    return left


def test_a_crash_at_any_step_leaves_all_or_nothing_and_is_completed(
    root: Path, tmp_path: Path, package: Package, crashing: list[int]
) -> None:
    steps = 0
    while True:
        steps += 1
        place = root / str(steps)
        crashing[0] = steps
        try:
            publish(place, package)
        except Crash:
            finished = False
        else:
            finished = crashing[0] > 0
        crashing[0] = 10**6
        assert is_whole_or_absent(place, package), f"half published after step {steps}"
        publish(place, package)
        assert is_whole_or_absent(place, package)
        assert {path.name for path in place.iterdir()} == {package.name}, f"something is left after step {steps}"
        if finished:
            break
    assert steps > 10


def test_an_upload_killed_half_way_publishes_nothing_and_is_completed(root: Path, tmp_path: Path) -> None:
    package = make_package(tmp_path / "package", size=1 << 20)
    child = textwrap.dedent(
        f"""
        import os, shutil, signal
        from pathlib import Path
        from adapterline.destinations.folder import FolderDestination
        from tests.packages import make_package

        def copy(source, target, length=0):
            target.write(source.read(1 << 20))
            target.flush()
            os.kill(os.getpid(), signal.SIGKILL)

        package = make_package(Path({str(tmp_path / "again")!r}), size=1 << 20)
        shutil.copyfileobj = copy
        FolderDestination({str(root)!r}, package.name).stage(package)
        """
    )
    result = subprocess.run([sys.executable, "-c", child], cwd=Path(__file__).parents[2], check=False)
    assert result.returncode == -9
    assert {path.name for path in root.iterdir()} == {".staging"}
    assert sum(path.stat().st_size for path in root.rglob("*") if path.is_file()) == 1 << 20
    publish(root, package)
    assert is_whole_or_absent(root, package)
    assert {path.name for path in root.iterdir()} == {package.name}


def test_two_exporters_at_once_end_with_one_publication(root: Path, package: Package) -> None:
    barrier, errors = threading.Barrier(4), []

    def work() -> None:
        try:
            barrier.wait()
            publish(root, package)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not [error for error in errors if not isinstance(error, PublishError) or not error.transient]
    publish(root, package)
    assert is_whole_or_absent(root, package)
    assert {path.name for path in root.iterdir()} == {package.name}


def test_a_full_disk_publishes_nothing_and_says_so(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)], check=False)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        package = make_package(tmp_path / "package", size=1 << 20)
        with pytest.raises(MachineError, match="No space left") as caught:
            publish(small, package)
        assert caught.value.exit_code == 6
        assert not list(small.iterdir())
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_what_is_published_is_on_the_disk(root: Path, package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = set()
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    publish(root, package)
    files = [path for path in root.rglob("*") if path.is_file()]
    folders = {path.parent for path in files} | {root}
    assert {path.stat().st_ino for path in (*files, *folders)} <= synced


def test_a_failed_move_of_latest_leaves_no_half_written_file(
    root: Path, package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.replace

    def failing(self: Path, target: Path) -> Path:
        if Path(target).name == "latest.json":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(self, target)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(PublishError, match="Input/output error") as caught:
        publish(root, package)
    assert caught.value.transient
    assert not [path for path in (root / ".staging").rglob("*") if path.is_file()]
    monkeypatch.setattr(Path, "replace", real)
    assert publish(root, package).latest == "moved"
    assert {path.name for path in root.iterdir()} == {package.name}
