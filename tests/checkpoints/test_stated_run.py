"""What a checkpoint's own files tell of the run that left it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from adapterline.checkpoints import load_checkpoint
from adapterline.checkpoints.stated_run import stated_run
from adapterline.values import ExportOptions, LineageRecord, TrainingRun
from tests.lineage.recorded import record_of

COMMIT = "4f1c2d0a" * 5


def stated(folder: Path, header: dict[str, str], card: str = "") -> TrainingRun | None:
    """Of a file of sd-scripts' keys; with a card, of the folder that both lie in."""
    key = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    tensors = {
        f"{key}.lora_down.weight": np.ones((2, 4), np.float32),
        f"{key}.lora_up.weight": np.ones((4, 2), np.float32),
        f"{key}.alpha": np.asarray(2, np.float32),
    }
    checkpoint = folder / "run"
    checkpoint.mkdir()
    save_file(tensors, checkpoint / "pytorch_lora_weights.safetensors", header)
    if card:
        (checkpoint / "README.md").write_text(f"---\n{card}\n---\n")
    return stated_run(load_checkpoint(str(checkpoint), ExportOptions(), folder / "work"))


def test_sd_scripts_tells_of_its_run(tmp_path: Path) -> None:
    header = {
        "ss_session_id": "4264008162",
        "ss_training_finished_at": "1795504783.25",
        "ss_steps": "1500",
        "ss_dataset_dirs": '{"10_cats": {"n_repeats": 10}, "1_dogs": {"n_repeats": 1}}',
        "ss_sd_scripts_commit_hash": COMMIT,
        "ss_network_module": "networks.lora",
    }
    assert stated(tmp_path, header) == TrainingRun(
        run_id="4264008162",
        finished_at=datetime(2026, 11, 24, 7, 19, 43, 250000, tzinfo=UTC),
        step=1500,
        dataset="10_cats, 1_dogs",
        code=f"sd-scripts@{COMMIT}",
        trainer="sd-scripts",
    )


def test_ai_toolkit_tells_its_version_and_step(tmp_path: Path) -> None:
    header = {
        "software": '{"name": "ai-toolkit", "version": "0.12.26"}',
        "training_info": '{"step": 3, "epoch": 0}',
    }
    found = stated(tmp_path, header)
    assert found is not None
    assert (found.trainer, found.step) == ("ai-toolkit 0.12.26", 3)


def test_a_card_names_its_data_sets(tmp_path: Path) -> None:
    found = stated(tmp_path, {}, "datasets:\n- org/cats\n- org/dogs\n- 7")
    assert found is not None
    assert found.dataset == "org/cats, org/dogs"


@pytest.mark.parametrize(
    "header",
    [
        {"ss_session_id": "a\x1b[2Jb", "ss_steps": "many", "ss_training_finished_at": "nan", "ss_dataset_dirs": "[[["},
        {"ss_training_finished_at": "1e300", "ss_steps": "-1", "ss_sd_scripts_commit_hash": "(unknown)"},
        {"ss_training_finished_at": "inf", "training_info": "[]", "ot_revision": "git not installed"},
    ],
)
def test_what_is_no_fact_is_left_out(tmp_path: Path, header: dict[str, str]) -> None:
    found = stated(tmp_path, header)
    assert found is None or found.model_dump(exclude={"trainer"}) == TrainingRun().model_dump(exclude={"trainer"})


def test_what_was_told_counts_before_what_the_files_tell() -> None:
    record = record_of(None, run=TrainingRun(run_id="told", step=7), stated_run=TrainingRun(step=1, dataset="cats"))
    assert record.known_run == TrainingRun(run_id="told", step=7, dataset="cats")
    assert record_of(None, stated_run=TrainingRun(step=1)).known_run == TrainingRun(step=1)
    assert isinstance(record, LineageRecord)
