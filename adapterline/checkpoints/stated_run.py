"""What a checkpoint says of the run that left it, where nobody else told. For the record: it may name places."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from adapterline.checkpoints.evidence import folders_of
from adapterline.checkpoints.stated import card_of, json_of
from adapterline.checkpoints.trainers import trainer_of
from adapterline.values import Source, TrainingRun

_COMMIT = re.compile(r"[0-9a-f]{7,40}")
_MOST_TEXT = 200


def stated_run(source: Source) -> TrainingRun | None:
    """The run as header, configurations and cards tell it; None if nothing does.

    Of sd-scripts and what builds upon it: `ss_session_id`, `ss_training_finished_at`, `ss_steps`, `ss_dataset_dirs` and
    the commit of the scripts (train_util.py); OneTrainer: `ot_revision`; ai-toolkit: `training_info`; of model cards:
    `datasets`.
    """
    header = source.header
    found = {
        "run_id": _text(header.get("ss_session_id")),
        "finished_at": _moment(header.get("ss_training_finished_at")),
        "step": _number(header.get("ss_steps")) or _number(json_of(header.get("training_info", "")).get("step")),
        "base_model": source.stated_base,
        "dataset": _text(", ".join(dict.fromkeys(_datasets(source)))),
        "code": next(_code(source), None),
        "trainer": trainer_of(source),
    }
    if found["step"] is None:
        found["step"] = source.step
    return TrainingRun.model_validate(found) if any(value is not None for value in found.values()) else None


def _datasets(source: Source) -> Iterator[str]:
    yield from json_of(source.header.get("ss_dataset_dirs", ""))
    for folder in folders_of(source):
        named = card_of(folder).get("datasets")
        yield from (name for name in (named if isinstance(named, list) else [named]) if isinstance(name, str))


def _code(source: Source) -> Iterator[str]:
    for program, key in (("sd-scripts", "ss_sd_scripts_commit_hash"), ("OneTrainer", "ot_revision")):
        commit = source.header.get(key, "")
        if _COMMIT.fullmatch(commit):
            yield f"{program}@{commit}"


def _text(value: str | None) -> str | None:
    return value[:_MOST_TEXT] if value and value.isprintable() and value != "None" else None


def _number(value: Any) -> int | None:
    text = str(value)
    return int(text) if re.fullmatch(r"\d{1,15}", text) else None


def _moment(value: str | None) -> datetime | None:
    try:
        return datetime.fromtimestamp(float(value or ""), UTC)
    except (ValueError, OverflowError, OSError):
        return None
