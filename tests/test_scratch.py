"""The scratch folder: what is kept, what is trimmed, and that processes sharing it never hurt each other."""

from __future__ import annotations

import hashlib
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from adapterline.errors import MachineError, UsageError
from adapterline.scratch import Scratch
from adapterline.settings import Settings
from adapterline.values import Bundle, ExportedFile

DAY = 86400.0
HOUR = 3600.0


@pytest.fixture
def scratch(tmp_path: Path) -> Scratch:
    return Scratch(tmp_path / "scratch", 10**6, 14 * DAY)


def bundle_of(**contents: bytes) -> Bundle:
    files = tuple(
        ExportedFile(
            role="weights",
            layout="diffusers",
            path=path,
            size=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            tensors_sha256="0" * 64,
        )
        for path, data in contents.items()
    )
    return Bundle(files=files, loads=(), transforms=(), digest=Bundle.digest_of(files))


def kept(scratch: Scratch, *, used_ago: float = 0, **contents: bytes) -> Bundle:
    """A bundle in the scratch folder, last used so many seconds ago."""
    bundle = bundle_of(**contents)
    with scratch.temporary("test-") as folder:
        for path, data in contents.items():
            (folder / path).write_bytes(data)
        scratch.keep(bundle, folder)
    age(scratch.folder(bundle.digest), used_ago)
    return bundle


def age(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


def present(scratch: Scratch, *bundles: Bundle) -> list[bool]:
    return [scratch.folder(bundle.digest).exists() for bundle in bundles]


def temporaries(scratch: Scratch) -> list[Path]:
    return sorted((scratch.root / "temporary").iterdir())


def test_limits_and_place_come_from_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    settings = Settings(scratch=Path("~/here"), scratch_max_gb=1.5, scratch_max_days=2)
    assert Scratch.open(settings) == Scratch(tmp_path / "home/here", 1_500_000_000, 2 * DAY)
    assert Scratch.open(Settings(scratch=Path("here"))).root == tmp_path / "here"
    assert list(tmp_path.iterdir()) == [], "opening makes nothing"


@pytest.mark.parametrize("digest", ["", "..", "a" * 63, "A" * 64, "../" + "a" * 61, "a" * 64 + "\n"])
def test_folder_takes_digests_only(scratch: Scratch, digest: str) -> None:
    with pytest.raises(UsageError):
        scratch.folder(digest)


# --- has, keep, touch -------------------------------------------------------------------------------------------------


def test_bundle_is_there_only_while_every_byte_is(scratch: Scratch) -> None:
    assert not scratch.has(bundle_of(a=b"one", b=b"two"))
    bundle = kept(scratch, a=b"one", b=b"two")
    folder = scratch.folder(bundle.digest)
    assert scratch.has(bundle)
    (folder / "b").write_bytes(b"twO")
    assert not scratch.has(bundle)
    (folder / "b").write_bytes(b"two+")
    assert not scratch.has(bundle)
    (folder / "b").write_bytes(b"two")
    assert scratch.has(bundle)
    (folder / "a").unlink()
    assert not scratch.has(bundle)


def test_folder_in_the_place_of_a_bundle_is_not_a_bundle_without_files(scratch: Scratch) -> None:
    empty = bundle_of()
    assert not scratch.has(empty)
    kept(scratch)
    assert scratch.has(empty)


def test_kept_folder_has_the_mode_of_the_umask_and_a_temporary_one_is_private(scratch: Scratch) -> None:
    before = os.umask(0o022)
    try:
        bundle = kept(scratch, a=b"one")
        with scratch.temporary("x-") as folder:
            assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
    finally:
        os.umask(before)
    assert stat.S_IMODE(scratch.folder(bundle.digest).stat().st_mode) == 0o755


def test_keeping_what_is_there_leaves_it_and_counts_as_a_use(scratch: Scratch) -> None:
    bundle = kept(scratch, a=b"one", used_ago=20 * DAY)
    inode = scratch.folder(bundle.digest).stat().st_ino
    with scratch.temporary("test-") as folder:
        (folder / "a").write_bytes(b"one")
        scratch.keep(bundle, folder)
        assert (folder / "a").exists()
    assert scratch.folder(bundle.digest).stat().st_ino == inode
    scratch.trim()
    assert present(scratch, bundle) == [True]


@pytest.mark.parametrize("use", [lambda s, b: s.has(b), lambda s, b: s.touch(b.digest)], ids=["has", "touch"])
def test_used_bundle_is_spared(scratch: Scratch, use: Callable[[Scratch, Bundle], object]) -> None:
    used, unused = kept(scratch, a=b"one", used_ago=20 * DAY), kept(scratch, a=b"two", used_ago=20 * DAY)
    use(scratch, used)
    scratch.trim()
    assert present(scratch, used, unused) == [True, False]


def test_touching_what_is_not_there_makes_nothing(scratch: Scratch) -> None:
    bundle = bundle_of(a=b"one")
    scratch.touch(bundle.digest)
    assert present(scratch, bundle) == [False]


def test_unusable_root_is_a_machine_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    scratch = Scratch(tmp_path / "file", 1, 1.0)
    for call in (
        scratch.trim,
        lambda: scratch.touch("0" * 64),
        lambda: scratch.has(bundle_of(a=b"")),
        lambda: kept(scratch),
    ):
        with pytest.raises(MachineError):
            call()


# --- trim -------------------------------------------------------------------------------------------------------------


def test_trim_of_nothing_does_nothing(scratch: Scratch) -> None:
    scratch.trim()
    assert temporaries(scratch) == []


def test_trim_removes_what_is_too_old(scratch: Scratch) -> None:
    old, young = kept(scratch, a=b"1", used_ago=14 * DAY + 60), kept(scratch, a=b"2", used_ago=14 * DAY - 60)
    scratch.trim()
    assert present(scratch, old, young) == [False, True]
    assert temporaries(scratch) == []


def test_trim_removes_the_least_recently_used_until_the_rest_fits(scratch: Scratch) -> None:
    ages = {"b": 5, "e": 2, "a": 6, "d": 3, "c": 4}  # days, kept in no order
    bundles = {
        name: kept(scratch, used_ago=days * DAY, a=name.encode() * 150_000, b=name.encode() * 150_000)
        for name, days in ages.items()
    }
    scratch.trim()  # 5 x 300,000 bytes, and 1,000,000 allowed
    assert present(scratch, *(bundles[name] for name in "abcde")) == [False, False, True, True, True]
    scratch.trim()
    assert present(scratch, *(bundles[name] for name in "abcde")) == [False, False, True, True, True]


def test_trim_never_takes_what_was_used_within_the_last_hour(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path, max_bytes=0, max_age_s=0.0)
    recent, not_quite = kept(scratch, a=b"1", used_ago=HOUR - 60), kept(scratch, a=b"2", used_ago=HOUR + 60)
    scratch.trim()
    assert present(scratch, recent, not_quite) == [True, False]


def test_what_is_in_use_counts_against_the_limit(scratch: Scratch) -> None:
    recent = kept(scratch, a=b"1" * 900_000)
    older = kept(scratch, a=b"2" * 200_000, used_ago=2 * HOUR)
    scratch.trim()
    assert present(scratch, recent, older) == [True, False]


def test_trim_leaves_strange_files_alone(scratch: Scratch) -> None:
    kept(scratch, a=b"1")
    strange = [scratch.root / "mine", scratch.root / "bundles" / "mine", scratch.root / "temporary" / "mine"]
    for path in strange:
        path.write_bytes(b"")
        age(path, 100 * DAY)
    scratch.trim()
    assert [path.exists() for path in strange] == [True, True, True]


# --- temporary folders ------------------------------------------------------------------------------------------------


def test_temporary_folder_is_gone_after_the_block_and_after_an_exception(scratch: Scratch) -> None:
    with scratch.temporary("fetched-") as folder:
        assert list(folder.iterdir()) == []
        assert temporaries(scratch)[0].name.startswith("fetched-")
        (folder / "below").mkdir()
        (folder / "below" / "file").write_bytes(b"x")
    assert temporaries(scratch) == []
    with pytest.raises(ConnectionResetError), scratch.temporary("fetched-"):
        raise ConnectionResetError  # an OSError of the caller's own is not called a fault of this disk
    assert temporaries(scratch) == []


def test_temporary_folder_is_spared_while_its_owner_lives_however_old(scratch: Scratch) -> None:
    with scratch.temporary("fetched-") as folder:
        (folder / "file").write_bytes(b"x")
        for path in (folder, folder.parent, folder.parent / "lock", folder / "file"):
            age(path, 100 * DAY)
        scratch.trim()
        assert (folder / "file").read_bytes() == b"x"


HOLDER = """
import signal, sys
from pathlib import Path
from adapterline.scratch import Scratch
with Scratch(Path(sys.argv[1]), 1, 1.0).temporary("held-") as folder:
    (folder / "file").write_bytes(b"x")
    print(folder, flush=True)
    signal.pause()
"""


def test_temporary_folder_of_another_process_is_spared_until_it_is_killed(scratch: Scratch) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, scratch.root], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            folder = Path(holder.stdout.readline().strip())
            scratch.trim()
            assert (folder / "file").exists()
        finally:
            holder.send_signal(signal.SIGKILL)
    assert (folder / "file").exists()
    scratch.trim()
    assert temporaries(scratch) == []


def test_temporary_folder_of_an_owner_killed_before_it_had_a_lock_is_trimmed(scratch: Scratch) -> None:
    (scratch.root / "temporary" / "fetched-0").mkdir(parents=True)
    scratch.trim()
    assert temporaries(scratch) == []


# --- several at once --------------------------------------------------------------------------------------------------


def test_trims_at_once_agree(scratch: Scratch) -> None:
    old = [kept(scratch, used_ago=20 * DAY, a=b"old %d" % n) for n in range(200)]
    young = [kept(scratch, used_ago=2 * HOUR, a=b"young %d" % n) for n in range(20)]
    for n in range(50):
        (scratch.root / "temporary" / f"dead-{n}").mkdir()
    script = "import sys; from pathlib import Path; from adapterline.scratch import Scratch\n"
    script += "s = Scratch(Path(sys.argv[1]), 10**6, 14 * 86400.0); print(flush=True); sys.stdin.readline(); s.trim()"
    running = [
        subprocess.Popen(
            [sys.executable, "-c", script, scratch.root],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for process in running:
        assert process.stdout is not None
        process.stdout.readline()
    for process in running:  # all are loaded: now they start together
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    assert [process.communicate(timeout=60)[1] for process in running] == [""] * 4
    assert [process.returncode for process in running] == [0] * 4
    assert present(scratch, *old) == [False] * 200
    assert present(scratch, *young) == [True] * 20
    assert temporaries(scratch) == []


def test_what_has_says_is_there_stays_there_while_others_trim(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path, max_bytes=0, max_age_s=0.0)
    lost = []
    for _ in range(60):
        bundles = [kept(scratch, used_ago=DAY + n, a=b"%d" % n) for n in range(12)]
        trimming = threading.Thread(target=scratch.trim)
        trimming.start()
        found = [bundle for bundle in bundles if scratch.has(bundle)]
        trimming.join()
        lost += [bundle for bundle in found if not scratch.has(bundle)]
    assert lost == []


def test_damage_is_repaired_once_when_several_keep_the_same_bundle(scratch: Scratch) -> None:
    bundle = kept(scratch, a=b"one" * 1000)
    (scratch.folder(bundle.digest) / "a").write_bytes(b"two" * 1000)
    start, errors, inodes = threading.Barrier(4), [], set()

    def keep() -> None:
        try:
            start.wait()
            kept(scratch, a=b"one" * 1000)
            inodes.add((scratch.folder(bundle.digest) / "a").stat().st_ino)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=keep) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(inodes) == 1
    assert scratch.has(bundle)
    assert temporaries(scratch) == []
