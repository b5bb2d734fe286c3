"""What can go wrong on the way to a server, on demand."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Fault:
    """What happens to requests whose "METHOD path" has a match for `match`.

    The first `skip` of them pass, then `times` are hit. `drop` closes the connection, before the request is looked at
    or after it was done; `status` answers without doing it; `delay` (seconds) comes before either.
    """

    match: str
    status: int | None = None
    drop: Literal["before", "after"] | None = None
    delay: float = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    skip: int = 0
    times: int = 1


class Faults:
    """The faults that are armed. Each request meets at most one."""

    def __init__(self) -> None:
        self._armed: list[tuple[Fault, list[int]]] = []
        self._lock = threading.Lock()

    def arm(self, *faults: Fault) -> None:
        """In place of all that were armed before; none takes them away."""
        with self._lock:
            self._armed = [(fault, [0]) for fault in faults]

    def hit(self, request: str) -> Fault | None:
        """The fault that this request meets."""
        with self._lock:
            for fault, seen in self._armed:
                if re.search(fault.match, request):
                    seen[0] += 1
                    if fault.skip < seen[0] <= fault.skip + fault.times:
                        return fault
        return None
