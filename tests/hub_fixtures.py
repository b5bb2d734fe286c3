"""A Hub for the tests, and packages to publish there."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import httpx2
import numpy as np
import pytest
from safetensors.numpy import save

from adapterline.package.card import CARD_NAME, MARKER
from adapterline.values import (
    WEIGHT_NAME,
    BaseSummary,
    Bundle,
    Check,
    ComponentSummary,
    ExportedFile,
    LoadCall,
    Manifest,
    Package,
    PackagedFile,
    SourceSummary,
    ValidationReport,
)
from tests.hub_double.server import Hub, Token

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
    """`hub_package` in a fresh folder for each."""
    made: list[Package] = []

    def make_next(seed: int = 0, **options: object) -> Package:
        made.append(hub_package(tmp_path / f"package-{len(made)}", seed, **options))  # type: ignore[arg-type]
        return made[-1]

    return make_next


def hub_package(
    folder: Path,
    seed: int = 0,
    *,
    name: str = "tiny",
    tool: str = "1",
    configs: Mapping[str, bytes] | None = None,
) -> Package:
    """A package in `folder`. Another `seed` gives another bundle, another `tool` another manifest and card of the same.

    Beside the weights it has `configs`, path -> bytes: small files that no LFS pattern matches.
    """
    values = np.random.default_rng(seed)
    tensors = {
        "unet.mid.lora_A.weight": values.standard_normal((4, 16), dtype=np.float32),
        "unet.mid.lora_B.weight": values.standard_normal((8, 4), dtype=np.float32),
    }
    contents = {WEIGHT_NAME: save(tensors), **(configs or {})}
    manifest = _manifest(name, tool, tuple(_exported(path, data) for path, data in contents.items()))
    card = f"---\ntags:\n- lora\n---\n\n{MARKER}\n\n# {name}\n\nMade by tool {tool}, seed {seed}.\n".encode()
    for path, data in {**contents, CARD_NAME: card}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    files = [PackagedFile(path=file.path, size=file.size, sha256=file.sha256) for file in manifest.files]
    files.append(PackagedFile(path=CARD_NAME, size=len(card), sha256=hashlib.sha256(card).hexdigest()))
    return Package(manifest=manifest, manifest_bytes=manifest.to_bytes(), folder=folder, files=tuple(files))


def _exported(path: str, data: bytes) -> ExportedFile:
    weights = path.endswith(".safetensors")
    payload = data[8 + int.from_bytes(data[:8], "little") :] if weights else data
    return ExportedFile(
        role="weights" if weights else "config",
        layout="diffusers",
        path=path,
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        tensors_sha256=hashlib.sha256(payload).hexdigest(),
    )


def _manifest(name: str, tool: str, files: tuple[ExportedFile, ...]) -> Manifest:
    digest = Bundle.digest_of(files)
    check = Check(name="effect", component="unet", observed=0.0, limit=5e-4, passed=True)
    return Manifest(
        name=name,
        digest=digest,
        family="sd15",
        source=SourceSummary(
            name="checkpoint-7", digest=hashlib.sha256(b"source").hexdigest(), container="safetensors", dialect="peft"
        ),
        training_run=None,
        base=BaseSummary(architecture=hashlib.sha256(b"architecture").hexdigest(), pipeline="StableDiffusionPipeline"),
        files=files,
        components={
            "unet": ComponentSummary(rank=4, alpha=4, modules=1, adapter_type="lora", dtype="F32", parameters=96)
        },
        transforms=(),
        left_out=(),
        validation=ValidationReport(bundle_digest=digest, checks=(check,)),
        loads=(LoadCall(pipeline="StableDiffusionPipeline", method="load_lora_weights", weight_name=WEIGHT_NAME),),
        consumers={WEIGHT_NAME: ("diffusers",)},
        tools={"adapterline": tool},
    )
