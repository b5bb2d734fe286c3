"""The command line: data on stdout, one paragraph on stderr, and the exit code that says whose fault it is."""

from __future__ import annotations

import json
import os
import pickle
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapterline.cli import main
from adapterline.seaweedfs import SeaweedFS
from adapterline.values import WEIGHT_NAME, LineageRecord
from tests.conftest import Trained
from tests.s3_fixtures import READER
from tests.servers import free_port


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def run(records: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Runs a command in this process."""

    def call(*arguments: str | Path) -> Answer:
        monkeypatch.setattr(sys, "argv", ["adapterline", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        captured = capsys.readouterr()
        return Answer(code, captured.out, captured.err)

    return call


def assert_refused(answer: Answer, code: int, *words: str) -> None:
    """One paragraph, no traceback, nothing on stdout."""
    assert answer.code == code, answer.err
    assert answer.out == ""
    lines = [line for line in answer.err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, answer.err
    assert "Traceback" not in answer.err
    for word in words:
        assert word in lines[0]


# --- what goes well ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("prefect_api")
def test_export_prints_the_record_and_how_to_load_it(
    run: Callable[..., Answer], trained: Trained, tmp_path: Path
) -> None:
    answer = run("export", trained.checkpoint, "--base", trained.base, "--to", tmp_path / "out", "--name", "dog")
    assert answer.code == 0, answer.err
    assert answer.out.startswith("exported: dog ")
    assert "unet: lora, rank 4, alpha 6.0, 128 modules, float32" in answer.out
    snippet = answer.out[answer.out.index("import diffusers") :]
    with torch.random.fork_rng(devices=[]):
        exec(compile(snippet, "snippet", "exec"), {})  # what a user pastes
    again = run("export", trained.checkpoint, "--base", trained.base, "--to", tmp_path / "out", "--name", "dog")
    assert again.code == 0
    assert again.out.startswith("already-exported: dog ")


@pytest.mark.usefixtures("prefect_api")
def test_export_json_is_one_document_the_record(run: Callable[..., Answer], trained: Trained, tmp_path: Path) -> None:
    arguments = ("--base", trained.base, "--to", tmp_path / "out", "--run-id", "run-7", "--base-model", "org/base@main")
    answer = run("export", trained.checkpoint, *arguments, "--json")
    record = LineageRecord.model_validate(answer.document)
    assert record.outcome == "exported"
    assert record.run is not None
    assert record.run.run_id == "run-7"
    assert record.manifest is not None
    assert (record.manifest.base.model, record.manifest.base.revision) == ("org/base", "main")


@pytest.mark.usefixtures("prefect_api")
def test_a_dry_run_publishes_nothing(run: Callable[..., Answer], trained: Trained, tmp_path: Path) -> None:
    answer = run("export", trained.checkpoint, "--base", trained.base, "--to", tmp_path / "out", "--dry-run")
    assert answer.code == 0
    assert answer.out.startswith("validated: ")
    assert not (tmp_path / "out").exists()


def test_inspect_says_what_it_is(run: Callable[..., Answer], trained: Trained) -> None:
    found = run("inspect", trained.checkpoint, "--json").document
    assert (found["container"], found["dialect"], found["family"]) == ("peft-folder", "peft", "sd15")
    unet = found["components"]["unet"]
    assert (unet["rank"], unet["alpha"], unet["modules"], unet["adapter_type"]) == (4, 6.0, 128, "lora")
    assert unet["dtype"] == "float32"
    assert len(found["digest"]) == 64
    assert found["warnings"] == []
    assert "text_encoder: lora, rank 8, alpha 4.0, 8 modules" in run("inspect", trained.checkpoint).out


@pytest.fixture
def file(run: Callable[..., Answer], prefect_api: str, trained: Trained, tmp_path: Path) -> Path:
    """An exported file."""
    answer = run("export", trained.checkpoint, "--base", trained.base, "--to", tmp_path / "made", "--json")
    return Path(answer.document["publications"][0]["load"]) / WEIGHT_NAME


def test_validate_passes_a_good_file_and_fails_a_bad_one_with_every_check(
    run: Callable[..., Answer], file: Path, trained: Trained, tmp_path: Path
) -> None:
    against = ("--base", trained.base, "--against", trained.checkpoint)
    good = run("validate", file, *against)
    assert good.code == 0
    assert good.out.startswith("passed: the effect is the checkpoint's")
    tensors = load_file(file)
    key = next(key for key in tensors if "lora_B" in key)
    tensors[key] *= 1.5
    save_file(tensors, tmp_path / WEIGHT_NAME)
    bad = run("validate", tmp_path / WEIGHT_NAME, *against, "--json")
    assert bad.code == 4
    assert not bad.document["passed"]
    failed = [check for check in bad.document["checks"] if not check["passed"] and "forward" not in check["name"]]
    assert {check["name"] for check in failed} == {"effect, exact", "effect (relative change of the weight)"}
    assert all(len(check["modules"]) == 1 for check in failed)
    assert "Traceback" not in bad.err
    assert bad.err.startswith("error: ")


def test_validate_without_a_checkpoint_says_that_it_proves_no_more(
    run: Callable[..., Answer], file: Path, trained: Trained
) -> None:
    assert "and no more" in run("validate", file.parent, "--base", trained.base).out


@pytest.fixture
def loha(tmp_path: Path) -> Path:
    """A LoHa of rank 2, whose change has rank 4."""
    module = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    torch.manual_seed(0)
    factors = {f"hada_w{n}_{ab}": torch.randn((16, 2) if ab == "a" else (2, 16)) for n in (1, 2) for ab in "ab"}
    tensors = {f"{module}.{name}": factor for name, factor in factors.items()} | {f"{module}.alpha": torch.tensor(2.0)}
    save_file(tensors, tmp_path / "loha.safetensors")
    return tmp_path / "loha.safetensors"


@pytest.mark.usefixtures("prefect_api")
def test_rank_that_the_algebra_needs_is_for_the_user_to_allow(
    run: Callable[..., Answer], loha: Path, trained: Trained, tmp_path: Path
) -> None:
    arguments = ("export", loha, "--base", trained.base, "--to", tmp_path / "out", "--json")
    refused = run(*arguments, "--max-rank", "3")
    assert refused.code == 3
    assert "--max-rank 4, or --approximate" in refused.document["remedy"]
    exact = run(*arguments, "--max-rank", "4").document["manifest"]
    assert (exact["components"]["unet"]["rank"], exact["components"]["unet"]["adapter_type"]) == (4, "loha")
    approximate = run(*arguments, "--max-rank", "3", "--approximate", "3").document
    assert approximate["manifest"]["components"]["unet"]["rank"] == 3
    done = {transform["kind"]: transform for transform in approximate["manifest"]["transforms"]}
    assert 0 < max(done["approximate"]["errors"].values()) < 1
    file = Path(approximate["publications"][0]["load"]) / WEIGHT_NAME
    against = ("validate", file, "--base", trained.base, "--against", loha)
    assert run(*against).code == 4
    assert run(*against, "--approximate", "3").code == 0


def test_ema_weights_are_read_only_where_they_are(run: Callable[..., Answer], loha: Path, trained: Trained) -> None:
    assert_refused(run("inspect", loha, "--weights", "ema"), 3, "no EMA weights", "--weights")
    averaged = loha.with_name("loha_ema.safetensors")
    shutil.copy(loha, averaged)
    assert_refused(run("inspect", averaged), 3, "--weights ema")
    assert run("inspect", averaged, "--weights", "ema", "--json").document["components"]["unet"]["rank"] == 2
    assert_refused(run("validate", loha, "--base", trained.base, "--against", averaged), 3, "--weights ema")


@pytest.mark.usefixtures("prefect_api")
def test_an_alias_is_a_base_and_a_contradiction_to_it_is_3(
    run: Callable[..., Answer], loha: Path, trained: Trained, tmp_path: Path
) -> None:
    answer = run("export", loha, "--base", "sd15", "--dry-run")
    assert_refused(answer, 3, "320")  # the layer of Stable Diffusion 1.5 is wider than the demo's
    stated = tmp_path / "stated.safetensors"
    save_file(load_file(loha), stated, {"ss_base_model_version": "sdxl_base_v1-0"})
    assert_refused(run("export", stated, "--base", trained.base), 3, "sdxl_base_v1-0", "Stable Diffusion 1.x")
    answer = run("validate", loha, "--base", trained.base, "--against", stated)
    assert_refused(answer, 3, "sdxl_base_v1-0", "Stable Diffusion 1.x")
    assert_refused(run("export", loha, "--base", "sd1"), 3, "neither a folder nor a Hub id", "sd15")


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_usage_errors_are_2(run: Callable[..., Answer], tmp_path: Path) -> None:
    assert_refused(run("export"), 2)
    assert_refused(run("export", tmp_path, "--no-such-option", "1"), 2)
    assert_refused(run("inspect", tmp_path, "--alpha", "-1"), 2, "--alpha")
    assert_refused(run("export", tmp_path, "--layout", "nonsense"), 2, "--layout")
    assert_refused(run("export", tmp_path, "--weights", "nonsense"), 2, "--weights")
    assert_refused(run("export", tmp_path, "--max-rank", "0"), 2, "--max-rank")
    assert_refused(run("validate", tmp_path, "--base", "sd15", "--approximate", "0"), 2, "--approximate")
    assert_refused(run("no-such-command"), 2)
    assert_refused(run("export", tmp_path, "--base-model", "[evil](x) <b>"), 2, "--base-model")
    assert_refused(run("export", tmp_path, "--base-model", "/home/somebody/base"), 2, "--base-model")


def _bad_checkpoints(folder: Path, trained: Trained) -> dict[str, tuple[Path, str]]:
    """What a user may hand in by mistake or on purpose, and a word of the answer."""

    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(folder / "evil-ran"),)

    (folder / "empty").mkdir()
    (folder / "no-adapter").mkdir()
    (folder / "no-adapter" / "notes.txt").write_text("nothing here")
    weights = (trained.checkpoint / "unet" / "adapter_model.safetensors").read_bytes()
    (folder / "truncated.safetensors").write_bytes(weights[: len(weights) // 2])
    with (folder / "evil.pt").open("wb") as file:
        pickle.dump({"lora_A.weight": Evil()}, file)
    torch.save({"a.lora_A.weight": Evil()}, folder / "evil-zip.pt")
    shutil.copy(trained.base / "unet" / "diffusion_pytorch_model.safetensors", folder / "whole.safetensors")
    return {
        "missing path": (folder / "nowhere", "does not exist"),
        "empty folder": (folder / "empty", "is empty"),
        "no adapter": (folder / "no-adapter", "No adapter was found"),
        "truncated": (folder / "truncated.safetensors", "is truncated"),
        "pickle": (folder / "evil.pt", "not a zip archive"),
        "pickle in a zip": (folder / "evil-zip.pt", "asks for posix.mkdir"),
        "a whole model": (folder / "whole.safetensors", "whole model"),
    }


@pytest.mark.usefixtures("prefect_api")
def test_bad_checkpoints_are_3_and_leave_nothing(run: Callable[..., Answer], trained: Trained, tmp_path: Path) -> None:
    for what, (path, word) in _bad_checkpoints(tmp_path, trained).items():
        answer = run("export", path, "--base", trained.base, "--to", tmp_path / "out")
        assert_refused(answer, 3, word)
        assert not (tmp_path / "out").exists(), what
        assert_refused(run("inspect", path), 3, word)
    assert not (tmp_path / "evil-ran").exists()
    assert not list((tmp_path / "scratch" / "temporary").iterdir())
    assert not (tmp_path / "scratch" / "bundles").exists()


@pytest.mark.usefixtures("prefect_api")
def test_a_base_of_another_family_is_3(
    run: Callable[..., Answer], trained: Trained, base: Callable[[str], Path], tmp_path: Path
) -> None:
    answer = run("export", trained.checkpoint, "--base", base("flux"), "--to", tmp_path / "out")
    assert_refused(answer, 3, "contradicts", "UNet2DConditionModel", "--base")
    answer = run("export", trained.checkpoint, "--base", base("sdxl"), "--to", tmp_path / "out")
    assert_refused(answer, 3, "does not fit", "--base")
    assert_refused(run("export", trained.checkpoint, "--to", tmp_path / "out"), 3, "which base", "--base")
    assert_refused(run("export", trained.checkpoint, "--base", tmp_path / "x"), 3, "neither a folder nor a Hub id")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("prefect_api", "s3")
def test_destinations_that_do_not_answer_or_forbid_are_5_and_leave_nothing(
    run: Callable[..., Answer],
    trained: Trained,
    seaweedfs: SeaweedFS,
    bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ADAPTERLINE_RETRIES", "0")
    arguments = (
        "export",
        trained.checkpoint,
        "--base",
        trained.base,
        "--to",
        tmp_path / "out",
        "--to",
        f"s3://{bucket}/x",
    )
    for name, value in seaweedfs.environment(READER).items():
        monkeypatch.setenv(name, value)
    assert_refused(run(*arguments), 5, bucket)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{free_port()}")
    assert_refused(run(*arguments), 5)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("prefect_api")
def test_a_full_disk_is_6_and_leaves_nothing(
    run: Callable[..., Answer], trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        monkeypatch.setenv("ADAPTERLINE_SCRATCH", str(small / "scratch"))
        answer = run("export", trained.checkpoint, "--base", trained.base, "--to", tmp_path / "out")
        assert_refused(answer, 6, "No space left")
        assert not (tmp_path / "out").exists()
        assert not [path for path in small.rglob("*") if path.is_file() and path.name != "lock"]
    finally:
        subprocess.run(["umount", str(small)], check=True)


def _in_a_process(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "adapterline.cli", *map(str, arguments)],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def test_without_a_prefect_api_it_is_6(trained: Trained, records: Path, tmp_path: Path) -> None:
    nobody = {"PREFECT_API_URL": f"http://127.0.0.1:{free_port()}/api", "PREFECT_CLIENT_MAX_RETRIES": "0"}
    done = _in_a_process("export", trained.checkpoint, "--base", trained.base, "--to", tmp_path / "out", **nobody)
    assert_refused(Answer(done.returncode, done.stdout, done.stderr), 6, "Prefect API", "PREFECT_API_URL")


def test_errors_are_json_too(run: Callable[..., Answer], tmp_path: Path) -> None:
    answer = run("inspect", tmp_path / "nowhere", "--json")
    assert answer.code == 3
    assert answer.document["error"] == "CheckpointIncompleteError"
    assert answer.document["exit_code"] == 3
    assert "does not exist" in answer.document["found"]


@pytest.mark.slow
def test_progress_is_shown_on_a_terminal_alone(
    prefect_api: str, trained: Trained, records: Path, tmp_path: Path
) -> None:
    arguments = ["export", str(trained.checkpoint), "--base", str(trained.base), "--dry-run"]
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "adapterline.cli", *arguments], stdout=subprocess.PIPE, stderr=terminal, stdin=terminal
    )
    os.close(terminal)
    shown = b""
    while True:
        try:
            chunk = os.read(controller, 4096)
        except OSError:  # the other end is closed
            break
        if not chunk:
            break
        shown += chunk
    out = process.communicate()[0].decode()
    os.close(controller)
    assert process.returncode == 0
    steps = re.findall(r"^  (\S+): ", shown.decode(), re.MULTILINE)
    assert steps == ["load-checkpoint", "open-base", "extract", "convert", "serialize", "validate", "record"]
    assert out.startswith("validated: ")
    quiet = _in_a_process(*arguments)
    assert (quiet.returncode, quiet.stderr) == (0, "")
    assert quiet.stdout == out


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, adapterline; print(sorted({'torch', 'prefect', 'diffusers', 'boto3'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_reader_that_has_read_enough_is_no_error(records: Path) -> None:
    command = [sys.executable, "-m", "adapterline.cli", "lineage", "list", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141
