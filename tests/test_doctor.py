"""`doctor` tries what an export needs: each fault is found, and said with what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from adapterline import api
from adapterline.checkup import Finding, examine
from tests.signing_fixtures import Identity

Of = Callable[[str], Finding]


@pytest.fixture
def of(records: Path) -> Callable[..., Finding]:
    def find(name: str, *to: str) -> Finding:
        (found,) = [each for each in examine(to) if each.name == name]
        return found

    return find


def test_a_good_machine_has_nothing_that_failed(records: Path, tmp_path: Path) -> None:
    found = list(examine((str(tmp_path / "out"),)))
    assert {each.status for each in found} == {"ok"}
    assert {"python", "torch", "prefect", "gpu", "settings", "scratch", "records"} <= {each.name for each in found}
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").rglob("*.json"))


def test_a_library_out_of_its_range_is_found(of: Of, monkeypatch: pytest.MonkeyPatch) -> None:
    import adapterline.checkup

    installed = adapterline.checkup.version
    monkeypatch.setattr("adapterline.checkup.version", lambda name: "0.155" if name == "fastapi" else installed(name))
    found = of("fastapi")
    assert found.status == "failed"
    assert "<0.151" in found.observed
    assert found.remedy.startswith("pip install 'fastapi")


def test_a_scratch_folder_that_cannot_be_is_found(of: Of, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ADAPTERLINE_SCRATCH", str(tmp_path / "file" / "scratch"))
    assert of("scratch").status == "failed"


def test_settings_that_are_wrong_are_said_and_nothing_is_tried_with_them(
    monkeypatch: pytest.MonkeyPatch, records: Path
) -> None:
    monkeypatch.setenv("ADAPTERLINE_RETRIES", "many")
    found = list(examine(("/nowhere",)))
    assert (found[-1].name, found[-1].status) == ("settings", "failed")
    assert "ADAPTERLINE_RETRIES" in found[-1].remedy


def test_an_index_that_cannot_be_used_is_found(of: Of, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTERLINE_INDEX", "sqlite:////proc/nowhere/index.sqlite")
    assert of("index").status == "failed"


def test_a_signing_key_that_cannot_sign_is_found(
    of: Of, identity: Identity, stranger: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAPTERLINE_SIGNING_KEY", str(identity.key))
    assert of("signing key").status == "ok"
    monkeypatch.setenv("ADAPTERLINE_SIGNING_CERTIFICATE", str(stranger.certificate))
    found = of("signing key")
    assert (found.status, "of another key" in found.observed) == ("failed", True)


def test_a_destination_that_forbids_is_found(of: Callable[..., Finding], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")
    found = of("destination s3://adapters", "s3://adapters")
    assert found.status == "failed"
    assert "gave no whole answer" in found.observed
    assert of("destination ftp://x", "ftp://x").status == "failed"


def test_a_server_that_is_there_and_one_that_is_not(prefect_api: str, records: Path) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    found = {each.name: each for each in api.doctor()}
    assert found["prefect server"].status == "ok"
    with temporary_settings(updates={PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        (server,) = [each for each in api.doctor() if each.name == "prefect server"]
    assert server.status == "failed"
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        (server,) = [each for each in api.doctor() if each.name == "prefect server"]
    assert server.status == "warning"


def test_the_command_ends_with_6_where_something_is_missing(
    records: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from adapterline.cli import app

    app(["doctor", "--to", str(tmp_path / "out"), "--json"], result_action="return_value")
    document = json.loads(capsys.readouterr().out)
    assert {"name", "status", "observed", "remedy"} == set(document["findings"][0])
    with pytest.raises(SystemExit) as stopped:
        app(["doctor", "--to", "ftp://x"], result_action="return_value")
    assert stopped.value.code == 6
    assert "failed   destination ftp://x" in capsys.readouterr().out
