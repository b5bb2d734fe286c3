"""A Hub for the tests, and packages to publish there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest

from adapterline.values import (
    Package,
)
from tests.hub_double.server import Hub, Token
from tests.packages import make_package

WRITER, READER, STRANGER = "hf_writer", "hf_reader", "hf_stranger"
TOKENS = {
    WRITER: Token("alice", ("acme",)),
    READER: Token("alice", ("acme",), role="read"),
    STRANGER: Token("mallory"),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """huggingface_hub 2.4.0 uploads in a way that httpx2 will not have for ever."""
    for item in items:
        if "hub" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty Hub. HF_ENDPOINT and HF_TOKEN are set, so that whatever asks for neither is alice of acme there."""
    from huggingface_hub import close_session

    with Hub(tmp_path / "hub", dict(TOKENS)).running() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", WRITER)
        monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-login"))
        yield server
        close_session()


class CrashError(BaseException):
    """The process died. No library takes it for a fault of the network, and nobody tidies up."""


class Wire(httpx2.BaseTransport):
    """What goes from huggingface_hub to a Hub: `act` gets the number of each request, from 1, and its "METHOD path".

    It may raise, or return True, and then the request is delivered and `CrashError` raised before the answer arrives.
    """

    def __init__(self) -> None:
        self.count = 0
        self.act: Callable[[int, str], bool | None] = lambda number, line: None
        self._network = httpx2.HTTPTransport()

    def restart(self, act: Callable[[int, str], bool | None] = lambda number, line: None) -> None:
        self.count, self.act = 0, act

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        self.count += 1
        dies = self.act(self.count, f"{request.method} {request.url.path}")
        answer = self._network.handle_request(request)
        if dies:
            answer.close()
            raise CrashError
        return answer

    def close(self) -> None:
        self._network.close()


@pytest.fixture
def wire(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    """Between huggingface_hub in this process and the Hub."""
    from huggingface_hub import close_session

    wire = Wire()
    close_session()
    monkeypatch.setattr(
        "huggingface_hub.utils._http._GLOBAL_CLIENT_FACTORY",
        lambda: httpx2.Client(transport=wire, follow_redirects=True, timeout=None),
    )
    yield wire
    close_session()


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub repeats at once what it repeats after seconds."""

    class Time:
        @staticmethod
        def sleep(seconds: float) -> None:
            pass

    monkeypatch.setattr("huggingface_hub.utils._http.time", Time)
    monkeypatch.setattr("huggingface_hub.file_download.time", Time)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Package]:
    """`make_package` in a fresh folder for each."""
    made: list[Package] = []

    def make_next(seed: int = 0, **options: object) -> Package:
        made.append(make_package(tmp_path / f"package-{len(made)}", seed, **options))  # type: ignore[arg-type]
        return made[-1]

    return make_next
