"""Everything that `adapterline listen` listens to, at once, until it is told to stop."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping

from adapterline.errors import MachineError, UsageError
from adapterline.events.queue import consume
from adapterline.events.receiver import Told, Way, make_app, ways_of
from adapterline.events.translators import TRANSLATORS
from adapterline.settings import Settings

log = logging.getLogger("adapterline.listen")


def listen(told: Told, host: str, port: int, queues: tuple[str, ...], queue_sender: str | None) -> None:
    """Serves HTTP where there is a secret, and consumes the queues; SIGINT or SIGTERM end both.

    UsageError if there is neither; MachineError if the port is taken, or a queue is lost for good.
    """
    settings = Settings()
    secret = settings.listen_secret.get_secret_value() if settings.listen_secret else None
    over_http = not queues or secret is not None or bool(settings.senders)
    ways = ways_of(settings.senders, secret, os.environ) if over_http else {}
    if queue_sender and queue_sender not in TRANSLATORS and queue_sender not in ways:
        raise UsageError(
            f"There is no sender {queue_sender!r}.",
            expected=f"one of {', '.join((*TRANSLATORS, *settings.senders))}",
            remedy="Correct --sqs-sender, or add it to senders in adapterline.toml.",
        )
    stop, failed = threading.Event(), list[Exception]()

    def run(url: str) -> None:
        try:
            consume(url, queue_sender, ways, told, stop)
        except Exception as error:  # whatever it is: a listener that is deaf to its queue must not look alive
            failed.append(error)
            stop.set()

    threads = [threading.Thread(target=run, args=[url], daemon=True) for url in queues]
    for thread in threads:
        thread.start()
    try:
        _serve(ways, told, host, port, stop) if ways else _wait(stop)
    finally:
        stop.set()
    if failed:
        raise failed[0]


def _serve(ways: Mapping[str, Way], told: Told, host: str, port: int, stop: threading.Event) -> None:
    """Serves until a signal, which uvicorn takes, or until `stop`, which ends it too."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(make_app(ways, told), host, port, log_config=None, server_header=False))

    def end() -> None:
        stop.wait()
        server.should_exit = True

    threading.Thread(target=end, daemon=True).start()
    log.info("listening at http://%s:%d/events/{%s}", host, port, ",".join(sorted(ways)))
    try:
        server.run()
    except SystemExit as error:  # uvicorn's way to say that it could not start; what it said is in its log
        raise MachineError(
            f"{host}:{port} cannot be listened at.", expected="a free port", remedy="Choose another --port."
        ) from error


def _wait(stop: threading.Event) -> None:
    """Until `stop`, or a signal."""
    import signal

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    log.info("listening to the queues")
    stop.wait()
