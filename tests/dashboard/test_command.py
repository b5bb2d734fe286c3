"""`adapterline dashboard` as a user starts it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from adapterline.dashboard.serving import bound
from adapterline.errors import AdapterlineError
from tests.dashboard.conftest import TOKEN

_PATIENCE = 60  # seconds
_START = "import sys; from adapterline.cli import main; sys.argv = ['adapterline', 'dashboard', *sys.argv[1:]]; "


def start(folder: Path, *arguments: str, after: str = "main()", **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _START + after, *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**os.environ, "ADAPTERLINE_INDEX": f"sqlite:///{folder}/i.sqlite", **variables},
    )


def address_of(process: subprocess.Popen[str]) -> str:
    assert process.stderr
    deadline = time.monotonic() + _PATIENCE
    for line in process.stderr:
        if found := re.search(r"http://\S+", line):
            return found[0]
        assert time.monotonic() < deadline
    raise AssertionError(process.wait())


def test_it_says_where_it_is_serves_an_empty_index_and_ends_when_told(tmp_path: Path) -> None:
    process = start(tmp_path, "--port", "0")
    try:
        url = address_of(process)
        page = httpx.get(f"{url}adapters")
        assert (page.status_code, "No versions fit." in page.text) == (200, True)
        for path in ("runs", "failures", "health", "which"):
            assert httpx.get(f"{url}{path}").status_code == 200
    finally:
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=_PATIENCE)
    assert process.returncode == -signal.SIGTERM
    assert out == ""


def test_with_a_token_it_may_be_reached_by_others(tmp_path: Path) -> None:
    process = start(tmp_path, "--port", "0", "--host", "0.0.0.0", ADAPTERLINE_DASHBOARD_TOKEN=TOKEN)
    try:
        url = address_of(process).replace("0.0.0.0", "127.0.0.1")
        assert httpx.get(f"{url}adapters").status_code == 303
        assert httpx.get(f"{url}adapters", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    finally:
        process.terminate()
        process.communicate(timeout=_PATIENCE)


@pytest.mark.parametrize(
    ("arguments", "variables", "code", "says"),
    [
        (["--host", "0.0.0.0"], {}, 2, "Set the token; or pass --no-token"),
        (["--port", "{taken}"], {}, 6, "cannot be listened at"),
        (["--port", "99999"], {}, 2, "Must be <= 65535"),
        ([], {"ADAPTERLINE_INDEX": "mysql://x/y"}, 2, "ADAPTERLINE_INDEX"),
        ([], {"ADAPTERLINE_DASHBOARD_TOKEN": "short"}, 2, "fewer than 16"),
    ],
)
def test_what_cannot_be_served_is_one_paragraph_and_an_exit_code(
    tmp_path: Path,
    arguments: list[str],
    variables: dict[str, str],
    code: int,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from adapterline.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ADAPTERLINE_INDEX", f"sqlite:///{tmp_path}/i.sqlite")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        monkeypatch.setattr(sys, "argv", ["adapterline", "dashboard", *[a.format(taken=port) for a in arguments]])
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == code
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert says in said


def test_it_needs_neither_torch_nor_prefect_and_starts_in_seconds(tmp_path: Path) -> None:
    """What is heavy stays unloaded, also when pages are asked for."""
    served = (
        "from adapterline.dashboard.app import make_app; from adapterline.dashboard.access import Access; "
        "from adapterline.lineage import Index; from starlette.testclient import TestClient; "
        "app = make_app(Index(), Access()); client = TestClient(app); "
        "assert all(client.get(p).status_code == 200 for p in ('/adapters', '/runs', '/api/openapi.json')); "
        "print([each for each in ('torch', 'prefect', 'diffusers', 'transformers', 'peft') if each in sys.modules])"
    )
    begun = time.monotonic()
    process = start(tmp_path, after=served)
    out, err = process.communicate(timeout=_PATIENCE)
    assert (out, process.returncode) == ("[]\n", 0), err
    assert time.monotonic() - begun < 20


def test_every_error_has_a_remedy_to_show_as_the_documentation_has_it() -> None:
    from adapterline.dashboard.remedies import REMEDIES

    def kinds(kind: type[AdapterlineError]) -> set[str]:
        return {kind.__name__}.union(*map(kinds, kind.__subclasses__()))

    ours = {name for name in kinds(AdapterlineError) if name != "AdapterlineError"}
    assert set(REMEDIES) >= {name for name in ours if hasattr(__import__("adapterline.errors").errors, name)}
    page = (Path(__file__).parents[2] / "docs" / "errors.md").read_text()
    for name, remedy in REMEDIES.items():
        row = next(line for line in page.splitlines() if f"| `{name}` |" in line)
        text = re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", row)
        assert remedy.means.split(",")[0].split(";")[0] in text, name


def test_the_end_of_an_answer_does_not_wait_for_an_acknowledgement_of_its_beginning() -> None:
    with bound("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
