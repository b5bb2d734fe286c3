"""Between an exporter and its S3: what a store in trouble answers, as AWS documents it, and what a wire does to bytes.

Sources: the error codes of the S3 API reference (SlowDown 503, InternalError 500, ConditionalRequestConflict 409,
ExpiredToken 400); AWS answers 404 to If-Match on a key that is not there, where SeaweedFS answers 412.
"""

from __future__ import annotations

import enum
import http.client
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

_ERROR = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>injected</Message></Error>'


class Trouble(enum.Enum):
    """What happens to one request."""

    SLOW_DOWN = "503 SlowDown"
    INTERNAL = "500 InternalError"
    CONFLICT = "409 ConditionalRequestConflict"
    EXPIRED = "an expired token from here on"
    SLOW = "an answer after two seconds"
    RESET_BEFORE = "a reset before it was done"
    RESET_AFTER = "a reset after it was done"
    FLIPPED_UP = "a bit flipped on the way there"
    FLIPPED_DOWN = "a bit flipped on the way back"
    CUT_SHORT = "an answer that breaks off"

    @property
    def is_lasting(self) -> bool:
        """No retry helps."""
        return self is Trouble.EXPIRED


_ANSWERS = {
    Trouble.SLOW_DOWN: (503, "SlowDown"),
    Trouble.INTERNAL: (500, "InternalError"),
    Trouble.CONFLICT: (409, "ConditionalRequestConflict"),
    Trouble.EXPIRED: (400, "ExpiredToken"),
}


class Proxy:
    """Hands everything on to the server of these AWS_* variables, but the nth request, which meets `trouble`."""

    def __init__(self, environment: Mapping[str, str], trouble: Trouble | None = None, nth: int = 0) -> None:
        import boto3

        session = boto3.session.Session(environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"])
        endpoint = environment["AWS_ENDPOINT_URL_S3"]
        self._client = session.client("s3", endpoint_url=endpoint, region_name=environment["AWS_REGION"])
        self._upstream = urlsplit(endpoint)
        self._trouble, self._nth, self._count = trouble, nth, 0
        self._lock = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:  # noqa: N802
                with suppress(OSError):
                    proxy._serve(self)

            do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    @contextmanager
    def running(self) -> Iterator[Proxy]:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            thread.join()
            self._server.server_close()

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        if handler.headers.get("Expect", "").lower() == "100-continue":
            handler.send_response_only(100)
            handler.end_headers()
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        with self._lock:
            self._count += 1
            hit = self._count == self._nth or (self._trouble is Trouble.EXPIRED and self._count >= self._nth)
        trouble = self._trouble if hit else None
        # A conflict is what a conditional write meets, and nothing else.
        conditional = {"If-Match", "If-None-Match"} & set(handler.headers.keys())
        if trouble is Trouble.CONFLICT and not conditional:
            trouble = None
        if trouble in _ANSWERS:
            return self._answer(handler, *_ANSWERS[trouble])
        if trouble is Trouble.RESET_BEFORE:
            return _cut(handler)
        if trouble is Trouble.FLIPPED_UP and body:
            body = _flipped(body)
        status, headers, data = self._forward(handler, body)
        if trouble is Trouble.RESET_AFTER:
            return _cut(handler)
        if trouble is Trouble.SLOW:
            time.sleep(2)
        if trouble is Trouble.FLIPPED_DOWN and data and status == 200:
            data = _flipped(data)
        if status == 412 and "If-Match" in handler.headers and not self._is_there(handler.path):
            return self._answer(handler, 404, "NoSuchKey")
        self._send(handler, status, headers, data, cut=trouble is Trouble.CUT_SHORT and bool(data))

    def _forward(self, handler: BaseHTTPRequestHandler, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        """With the Host header as it came: it is part of the signature."""
        connection = http.client.HTTPConnection(self._upstream.hostname or "", self._upstream.port, timeout=60)
        connection.putrequest(handler.command, handler.path, skip_host=True, skip_accept_encoding=True)
        for name, value in handler.headers.items():
            if name.lower() not in ("expect", "connection"):
                connection.putheader(name, value)
        connection.endheaders(body or None)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        return answer.status, answer.getheaders(), data

    def _is_there(self, path: str) -> bool:
        bucket, _, key = unquote(urlsplit(path).path).lstrip("/").partition("/")
        return "Contents" in self._client.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1)

    def _answer(self, handler: BaseHTTPRequestHandler, status: int, code: str) -> None:
        self._send(handler, status, [("Content-Type", "application/xml")], _ERROR.format(code=code).encode())

    def _send(
        self,
        handler: BaseHTTPRequestHandler,
        status: int,
        headers: list[tuple[str, str]],
        data: bytes,
        *,
        cut: bool = False,
    ) -> None:
        handler.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                handler.send_header(name, value)
        length = next((value for name, value in headers if name.lower() == "content-length"), str(len(data)))
        handler.send_header("Content-Length", length if handler.command == "HEAD" else str(len(data)))
        handler.end_headers()
        if handler.command == "HEAD":
            return
        handler.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            _cut(handler)


def _flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def _cut(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True
    with suppress(OSError):
        handler.connection.shutdown(socket.SHUT_RDWR)
