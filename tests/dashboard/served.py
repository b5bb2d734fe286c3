"""The dashboard as a real server, in a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from adapterline.dashboard.access import Access
from adapterline.dashboard.app import make_app
from adapterline.dashboard.serving import bound
from adapterline.lineage import Index

_PATIENCE = 30  # seconds


@contextmanager
def served(index: Index, access: Access) -> Iterator[str]:
    """Its address, as long as it is served."""
    with bound("127.0.0.1", 0) as listening:
        config = uvicorn.Config(make_app(index, access), log_config=None, access_log=False, server_header=False)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + _PATIENCE
        while not server.started:
            assert thread.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(_PATIENCE)
