"""`adapterline lineage list`, `show` and `which`: what they answer, and with which code they end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from adapterline.lineage import Index
from adapterline.lineage.answers import VersionFilter
from adapterline.values import WEIGHT_NAME, Package
from tests.lineage.conftest import Run
from tests.lineage.recorded import export, index_file, keep, record_of, run

Make = Callable[..., Package]


@pytest.fixture
def three(records: Path, tmp_path: Path, make: Make) -> tuple[Package, Package, Package]:
    """Two versions of `tiny`, of which the second goes on from the run of the first, and one of `other`."""
    place = str(tmp_path / "published")
    first = make(1, run=run("run-1", dataset="cats", trainer="peft", step=100))
    second = make(2, run=run("run-2", parents=("run-1", "elsewhere")))
    other = make(3, name="other")
    for day, package in enumerate((first, second, other), 1):
        export(package, place, day=day)
    keep(record_of(None, day=9, checkpoint="bad", outcome="refused", error="No.", error_type="CheckpointError"))
    return first, second, other


Three = tuple[Package, Package, Package]


def test_a_list_has_the_newest_first_and_every_filter_filters(run_cli: Run, three: Three) -> None:
    first, second, other = (package.manifest.digest for package in three)

    def listed(*options: str) -> list[str]:
        code, out, err = run_cli("lineage", "list", "--json", *options)
        assert (code, err) == (0, "")
        return [version["digest"] for version in json.loads(out)["versions"]]

    assert listed() == [other, second, first]
    assert listed("--name", "tin*") == listed("--name", "t?ny") == [second, first]
    assert listed("--name", "tiny", "--limit", "1") == [second]
    assert listed("--run-id", "run-1") == listed("--checkpoint", "s3://runs/*-1") == [first]
    assert listed("--since", "2026-05-02", "--until", "2026-05-03") == [second]
    assert listed("--alias", "latest") == [other, second]
    assert listed("--family", "sd15", "--base", "unknown") == [other, second, first]
    for nothing in (["--family", "flux"], ["--base", "a/b"], ["--alias", "production"], ["--name", "tin"]):
        assert listed(*nothing) == []
    # A wildcard of SQL is a character like any other.
    assert listed("--name", "t_ny*") == listed("--name", "%*") == []


def test_outcomes_list_runs_also_what_was_refused(run_cli: Run, three: Three) -> None:
    code, out, _ = run_cli("lineage", "list", "--outcome", "refused", "--json")
    document = json.loads(out)
    assert (code, document["total"], [run["error_type"] for run in document["runs"]]) == (0, 1, ["CheckpointError"])
    assert json.loads(run_cli("lineage", "list", "--outcome", "any", "--json")[1])["total"] == 4
    assert "bad" in run_cli("lineage", "list", "--outcome", "refused")[1]


def test_everything_that_names_a_version_shows_it(run_cli: Run, three: Three) -> None:
    first, second, _ = three
    [file] = first.manifest.files
    names = [
        first.manifest.digest,
        first.manifest.digest[:8],
        file.sha256,
        file.tensors_sha256[:12] if file.tensors_sha256 else "",
        f"tiny@{first.manifest.digest[:12]}",
        "run-1",
        "s3://runs/checkpoint-1",
        f"{1:012x}",
    ]
    assert {_shown(run_cli, name) for name in names} == {first.manifest.digest}
    assert {_shown(run_cli, name) for name in ("tiny", "tiny@latest", "run-2")} == {second.manifest.digest}


def _shown(run_cli: Run, what: str) -> str:
    code, out, _ = run_cli("lineage", "show", what, "--json")
    assert code == 0, what
    return str(json.loads(out)["version"]["digest"])


def test_the_chain_is_drawn_both_ways(run_cli: Run, three: Three) -> None:
    first, second, _ = (package.manifest.digest[:12] for package in three)
    code, out, _ = run_cli("lineage", "show", first)
    lines = [line.lstrip("├─└│ ") for line in out.splitlines()]
    assert code == 0
    assert lines[0] == "dataset cats"
    assert lines[1] == "training run run-1, step 100, by peft"
    assert lines[2].startswith("checkpoint checkpoint-7 ")
    assert lines[3].startswith(f"tiny {first} (sd15), exported")
    assert {f"previous tiny {second}", f"resumed-from tiny {second}"} <= set(lines[lines.index("became") :])
    assert "\x1b" not in out
    out = run_cli("lineage", "show", second)[1]
    assert f"previous tiny {first}" in out
    assert f"resumed-from tiny {first}" in out
    assert "resumed-from elsewhere, not in the index" in out
    assert "(latest)" in out


def test_a_refused_run_is_shown_with_its_error(run_cli: Run, three: Three) -> None:
    code, out, _ = run_cli("lineage", "show", "bad")
    assert code == 0
    assert "CheckpointError: No." in out
    document = json.loads(run_cli("lineage", "show", f"{9:012x}", "--json")[1])
    assert (document["version"], document["runs"][0]["outcome"]) == (None, "refused")


def test_what_may_be_several_is_refused_with_the_candidates(run_cli: Run, three: Three) -> None:
    source = three[0].manifest.source.digest
    code, _, err = run_cli("lineage", "show", source)
    assert code == 2
    for package in three:
        assert f"{package.name}@{package.sha12}" in err


@pytest.mark.parametrize("what", ["nobody", "tiny@production", "0" * 12, "%", ""])
def test_what_is_not_there_is_a_typed_error(run_cli: Run, three: Three, what: str) -> None:
    code, out, _ = run_cli("lineage", "show", what, "--json")
    assert (code, json.loads(out)["error"]) == (2, "UnknownLineageError")


def test_a_stray_file_is_recognized_whatever_became_of_its_header(run_cli: Run, three: Three, tmp_path: Path) -> None:
    first = three[0]
    written, stray = first.folder / WEIGHT_NAME, tmp_path / "My LoRA (final) v2.safetensors"
    stray.write_bytes(written.read_bytes())
    assert _which(run_cli, stray) == ("file", first.manifest.digest)
    save_file(load_file(written), stray, {"title": "mine"})
    assert stray.read_bytes() != written.read_bytes()
    assert _which(run_cli, stray) == ("tensors", first.manifest.digest)
    _write_backwards(written, stray)
    assert _which(run_cli, stray) == ("tensors", first.manifest.digest)
    assert first.sha12 in run_cli("lineage", "which", str(stray))[1]


def _write_backwards(source: Path, target: Path) -> None:
    """The same tensors, their data in the opposite order."""
    tensors = load_file(source)
    header: dict[str, Any] = {}
    data = b""
    for name in reversed(sorted(tensors)):
        array = tensors[name]
        header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": [len(data), len(data) + array.nbytes]}
        data += array.tobytes()
    text = json.dumps(header).encode()
    target.write_bytes(len(text).to_bytes(8, "little") + text + data)
    with safe_open(target, framework="numpy") as file:
        assert set(file.keys()) == set(tensors)


def _which(run_cli: Run, file: Path) -> tuple[str, str]:
    code, out, _ = run_cli("lineage", "which", str(file), "--json")
    assert code == 0
    [match] = json.loads(out)["matches"]
    return match["by"], match["version"]["digest"]


def test_other_tensors_are_not_recognized(run_cli: Run, three: Three, tmp_path: Path) -> None:
    stray = tmp_path / "stray.safetensors"
    tensors = load_file(three[0].folder / WEIGHT_NAME)
    tensors["unet.mid.lora_B.weight"] += np.float32(1e-3)
    save_file(tensors, stray)
    code, out, _ = run_cli("lineage", "which", str(stray), "--json")
    assert (code, json.loads(out)["error"]) == (2, "UnknownLineageError")
    for broken in (b"", b"no safetensors file at all"):
        stray.write_bytes(broken)
        assert run_cli("lineage", "which", str(stray))[0] == 3
    assert run_cli("lineage", "which", str(tmp_path / "nothing"))[0] == 3


@pytest.mark.parametrize(
    "arguments",
    [["list", "--limit", "0"], ["list", "--outcome", "failed", "--alias", "a"], ["reindex", "--from", "/no"]],
)
def test_what_cannot_be_asked_for_is_2(run_cli: Run, records: Path, arguments: list[str]) -> None:
    assert run_cli("lineage", *arguments)[0] == 2


def test_an_index_that_cannot_be_used_is_6_and_a_url_that_is_none_is_2(
    run_cli: Run, records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index_file(records).write_bytes(b"no database" * 100)
    code, _, err = run_cli("lineage", "list")
    assert (code, "reindex" in err) == (6, True)
    monkeypatch.setenv("ADAPTERLINE_INDEX", "mysql://me:secret@host/database")
    code, _, err = run_cli("lineage", "list")
    assert (code, "secret" in err) == (2, False)


def test_pages_have_every_version_once_in_each_order(three: Three) -> None:
    index = Index()
    for sort in ("created", "finished", "name", "size"):
        for descending in (True, False):
            pages = [index.versions(sort=sort, descending=descending, limit=1, offset=n) for n in range(4)]
            assert [page.total for page in pages] == [3] * 4
            found = [version for page in pages for version in page.versions]
            assert {version.digest for version in found} == {package.manifest.digest for package in three}
    assert index.counts().model_dump(exclude={"bytes"}) == {
        "versions": 3,
        "names": 2,
        "runs": 4,
        "by_outcome": ({"value": "exported", "count": 3}, {"value": "refused", "count": 1}),
        "by_family": ({"value": "sd15", "count": 3},),
        "by_base": ({"value": "unknown", "count": 3},),
    }


def test_a_part_of_a_word_finds_it_in_any_case(three: Three) -> None:
    first, second, other = (package.manifest.digest for package in three)

    def found(search: str) -> list[str]:
        return [version.digest for version in Index().versions(VersionFilter(search=search)).versions]

    assert found("TIN") == [second, first]
    assert found("n-1") == [first]
    assert found("CHECKPOINT") == found("sD15") == [other, second, first]
    assert found("t_ny") == found("%") == found("tiny\nsd15x") == []
