"""A packed checkpoint is the checkpoint that was packed; what an archive hides in its members is refused."""

from __future__ import annotations

import gzip
import io
import os
import random
import tarfile
from pathlib import Path

import pytest
import torch

from adapterline.checkpoints import archives, load_checkpoint
from adapterline.errors import CheckpointError, CheckpointIncompleteError
from adapterline.request import name_of
from adapterline.values import ExportOptions
from tests.conftest import Trained


def packed(folder: Path, archive: Path, inside: str = ".", mode: str = "w:gz") -> Path:
    with tarfile.open(archive, mode) as tar:  # type: ignore[call-overload]
        tar.add(folder, inside)
    return archive


@pytest.mark.parametrize(
    ("name", "mode"),
    [("model.tar.gz", "w:gz"), ("model.tgz", "w:gz"), ("a.tar.xz", "w:xz"), ("a.tar.bz2", "w:bz2"), ("model.tar", "w")],
)
@pytest.mark.parametrize("inside", [".", "out"])
def test_a_packed_folder_is_read_as_the_folder_is(
    tmp_path: Path, trained: Trained, name: str, mode: str, inside: str
) -> None:
    plain = load_checkpoint(str(trained.checkpoint), ExportOptions(), tmp_path / "a")
    archive = packed(trained.checkpoint, tmp_path / name, inside, mode)
    found = load_checkpoint(str(archive), ExportOptions(), tmp_path / "b")
    assert found.digest == plain.digest
    assert found.modified_at.replace(microsecond=0) == plain.modified_at.replace(microsecond=0)


def test_a_job_names_what_its_archive_does_not() -> None:
    assert name_of(None, "s3://runs/sagemaker/sks-dog-7/output/model.tar.gz") == "sks-dog-7"


def test_a_file_of_torch_that_is_called_tar_is_none(tmp_path: Path, trained: Trained) -> None:
    torch.save({"unet.x.lora_A.weight": torch.zeros(2, 2)}, tmp_path / "checkpoint.pth.tar")
    assert not archives.is_archive(tmp_path / "checkpoint.pth.tar")


@pytest.mark.parametrize("member", ["../evil.safetensors", "/evil.safetensors", "a/../../evil.safetensors", "a\\b.bin"])
def test_a_member_outside_of_the_archive_is_refused(tmp_path: Path, member: str) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo(member), io.BytesIO())
    with pytest.raises(CheckpointError, match="lies outside of it"):
        load_checkpoint(str(tmp_path / "a.tar"), ExportOptions(), tmp_path / "work")
    assert not list(tmp_path.rglob("*evil*"))


def test_links_and_devices_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "secret.safetensors").write_bytes(b"secret")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)):
            member = tarfile.TarInfo(f"{number}.safetensors")
            member.type, member.linkname = kind, str(tmp_path / "secret.safetensors")
            tar.addfile(member)
    with pytest.raises(CheckpointError, match="nothing in it that belongs"):
        archives.unpack(tmp_path / "a.tar", tmp_path / "out", lambda path: True)


def test_what_unpacks_to_too_much_is_refused_before_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "MAX_BYTES", 1 << 20)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(bytes((1 << 20) + 1))
    with pytest.raises(CheckpointError, match="unpacks to more than"):
        archives.unpack(packed(folder, tmp_path / "a.tar.gz"), tmp_path / "out", lambda path: True)
    assert not list((tmp_path / "out").rglob("*"))


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("part", [0.3, 0.9])
def test_an_archive_that_breaks_off_is_incomplete(tmp_path: Path, compressed: bool, part: float) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(random.Random(0).randbytes(200_000))
    archive = packed(folder, tmp_path / "a.tar.gz", mode="w:gz" if compressed else "w")
    os.truncate(archive, int(archive.stat().st_size * part))
    with pytest.raises(CheckpointIncompleteError, match="cannot be unpacked"):
        load_checkpoint(str(archive), ExportOptions(), tmp_path / "work")


def test_an_archive_whose_bytes_are_wrong_is_refused(tmp_path: Path, trained: Trained) -> None:
    archive = packed(trained.checkpoint, tmp_path / "a.tar.gz")
    data = bytearray(archive.read_bytes())
    for at in range(20, len(data), len(data) // 40):
        archive.write_bytes(data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :])
        with pytest.raises(CheckpointError):
            load_checkpoint(str(archive), ExportOptions(), tmp_path / f"work{at}")
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress(b"no archive"))
    with pytest.raises(CheckpointError):
        load_checkpoint(str(tmp_path / "b.tar.gz"), ExportOptions(), tmp_path / "work")
