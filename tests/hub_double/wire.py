"""An HTTP/1.1 server in a thread, that keeps a log and lets things go wrong when it is told to."""

from __future__ import annotations

import json
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from tests.hub_double.faults import Faults


@dataclass(frozen=True)
class Request:
    method: str
    target: str  # path and query, quoted
    headers: Message
    body: bytes


@dataclass(frozen=True)
class Reply:
    status: int = 200
    data: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def json(cls, value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
        return cls(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    @classmethod
    def file(cls, data: bytes, request: Request, headers: Mapping[str, str]) -> Reply:
        """The bytes, or the range of them that is asked for."""
        headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **headers}
        if not (wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))):
            return cls(200, data, headers)
        first, last = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
        if first >= len(data):
            return cls(416, b"", {**headers, "Content-Range": f"bytes */{len(data)}"})
        return cls(206, data[first : last + 1], {**headers, "Content-Range": f"bytes {first}-{last}/{len(data)}"})


class HttpServer:
    """Listens on a free port of 127.0.0.1 while `running`. What `answer` raises is raised again when it ends."""

    def __init__(self, answer: Callable[[Request], Reply], faults: Faults) -> None:
        self.requests: list[str] = []
        self._answer = answer
        self._faults = faults
        self._broken: list[BaseException] = []
        self._open: set[socket.socket] = set()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self) -> None:
                super().setup()
                server._open.add(self.connection)

            def finish(self) -> None:
                server._open.discard(self.connection)
                with suppress(OSError):
                    super().finish()

            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:  # noqa: N802
                with suppress(ConnectionError):
                    server._serve(self)

            do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]

    @contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield
        finally:
            self._server.shutdown()
            thread.join()
            self._server.server_close()
            for connection in list(self._open):
                _cut(connection)
        if self._broken:
            raise self._broken[0]

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        line = f"{handler.command} {urlsplit(handler.path).path}"
        self.requests.append(line)
        fault = self._faults.hit(line)
        if fault and fault.delay:
            time.sleep(fault.delay)
        if fault and fault.drop == "before":
            return _cut(handler.connection)
        request = Request(handler.command, handler.path, handler.headers, _body(handler))
        if fault and fault.status:
            return _send(handler, Reply.json({"error": "injected"}, fault.status, fault.headers))
        try:
            reply = self._answer(request)
        except Exception as error:
            self._broken.append(error)
            reply = Reply.json({"error": "the double itself failed"}, 500)
        if fault and fault.drop == "after":
            return _cut(handler.connection)
        _send(handler, reply)


def _cut(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _body(handler: BaseHTTPRequestHandler) -> bytes:
    if handler.headers.get("Transfer-Encoding", "").lower() != "chunked":
        length = int(handler.headers.get("Content-Length") or 0)
        if len(data := handler.rfile.read(length)) != length:
            raise ConnectionError("the request broke off")
        return data
    chunks = []
    while size := int(handler.rfile.readline().split(b";")[0] or b"0", 16):
        chunks.append(handler.rfile.read(size))
        handler.rfile.readline()
    handler.rfile.readline()
    return b"".join(chunks)


def _send(handler: BaseHTTPRequestHandler, reply: Reply) -> None:
    handler.send_response(reply.status)
    for name, value in reply.headers.items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(reply.data)))
    handler.send_header("X-Request-Id", secrets.token_hex(4))
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(reply.data)
