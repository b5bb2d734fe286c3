"""What README.md and docs/ say is run: every command in a console, bash or python block, page by page.

The blocks of a page run in order, in one shell, in a folder where `demo/` has what `adapterline demo` leaves there (the
base, the checkpoint and a publication) and `infra/` what the repository has. In a console block a line that begins with
`$ ` is a command (`> ` continues it), and what follows is all that it prints, on stdout and stderr, where

    ...                     stands for anything; alone on a line, also for any number of lines
    12 hex digits and more  stand for any as many
    1.2.3                   stands for any version

A command must end with 0 unless `echo $?` comes next. A block right after `<!-- not run: REASON -->` is left out.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from adapterline.errors import AdapterlineError
from adapterline.settings import Settings
from tests.hub_double.server import Hub, Token
from tests.line import run_line
from tests.publishing import publish
from tests.warm import commands as warm_commands

if TYPE_CHECKING:
    from adapterline.seaweedfs import SeaweedFS
    from tests.conftest import Trained

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
RUNNABLE = ("bash", "console", "python")
#: Why a block is not run. There are no other reasons.
REASONS = {
    "make": "CI runs the targets themselves",
    "runs until it is stopped": "a server or a worker",
    "containers and clouds": "a Docker daemon, a cluster or an AWS account",
}
#: Pages whose commands are started as a user starts them: this one for what a user sees, that one to be killed.
COLD = ("README.md", "listen.md", "dashboard.md")
BUCKET = "adapters"
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NOT_RUN = re.compile(r"<!-- not run: (.+) -->\n\Z")


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    reason: str | None  # why it is not run


@dataclass(frozen=True)
class Command:
    text: str
    output: str | None  # None: whatever it prints


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text()
    found = []
    for match in _FENCE.finditer(text):
        mark = _NOT_RUN.search(text[: match.start()])
        found.append(Block(match[1], match[2], mark[1] if mark else None))
    return found


def commands_of(blocks: list[Block], folder: Path) -> Iterator[Command]:
    for number, block in enumerate(blocks):
        if block.language not in RUNNABLE or block.reason:
            continue
        if block.language == "console":
            yield from _console(block.text)
        elif block.language == "python":
            script = folder / f".block-{number}.py"
            script.write_text(block.text)
            yield Command(f"python {script.name}", None)
        else:
            yield Command(block.text.rstrip(), None)


def _console(text: str) -> Iterator[Command]:
    first, *parts = re.split(r"^\$ ", text, flags=re.MULTILINE)
    assert not first, "a console block begins with a command"
    for part in parts:
        lines = part.splitlines()
        end = next((i for i, line in enumerate(lines[1:], 1) if not line.startswith("> ")), len(lines))
        command = [lines[0], *(line[2:] for line in lines[1:end])]
        yield Command("\n".join(command), "\n".join(lines[end:]).strip("\n"))


# --- running them -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def demo(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `adapterline demo` leaves: base, checkpoint, published. Copied for each page."""
    folder = tmp_path_factory.mktemp("docs") / "demo"
    shutil.copytree(trained.base, folder / "base")
    shutil.copytree(trained.checkpoint, folder / "checkpoint")
    publish(run_line(folder / "checkpoint", folder / "base", folder.parent), "demo-lora", folder / "published")
    return folder


@pytest.fixture(scope="session")
def docs_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A Hub with the organization acme, and the variables of somebody who may write there."""
    token = "hf_writer"
    with Hub(tmp_path_factory.mktemp("hub"), {token: Token("alice", ("acme",))}).running() as server:
        yield {"HF_ENDPOINT": server.url, "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1"}


@pytest.fixture(scope="session")
def docs_s3(seaweedfs: SeaweedFS) -> dict[str, str]:
    """The variables of somebody who may write to the bucket."""
    import boto3

    given = seaweedfs.environment()
    session = boto3.session.Session(given["AWS_ACCESS_KEY_ID"], given["AWS_SECRET_ACCESS_KEY"])
    client = session.client("s3", endpoint_url=given["AWS_ENDPOINT_URL_S3"], region_name=given["AWS_REGION"])
    client.create_bucket(Bucket=BUCKET)
    client.close()
    return {**given, "AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}


@pytest.fixture(scope="session")
def environment(
    prefect_api: str, docs_s3: dict[str, str], docs_hub: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """A user's, with nothing of this machine's: no settings, no credentials but those of the servers made here."""
    home = tmp_path_factory.mktemp("home")
    kept = ("LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
    return {
        **{name: os.environ[name] for name in kept if name in os.environ},
        **docs_s3,
        **docs_hub,
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PREFECT_API_URL": prefect_api,
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_LOGGING_LEVEL": "CRITICAL",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # the command line does it too; huggingface_hub reads it once
        "COLUMNS": "80",
        "NO_COLOR": "1",
        "PYTHONUNBUFFERED": "1",  # so that stdout and stderr come in the order in which a terminal shows them
    }


@pytest.fixture(scope="session")
def warm(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The same, with commands that start at once. README.md's are started as a user starts them."""
    with warm_commands(tmp_path_factory.mktemp("warm"), environment) as folder:
        yield {**environment, "PATH": f"{folder}:{environment['PATH']}"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_does_what_the_page_shows(page: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if not list(commands_of(blocks_of(page), tmp_path)):
        return
    shutil.copytree(request.getfixturevalue("demo"), tmp_path / "demo")
    shutil.copytree(ROOT / "infra", tmp_path / "infra")
    environment = request.getfixturevalue("environment" if page.name in COLD else "warm")
    commands = list(commands_of(blocks_of(page), tmp_path))
    for index, (command, (output, status)) in enumerate(
        zip(commands, _run(commands, tmp_path, environment), strict=True)
    ):
        following = commands[index + 1].text if index + 1 < len(commands) else ""
        assert status == 0 or following == "echo $?", f"$ {command.text}\n{output}\nended with {status}"
        if command.output is not None:
            assert re.fullmatch(_pattern(command.output), output.strip("\n")), (
                f"$ {command.text}\nprinted\n{output}\nand {page.name} shows\n{command.output}"
            )


def _run(commands: list[Command], folder: Path, environment: dict[str, str]) -> Iterator[tuple[str, int]]:
    """What each prints, and its status, all in one shell; the rest is left out after a failure of the shell itself."""
    script = ["exec 2>&1 </dev/null", "status=0"]
    for command in commands:
        script += ["(exit $status)", command.text, "status=$?", r"printf '\n\x1e%d\x1e' $status"]
    ran = subprocess.run(
        ["bash", "-c", "\n".join(script)], cwd=folder, env=environment, capture_output=True, text=True, timeout=240
    )
    *parts, _ = ran.stdout.split("\x1e")
    yield from zip(parts[::2], map(int, parts[1::2]), strict=True)


def _pattern(shown: str) -> str:
    """The regular expression of what a page shows."""
    lines = []
    for line in shown.splitlines():
        if line.strip() == "...":
            lines.append(r"(?s:.*?)")
            continue
        text = re.escape(line).replace(r"\.\.\.", r"[^\n]*")
        text = re.sub(r"(?<![0-9a-z])[0-9a-f]{12,}(?![0-9a-z])", lambda match: f"[0-9a-f]{{{len(match[0])}}}", text)
        lines.append(re.sub(r"\d+\\\.\d+\\\.\d+", r"\\d+\\.\\d+\\.\\d+", text))
    return "\n".join(lines)


def test_the_patterns_of_shown_output_are_no_wider_than_said() -> None:
    assert re.fullmatch(_pattern("a ... 0123456789ab 1.2.3\n...\nz"), "a b c ffffffffffff 4.5.66\nx\ny\nz")
    for other in ("a b ffffffffffff 4.5\nz", "a b fffffffffff 1.2.3\nx\nz", "a b ffffffffffff 1.2.3\nx\nz!"):
        assert not re.fullmatch(_pattern("a ... 0123456789ab 1.2.3\n...\nz"), other)
    assert not re.fullmatch(_pattern("128 modules"), "127 modules")


# --- what is left out, and why ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_block_is_left_out_for_a_known_reason(page: Path) -> None:
    for block in blocks_of(page):
        assert block.reason is None or block.reason in REASONS, f"{page.name}: {block.reason}"
        if block.reason == "make":
            assert re.fullmatch(r"((\$ )?(git clone|cd|make) .*\n)+", block.text), block.text


def test_few_blocks_are_left_out() -> None:
    skipped = [block for page in PAGES for block in blocks_of(page) if block.reason and block.reason != "make"]
    ran = [block for page in PAGES for block in blocks_of(page) if block.language in RUNNABLE and not block.reason]
    assert len(skipped) <= 8
    assert len(ran) >= 15


# --- what must be there -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_resolves(page: Path) -> None:
    text = re.sub(r"`[^`\n]*`", "", _FENCE.sub("", page.read_text()))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in _anchors(file), f"{page.name} links to {target}"


def _anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", _FENCE.sub("", page.read_text()), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_page_is_in_the_contents() -> None:
    contents = (DOCS / "index.md").read_text()
    for page in DOCS.glob("*.md"):
        assert page.name == "index.md" or f"({page.name})" in contents, page.name


def test_every_error_and_exit_code_is_explained() -> None:
    text = (DOCS / "errors.md").read_text()
    for kind in _subclasses(AdapterlineError):
        assert f"`{kind.__name__}`" in text, kind
        assert f"| {kind.exit_code} |" in text, kind.exit_code


def _subclasses(kind: type[Any]) -> Iterator[type[Any]]:
    for each in kind.__subclasses__():
        if each.__module__ == "adapterline.errors":
            yield each
            yield from _subclasses(each)


@pytest.mark.parametrize(
    ("command", "page"),
    [
        ("export", "export"),
        ("inspect", "export"),
        ("validate", "validate"),
        ("promote", "retention"),
        ("prune", "retention"),
        ("sweep", "sweep"),
        ("audit", "audit"),
        ("notify", "events"),
        ("listen", "listen"),
        ("dashboard", "dashboard"),
        ("doctor", "doctor"),
        ("lineage list", "lineage"),
        ("lineage show", "lineage"),
        ("lineage which", "lineage"),
        ("lineage reindex", "lineage"),
        ("lineage compare", "lineage"),
        ("demo", "quickstart"),
    ],
)
def test_every_option_is_explained(command: str, page: str) -> None:
    text = (DOCS / f"{page}.md").read_text()
    for option in _options(command):
        assert re.search(rf"`{option}(?![\w-])", text), f"{option} of adapterline {command} is not in {page}.md"


def test_every_option_of_deploy_is_explained() -> None:
    from deployments.deploy import app

    text = (DOCS / "events.md").read_text()
    options = [name for argument in app.assemble_argument_collection() for name in argument.names]
    assert "--to" in options
    for option in options:
        assert re.search(rf"`{option}(?![\w-])", text), f"{option} of deploy is not in events.md"


def test_every_command_is_tried_above() -> None:
    from adapterline.cli import app

    assert {name for name in app if not name.startswith("-")} == {
        "export",
        "inspect",
        "validate",
        "sweep",
        "audit",
        "notify",
        "listen",
        "dashboard",
        "doctor",
        "lineage",
        "promote",
        "prune",
        "demo",
    }


def _options(command: str) -> list[str]:
    from adapterline.cli import app

    found = app
    for name in command.split():
        found = found[name]
    # A positional argument is one that may be given without its name: it has an index.
    named = [argument.names for argument in found.assemble_argument_collection() if argument.index is None]
    return [name for names in named for name in names if name.startswith("--")]


def test_every_setting_is_explained_with_its_default() -> None:
    text = (DOCS / "export.md").read_text()
    for name, setting in Settings.model_fields.items():
        row = re.search(rf"^\| `ADAPTERLINE_{name.upper()}` \| (.+?) \|", text, flags=re.MULTILINE)
        assert row, name
        if setting.default_factory is None:
            shown = "any" if setting.default == () else f"`{str(setting.default).lower()}`"
            assert row[1] == shown, name


def test_the_settings_that_are_shown_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in [each for each in os.environ if each.startswith("ADAPTERLINE_")]:
        monkeypatch.delenv(variable)
    shown = [block.text for page in PAGES for block in blocks_of(page) if block.language == "toml"]
    assert shown
    for text in shown:
        Settings(**tomllib.loads(text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_nothing_of_the_writers_machine_is_told(page: Path) -> None:
    assert not re.search(r"/(work|tmp|root|home)/(?!you\b)", page.read_text())
