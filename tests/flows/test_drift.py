"""A second export of a name is compared with what was the latest until then, wherever that lies."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.settings import PREFECT_API_URL
from safetensors.torch import load_file, save_file

from adapterline.lineage import Index
from adapterline.values import LineageRecord, slug
from tests.conftest import Trained

pytestmark = pytest.mark.usefixtures("prefect_api")


@pytest.fixture
def export(records: Path, trained: Trained) -> Callable[..., LineageRecord]:
    """Runs the flow on a checkpoint."""
    from flows.export import export_adapter

    def run(checkpoint: Path, *to: Path | str, **more: Any) -> LineageRecord:
        return export_adapter(str(checkpoint), base=str(trained.base), name="nightly", to=tuple(map(str, to)), **more)

    return run


def times(trained: Trained, folder: Path, **factors: float) -> Path:
    """The same checkpoint, and what it does to a component's weights so many times as much."""
    shutil.copytree(trained.checkpoint, folder)
    for component, factor in factors.items():
        [file] = (folder / component).glob("*.safetensors")
        tensors = load_file(file)
        save_file({key: t * factor if "lora_B" in key else t for key, t in tensors.items()}, file)
    return folder


def posted(path: str, body: dict[str, Any]) -> Any:
    answer = httpx.post(f"{PREFECT_API_URL.value()}{path}", json=body, timeout=60)
    answer.raise_for_status()
    return answer.json()


def payloads() -> dict[str, Any]:
    """What Prefect was told, by the record that it is of."""
    wanted = {"event": {"name": ["adapter.effect-drifted"]}, "occurred": {"since": "2026-01-01T00:00:00Z"}}
    events = posted("/events/filter", {"filter": wanted, "limit": 50})["events"]
    return {event["payload"]["record"]: event["payload"] for event in events}


def eventually(look: Callable[[], Any]) -> Any:
    """The server stores events some time after it took them."""
    until = time.monotonic() + 60
    while not (found := look()) and time.monotonic() < until:
        time.sleep(0.2)
    assert found
    return found


def test_the_second_export_says_how_far_it_is_from_the_first(
    export: Callable[..., LineageRecord], trained: Trained, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first = export(trained.checkpoint, out)
    assert first.manifest is not None
    assert first.drift is None
    second = export(times(trained, tmp_path / "next", unet=-2.0, text_encoder=5.0), out)
    found = second.drift
    assert found is not None
    assert (found.before, found.destination, found.not_measured) == (first.manifest.digest, str(out), None)
    unet, encoder = found.components["unet"], found.components["text_encoder"]
    assert (unet.cosine, unet.norm / unet.before) == (pytest.approx(-1, abs=1e-5), pytest.approx(2, rel=1e-5))
    assert (encoder.cosine, encoder.norm / encoder.before) == (pytest.approx(1, abs=1e-5), pytest.approx(5, rel=1e-5))
    assert set(unet.modules) >= {"mid_block.attentions.0.transformer_blocks.0.attn1.to_q"}
    assert sorted(found.beyond) == [
        "text_encoder: 5 times the norm, expected 0.33 to 3 times",
        "unet: cosine -1.000, expected 0.1 or more",
    ]

    assert second.manifest is not None
    shown = Index().show(f"nightly@{second.manifest.digest[:12]}")
    assert shown.drift == found
    entries = Index().drifts("nightly")
    assert {entry.component: entry.cosine for entry in entries} == {
        "unet": unet.cosine,
        "text_encoder": encoder.cosine,
    }
    before = [each.model_dump_json() for each in (shown, *entries)]
    Index().reindex()
    again = Index().show(f"nightly@{second.manifest.digest[:12]}")
    assert [each.model_dump_json() for each in (again, *Index().drifts("nightly"))] == before


@pytest.mark.slow
def test_what_is_far_from_the_one_before_is_an_event_and_an_artifact(
    export: Callable[..., LineageRecord], trained: Trained, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    export(trained.checkpoint, out)
    near = export(times(trained, tmp_path / "near", unet=1.5), out)
    far = export(times(trained, tmp_path / "far", unet=-1.0), out)
    assert near.drift is not None
    assert near.drift.beyond == ()
    assert far.drift is not None
    told = eventually(lambda: payloads().get(far.id))
    assert told["drift"]["beyond"] == list(far.drift.beyond)
    assert "modules" not in json.dumps(told)
    assert near.id not in payloads()  # its event would have come first
    key = f"{slug('nightly')}-drift"
    [artifact, *_] = posted("/artifacts/filter", {"artifacts": {"key": {"any_": [key]}}, "sort": "CREATED_DESC"})
    assert "| unet |" in artifact["data"]
    assert "-1.0000" in artifact["data"]


@pytest.mark.slow
def test_an_export_whose_predecessor_is_damaged_is_published_and_says_so(
    export: Callable[..., LineageRecord], trained: Trained, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first = export(trained.checkpoint, out)
    Path(first.publications[0].load, "pytorch_lora_weights.safetensors").write_bytes(b"no tensors")
    second = export(times(trained, tmp_path / "next", unet=1.5), out)
    assert second.outcome == "exported"
    assert second.drift is not None
    assert second.drift.components == {}
    assert "pytorch_lora_weights.safetensors" in (second.drift.not_measured or "")


@pytest.mark.slow
def test_a_bug_in_measuring_stops_no_export(
    export: Callable[..., LineageRecord], trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise ZeroDivisionError

    out = tmp_path / "out"
    export(trained.checkpoint, out)
    monkeypatch.setattr("tasks.measure_drift.drift_from_latest", broken)
    second = export(times(trained, tmp_path / "next", unet=1.5), out)
    assert (second.outcome, second.drift) == ("exported", None)


@pytest.mark.slow
def test_what_lies_in_s3_is_compared_too(
    export: Callable[..., LineageRecord], trained: Trained, tmp_path: Path, s3: Any, bucket: str
) -> None:
    export(trained.checkpoint, f"s3://{bucket}/loras")
    second = export(times(trained, tmp_path / "next", unet=1.5), tmp_path / "out", f"s3://{bucket}/loras")
    assert second.drift is not None
    assert second.drift.components["unet"].cosine == pytest.approx(1, abs=1e-5)
    assert second.drift.destination == f"s3://{bucket}/loras"
