"""Fixtures that more than one folder uses."""

from __future__ import annotations

import gc
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

# Before any of these libraries is imported: they read it once.
os.environ |= {
    "HF_HUB_OFFLINE": "0",
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    # Two processes test on two cores: with two threads each, OpenMP's spinning makes a test ten times slower.
    "OMP_NUM_THREADS": "1",
}

# torch, diffusers and Prefect are a million objects that are never garbage: looking through them less often saves a
# tenth of the time.
gc.set_threshold(100_000, 50, 20)

# The same examples every time, so that a commit's tests say something of the commit. `make fuzz` draws new ones.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("fuzz", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))

pytest_plugins = [
    "tests.bases",
    "tests.hub_fixtures",
    "tests.prefect_fixtures",
    "tests.s3_fixtures",
    "tests.signing_fixtures",
]


#: The files that take the longest as a whole: begun last, one process would be at work alone for minutes.
_FIRST = ("tests/test_docs.py", "tests/deployments/", "tests/flows/")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: next((i for i, start in enumerate(_FIRST) if item.nodeid.startswith(start)), 9))


@dataclass(frozen=True)
class Trained:
    """A base and what a real training run on it left."""

    base: Path
    checkpoint: Path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The demo's pipeline, and the PEFT adapters of its UNet and text encoder. Read only."""
    from adapterline.demo.base import build_base
    from adapterline.demo.train import train

    folder = tmp_path_factory.mktemp("trained")
    build_base(folder / "base")
    train(folder / "base", folder / "checkpoint")
    return Trained(folder / "base", folder / "checkpoint")


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A record store, an index and a scratch folder of the test's own, and retries without pauses."""
    monkeypatch.setenv("ADAPTERLINE_RECORDS", str(tmp_path / "records"))
    monkeypatch.setenv("ADAPTERLINE_INDEX", f"sqlite:///{tmp_path / 'index.sqlite'}")
    monkeypatch.setenv("ADAPTERLINE_OPENLINEAGE", str(tmp_path / "openlineage.jsonl"))
    monkeypatch.setenv("ADAPTERLINE_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.setenv("ADAPTERLINE_RETRY_SECONDS", "0")
    return tmp_path / "records"
