"""What Hub destinations and Hub checkpoints share: the client, what lies in a repository at one commit, the errors.

Where the Hub is and who we are is huggingface_hub's own configuration: `HF_ENDPOINT`, `HF_TOKEN`, `hf auth login`.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from adapterline.errors import AdapterlineError, from_os_error

if TYPE_CHECKING:
    from huggingface_hub import HfApi, RepoFile

CONNECT_S = 15.0
#: Seconds without a byte. Long, because the Hub answers a commit only when it is done.
SILENCE_S = 300.0
#: How long one call waits in all because the Hub asks for it: its limits are for five minutes.
PATIENCE_S = 330.0
_BATCH = 100

_REPO_NAME = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9_]([\w.-]{0,94}[A-Za-z0-9_])?", re.ASCII)


def is_repo_name(text: str) -> bool:
    """Can it be an organization or a repository? The rule is huggingface_hub's `validate_repo_id`."""
    return bool(_REPO_NAME.fullmatch(text)) and not text.endswith(".git")


def open_hub(endpoint: str | None = None, token: str | None = None) -> HfApi:
    """A client; None means what the environment says now (huggingface_hub reads HF_ENDPOINT when it is imported).

    huggingface_hub waits for ever for an answer unless somebody set a timeout: its client gets one here if it has none.
    """
    import httpx2
    from huggingface_hub import HfApi, get_session

    session = get_session()
    if session.timeout == httpx2.Timeout(None):
        session.timeout = httpx2.Timeout(SILENCE_S, connect=CONNECT_S)
    return HfApi(endpoint=endpoint or os.environ.get("HF_ENDPOINT") or None, token=token, library_name="adapterline")


class Commit:
    """What a repository holds at one commit. It never changes, so each part of it is read once.

    Its methods raise what huggingface_hub raises.
    """

    def __init__(self, api: HfApi, repo_id: str, oid: str) -> None:
        self.repo_id = repo_id
        self.oid = oid
        self._api = api
        self._read: dict[str, bytes] = {}

    @cached_property
    def files(self) -> Mapping[str, RepoFile]:
        """All files of the repository by their paths."""
        from huggingface_hub import RepoFile

        tree = self._api.list_repo_tree(self.repo_id, recursive=True, revision=self.oid)
        return {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}

    def read(self, path: str) -> bytes | None:
        """The bytes of a small file; None if there is none."""
        from huggingface_hub import get_session, hf_hub_url, hf_raise_for_status
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # exported when asked for

        if path not in self.files:
            return None
        if path not in self._read:
            url = hf_hub_url(self.repo_id, path, revision=self.oid, endpoint=self._api.endpoint)
            answer = get_session().get(url, headers=build_hf_headers(token=self._api.token))
            hf_raise_for_status(answer)
            self._read[path] = answer.content
        return self._read[path]

    def sha256(self, path: str) -> str | None:
        """Of a large file as the Hub's store states it, of a small one as its bytes are; None if there is none."""
        entry = self.files.get(path)
        if entry and entry.lfs:
            return str(entry.lfs.sha256)
        data = self.read(path)
        return None if data is None else hashlib.sha256(data).hexdigest()

    def times(self, paths: Sequence[str]) -> dict[str, datetime]:
        """When the files were changed last, by path."""
        from huggingface_hub import RepoFile

        batches = [list(paths[first : first + _BATCH]) for first in range(0, len(paths), _BATCH)]
        found = (self._api.get_paths_info(self.repo_id, batch, revision=self.oid, expand=True) for batch in batches)
        entries = [entry for batch in found for entry in batch if isinstance(entry, RepoFile)]
        return {entry.path: entry.last_commit.date for entry in entries if entry.last_commit}

    def download(self, path: str, folder: Path) -> None:
        """Into `folder / path`; beside it huggingface_hub leaves a folder `.cache`."""
        self._api.hf_hub_download(self.repo_id, path, revision=self.oid, local_dir=folder)


def status_of(error: BaseException | None) -> int:
    """The HTTP status of an answer that huggingface_hub raised, at whatever depth; 0 if there was no answer."""
    from huggingface_hub.errors import HfHubHTTPError

    origin = _origin(error) if error else None
    return origin.response.status_code if isinstance(origin, HfHubHTTPError) else 0


class Patience:
    """The seconds that one call still waits where the Hub answers 429 and says for how long."""

    def __init__(self, seconds: float = PATIENCE_S) -> None:
        self._left = seconds

    def wait(self, error: AdapterlineError) -> bool:
        """Waits as the answer behind an error asks; False at once if it asks for nothing, or for more than is left."""
        pause = _pause_asked_by(error.__cause__)
        if pause is None or pause > self._left:
            return False
        # What asks for no pause costs one all the same, so that it ends.
        self._left -= max(pause, 1)
        time.sleep(pause)
        return True


def _pause_asked_by(error: BaseException | None) -> float | None:
    """Seconds, from `Retry-After` (RFC 9110, 10.2.3) or from the Hub's own `RateLimit`; None if it is no 429."""
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]  # exported when asked for

    origin = _origin(error) if error else None
    if not isinstance(origin, HfHubHTTPError) or origin.response.status_code != 429:
        return None
    headers = origin.response.headers
    if (text := headers.get("Retry-After", "").strip()).isdigit():
        return float(text)
    if text:
        try:
            return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
        except (TypeError, ValueError):
            return None
    limit = parse_ratelimit_headers(headers)
    return None if limit is None or limit.remaining else float(limit.reset_in_seconds)


@contextmanager
def hub_errors(doing: str, kind: type[AdapterlineError]) -> Iterator[None]:
    """Maps what huggingface_hub raises inside by `map_hub_error`; what is ours already passes."""
    import httpx2

    try:
        yield
    except AdapterlineError:
        raise
    # An upload that fails is a RuntimeError, a card that cannot be checked and an answer that is no JSON a ValueError.
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError, RuntimeError, ValueError) as error:
        raise map_hub_error(error, doing, kind) from error


def map_hub_error(error: Exception, doing: str, kind: type[AdapterlineError]) -> AdapterlineError:
    """The typed form of what huggingface_hub raised while `doing` something ("Reading acme/tiny").

    Transient: no answer, a broken answer, 5xx, throttling, a conflict. Everything else needs somebody who changes
    something.
    """
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    error = _origin(error)
    name = type(error).__name__
    if isinstance(error, HfHubHTTPError):
        return _map_answer(error, doing, kind)
    if isinstance(error, (httpx2.InvalidURL, httpx2.UnsupportedProtocol)):
        return kind(f"{doing}: the Hub's address is not a URL.", remedy="Correct HF_ENDPOINT.")
    if isinstance(error, LocalTokenNotFoundError):
        return kind(f"{doing}: there is no access token.", remedy=_LOG_IN)
    if isinstance(error, OfflineModeIsEnabled):
        return kind(f"{doing}: the Hub is switched off.", remedy="Unset HF_HUB_OFFLINE.")
    if isinstance(error, (httpx2.HTTPError, ConnectionError, TimeoutError)):
        remedy = "Check the network and HF_ENDPOINT, then try again."
        if not isinstance(error, httpx2.HTTPError):  # hf_xet has Python's own types
            remedy += " A server without Xet storage needs HF_HUB_DISABLE_XET=1."
        return kind(f"{doing}: the Hub gave no whole answer ({name}).", remedy=remedy, transient=True)
    if isinstance(error, OSError):
        return from_os_error(error, doing, otherwise=kind)
    return kind(f"{doing}: huggingface_hub refused ({name}: {_line(str(error))}).", remedy="Check HF_ENDPOINT.")


_LOG_IN = "Set HF_TOKEN to a valid token, or run `hf auth login`."


def _map_answer(error: Exception, doing: str, kind: type[AdapterlineError]) -> AdapterlineError:
    status = status_of(error)
    # Not the exception's own text: that has the address, and an upload's address has a signature.
    text = _line(getattr(error, "server_message", None) or "") or type(error).__name__
    transient = status in (408, 409, 412, 429) or status >= 500
    remedies = {
        401: f"{_LOG_IN} Without one, the Hub says the same of what does not exist.",
        402: "Check the plan and the billing of the account there.",
        403: "Use a token that has this right, or accept the repository's terms with its account.",
        404: "Check the spelling, and whether the token may see it.",
    }
    remedy = remedies.get(status, "Try again later." if transient else "")
    return kind(f"{doing}: the Hub answered {status} ({text}).", remedy=remedy, transient=transient)


def _line(text: str) -> str:
    """One line, and no query string: a signature or a token may be in it."""
    return re.sub(r"\?\S+", "?…", " ".join(text.split()))[:300].rstrip(" .")


def _origin(error: BaseException) -> Exception:
    """What really happened, below the exceptions that huggingface_hub puts around it."""
    import httpx2
    from huggingface_hub.errors import LocalEntryNotFoundError

    while isinstance(error.__cause__, Exception) and (
        isinstance(error, LocalEntryNotFoundError) or not isinstance(error, (httpx2.HTTPError, OSError))
    ):
        error = error.__cause__
    assert isinstance(error, Exception)
    return error
