"""What the tasks promise to Prefect: patience where it helps, and no tensor in a store."""

from __future__ import annotations

from typing import Any

import pytest
from prefect.cache_policies import NO_CACHE

from adapterline.settings import Settings
from tasks.convert import convert
from tasks.extract import extract
from tasks.find_export import find_export
from tasks.load_checkpoint import load_checkpoint, open_base
from tasks.package import package
from tasks.policy import retrying
from tasks.record import record
from tasks.release import release
from tasks.serialize import serialize
from tasks.upload import upload
from tasks.validate import validate

IN_PROCESS = (load_checkpoint, open_base, find_export, extract, convert, serialize, package, upload, release, record)


@pytest.mark.parametrize("task", IN_PROCESS, ids=lambda task: task.name)
def test_what_takes_tensors_or_local_files_is_neither_hashed_nor_stored(task: Any) -> None:
    assert task.cache_policy is NO_CACHE
    assert task.persist_result is False


def test_a_proof_alone_is_remembered() -> None:
    assert validate.persist_result
    assert validate.cache_key_fn is not None


@pytest.mark.parametrize("task", [load_checkpoint, upload, release], ids=lambda task: task.name)
def test_a_transient_fault_is_waited_for_longer_each_time_and_never_in_step(task: Any) -> None:
    patient = task.with_options(**retrying(Settings(retries=3, retry_seconds=10)))
    assert patient.retries == 3
    assert list(patient.retry_delay_seconds) == [10, 20, 40]
    assert patient.retry_jitter_factor > 0
    assert patient.retry_condition_fn is not None


@pytest.mark.parametrize("task", [task for task in (*IN_PROCESS, validate) if task is not upload], ids=lambda t: t.name)
def test_every_task_has_an_end_and_a_tag(task: Any) -> None:
    assert task.timeout_seconds
    assert "adapterline" in task.tags
