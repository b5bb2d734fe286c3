from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from adapterline.checkpoints.fetch_hub import fetch_base_configs, fetch_hub
from adapterline.errors import AdapterlineError, CheckpointError, FamilyError, UsageError
from adapterline.hub import Commit
from tests.hub_double.faults import Fault
from tests.hub_double.server import Hub
from tests.hub_fixtures import STRANGER, Wire

REPO = "alice/lora"
URI = f"hf://{REPO}"
WEIGHTS = b"weights" * 100
FILES: dict[str, bytes | None] = {
    "adapter_model.safetensors": WEIGHTS,
    "adapter_config.json": b'{"r": 4}',
    "README.md": b"# LoRA",
    "modeling.py": b"raise SystemExit",
    "samples/a.png": b"png",
    "optimizer.bin": b"state",
    "checkpoint-5/adapter_model.bin": b"five",
    "checkpoint-5/trainer_state.json": b"{}",
    "checkpoint-50/adapter_model.bin": b"fifty",
}


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def one_paragraph(error: AdapterlineError) -> bool:
    return "\n" not in str(error) and "Traceback" not in str(error)


def test_repository_gives_what_an_adapter_is_made_of_and_no_code(hub: Hub, tmp_path: Path) -> None:
    hub.put(REPO, FILES)
    assert fetch_hub(URI, tmp_path / "f") == tmp_path / "f"
    left_out = {"modeling.py", "samples/a.png", "optimizer.bin"}
    assert files_in(tmp_path / "f") == {path: data for path, data in FILES.items() if path not in left_out}


def test_folder_gives_what_is_below_it_and_not_its_neighbours(hub: Hub, tmp_path: Path) -> None:
    hub.put(REPO, FILES)
    assert fetch_hub(f"{URI}/checkpoint-5/", tmp_path / "f") == tmp_path / "f/checkpoint-5"
    assert files_in(tmp_path / "f").keys() == {"checkpoint-5/adapter_model.bin", "checkpoint-5/trainer_state.json"}


def test_file_gives_that_file(hub: Hub, tmp_path: Path) -> None:
    hub.put(REPO, FILES)
    path = fetch_hub(f"{URI}/adapter_model.safetensors", tmp_path / "f")
    assert path == tmp_path / "f/adapter_model.safetensors"
    assert files_in(tmp_path / "f") == {"adapter_model.safetensors": WEIGHTS}


def test_revision_may_be_a_tag_a_branch_or_a_commit(hub: Hub, tmp_path: Path) -> None:
    first = hub.put(REPO, {"a.safetensors": b"first"})
    repository = hub.repository(REPO)
    assert repository.swap("refs/tags/v1", first)
    assert repository.swap("refs/heads/side", first)
    hub.put(REPO, {"a.safetensors": b"second"})
    for revision in ("v1", "side", first):
        for path in ("", "/a.safetensors"):
            fetch_hub(f"{URI}@{revision}{path}", tmp_path / revision)
            assert files_in(tmp_path / revision) == {"a.safetensors": b"first"}
    fetch_hub(URI, tmp_path / "main")
    assert files_in(tmp_path / "main") == {"a.safetensors": b"second"}


def test_all_files_are_of_one_commit_whatever_is_pushed_meanwhile(hub: Hub, wire: Wire, tmp_path: Path) -> None:
    hub.put(REPO, {"a.safetensors": b"first", "b.json": b"first"})

    def push(count: int, line: str) -> None:
        if line.startswith("GET /api/models/") and count == 2:
            hub.put(REPO, {"a.safetensors": b"second", "b.json": b"second"})

    wire.restart(push)
    fetch_hub(URI, tmp_path / "f")
    assert hub.content(REPO, "main") == {"a.safetensors": b"second", "b.json": b"second"}
    assert files_in(tmp_path / "f") == {"a.safetensors": b"first", "b.json": b"first"}


def test_files_have_the_time_of_the_commit_that_changed_them(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for day, files in ((1, {"a.safetensors": b"1"}), (2, {"b.safetensors": b"2"})):
        moment = datetime(2025, 3, day, 12, tzinfo=UTC)
        monkeypatch.setitem(_git_environment(), "GIT_COMMITTER_DATE", moment.isoformat())
        hub.put(REPO, dict(files))
    fetch_hub(URI, tmp_path)
    times = {path: datetime.fromtimestamp(os.stat(tmp_path / path).st_mtime, UTC) for path in files_in_root(tmp_path)}
    assert {path: moment.day for path, moment in times.items()} == {"a.safetensors": 1, "b.safetensors": 2}


def _git_environment() -> dict[str, str]:
    from tests.hub_double import repository

    return repository._ENVIRONMENT


def files_in_root(folder: Path) -> list[str]:
    return [path for path in files_in(folder) if path.endswith(".safetensors")]


def test_private_repository_needs_a_token_that_may_see_it(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.put(REPO, FILES)
    hub.repository(REPO).private = True
    assert fetch_hub(URI, tmp_path / "f")
    for token in (STRANGER, ""):
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(CheckpointError, match="answered 40[14]") as caught:
            fetch_hub(URI, tmp_path / "g")
        assert not caught.value.transient
        assert caught.value.remedy
        assert one_paragraph(caught.value)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("hf://alice/nothing", "answered 404"),
        (f"{URI}@nothing", "answered 404"),
        (f"{URI}/nothing", "There is nothing at"),
        (f"{URI}/checkpoint-", "There is nothing at"),
        (f"{URI}/samples", "has 1 files and none that belongs to a checkpoint"),
    ],
)
def test_what_is_missing_is_named(hub: Hub, tmp_path: Path, uri: str, message: str) -> None:
    hub.put(REPO, FILES)
    with pytest.raises(CheckpointError, match=message) as caught:
        fetch_hub(uri, tmp_path)
    assert not caught.value.transient
    assert one_paragraph(caught.value)
    assert files_in(tmp_path / "hub/nothing") == {}


@pytest.mark.parametrize(
    "uri", ["hf://alice", "hf://alice/lora@", "hf://alice/lora/../x", "hf://alice/lora//x", "hf://a b/c", "hf:///x/y"]
)
def test_uri_that_names_no_place_is_a_usage_error(uri: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a place on the Hub"):
        fetch_hub(uri, tmp_path)


@pytest.mark.usefixtures("no_pauses")
@pytest.mark.parametrize("fault", [{"drop": "before"}, {"status": 503}, {"status": 429}])
@pytest.mark.parametrize("request_line", ["/api/models/alice/lora$", "/tree/", "/resolve/", "GET /lfs/"])
def test_fault_that_lasts_is_transient_and_one_that_passes_is_made_good(
    hub: Hub, tmp_path: Path, request_line: str, fault: dict[str, Any]
) -> None:
    hub.put(REPO, FILES)
    hub.faults.arm(Fault(request_line, times=1000, **fault))
    with pytest.raises(CheckpointError) as caught:
        fetch_hub(f"{URI}/adapter_model.safetensors", tmp_path / "f")
    assert caught.value.transient
    assert one_paragraph(caught.value)
    hub.faults.arm()
    assert fetch_hub(f"{URI}/adapter_model.safetensors", tmp_path / "f").read_bytes() == WEIGHTS


@pytest.mark.parametrize("path", ["adapter_model.safetensors", "adapter_config.json"])
def test_file_whose_bytes_changed_on_the_way_is_not_kept(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    hub.put(REPO, FILES)
    download = Commit.download

    def damage(self: Commit, name: str, folder: Path) -> None:
        download(self, name, folder)
        data = bytearray((folder / name).read_bytes())
        data[0] ^= 1
        (folder / name).write_bytes(data)

    monkeypatch.setattr(Commit, "download", damage)
    with pytest.raises(CheckpointError, match="other bytes than the repository states") as caught:
        fetch_hub(f"{URI}/{path}", tmp_path / "f")
    assert caught.value.transient
    assert path not in files_in(tmp_path / "f")


def test_path_that_leads_out_of_the_folder_is_refused(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.put(REPO, FILES)
    lies = {"../../evil.json": object()}
    monkeypatch.setattr(Commit, "files", lies)
    with pytest.raises(CheckpointError, match="cannot be a file"):
        fetch_hub(URI, tmp_path / "f")
    assert not (tmp_path / "f").exists()


# --- bases ------------------------------------------------------------------------------------------------------------

BASE = "alice/base"
BASE_FILES: dict[str, bytes | None] = {
    "model_index.json": json.dumps({"_class_name": "StableDiffusionPipeline"}).encode(),
    "unet/config.json": b"{}",
    "unet/diffusion_pytorch_model.safetensors": WEIGHTS,
    "unet/deeper/config.json": b"{}",
    "scheduler/scheduler_config.json": b"{}",
    "config.json": b"{}",
    "pipeline.py": b"raise SystemExit",
}


def test_base_gives_its_configurations_and_the_commit(hub: Hub, tmp_path: Path) -> None:
    commit = hub.put(BASE, BASE_FILES)
    folder, revision = fetch_base_configs(BASE, None, tmp_path)
    assert revision == commit
    assert folder.is_relative_to(tmp_path)
    assert files_in(folder).keys() == {"model_index.json", "unet/config.json"}


def test_modular_pipeline_is_a_base_too(hub: Hub, tmp_path: Path) -> None:
    files = {"modular_model_index.json": b"{}", "transformer/config.json": b"{}", "block.py": b"raise SystemExit"}
    hub.put(BASE, files)
    folder, _ = fetch_base_configs(BASE, None, tmp_path)
    assert files_in(folder).keys() == {"modular_model_index.json", "transformer/config.json"}


def test_base_of_a_revision_is_not_mixed_with_that_of_another(hub: Hub, tmp_path: Path) -> None:
    first = hub.put(BASE, BASE_FILES)
    hub.put(BASE, {"vae/config.json": b"{}", "unet/config.json": b"[]"})
    newest, _ = fetch_base_configs(BASE, "main", tmp_path)
    folder, revision = fetch_base_configs(BASE, first, tmp_path)
    assert revision == first
    assert files_in(folder)["unet/config.json"] == b"{}"
    assert "vae/config.json" not in files_in(folder)
    assert files_in(newest)["unet/config.json"] == b"[]"


@pytest.mark.parametrize(
    ("model", "revision", "message"),
    [
        ("alice/nothing", None, "answered 404"),
        (BASE, "nothing", "answered 404"),
        (REPO, None, "has no model_index.json"),
        ("a/b/c", None, "is no Hub id"),
        ("../x", None, "is no Hub id"),
    ],
)
def test_what_is_no_base_is_a_family_error(
    hub: Hub, tmp_path: Path, model: str, revision: str | None, message: str
) -> None:
    hub.put(BASE, BASE_FILES)
    hub.put(REPO, FILES)
    with pytest.raises(FamilyError, match=message) as caught:
        fetch_base_configs(model, revision, tmp_path)
    assert one_paragraph(caught.value)


def test_base_on_an_unreachable_hub_is_a_transient_checkpoint_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(CheckpointError, match="no whole answer") as caught:
        fetch_base_configs(BASE, None, tmp_path)
    assert caught.value.transient
