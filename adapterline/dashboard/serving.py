"""`adapterline dashboard`: the server, from binding to the last answer."""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence

from adapterline.errors import MachineError

log = logging.getLogger("adapterline.dashboard")
_LAST_ANSWERS_S = 5


def serve(host: str, port: int, allowed_hosts: Sequence[str], no_token: bool) -> None:
    """Serves until SIGINT or SIGTERM. Port 0 is any free one; which it is, the log says.

    UsageError where others would reach it without a token; MachineError if the index or the port cannot be used.
    """
    from adapterline.dashboard.access import access_at
    from adapterline.lineage.index import Index
    from adapterline.settings import Settings

    token = Settings().dashboard_token
    access = access_at(host, token.get_secret_value() if token else None, allowed_hosts, no_token)
    index = Index()
    index.runs(limit=1)  # what is wrong with it is said here, and not on every page

    import uvicorn

    from adapterline.dashboard.app import make_app

    with bound(host, port) as listening:
        shown = f"[{host}]" if ":" in host else host
        log.info("the dashboard is at http://%s:%d/", shown, listening.getsockname()[1])
        config = uvicorn.Config(
            make_app(index, access),
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=_LAST_ANSWERS_S,
        )
        uvicorn.Server(config).run(sockets=[listening])


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens. MachineError if it cannot."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.create_server(address, family=family)
        # Connections inherit it. asyncio sets it only where a socket names its protocol, and without it the end of
        # each answer waits 40 ms for an acknowledgement of its beginning.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except (OSError, OverflowError) as error:
        raise MachineError(
            f"{host}:{port} cannot be listened at: {error}.",
            expected="an address of this machine, and a free port",
            remedy="Choose another --port.",
        ) from error
