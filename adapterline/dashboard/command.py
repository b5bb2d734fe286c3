"""`adapterline dashboard`, as the command line has it."""

from __future__ import annotations

import logging
import sys
from typing import Annotated

from cyclopts import Parameter

from adapterline.output import Port


def dashboard(
    *,
    host: str = "127.0.0.1",
    port: Port = 8788,
    allowed_host: Annotated[list[str] | None, Parameter(negative="")] = None,
    no_token: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Serve the web page over the lineage index, and its JSON API. It only reads.

    Parameters
    ----------
    host
        The address to bind to. One that others reach needs ADAPTERLINE_DASHBOARD_TOKEN.
    port
        And the port; 0 for any free one.
    allowed_host
        A name that it may be called by, as often as needed. Default: on this machine alone its own names, else any.
    no_token
        Let in everybody who reaches it: a proxy before it signs people in.
    """
    from adapterline.dashboard.serving import serve

    logging.basicConfig(format="%(asctime)s %(message)s", stream=sys.stderr)
    logging.getLogger("adapterline").setLevel(logging.INFO)
    serve(host, port, allowed_host or (), no_token)
