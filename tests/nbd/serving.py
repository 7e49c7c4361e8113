"""A real server on real sockets, in a thread of the test."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import uvloop

from dpac_engine.io.nbd.export import Exports
from dpac_engine.io.nbd.server import Listener, NbdServer

Answer = TypeVar("Answer")


def until(condition: Callable[[], object], what: str, seconds_max: float = 60.0) -> None:
    """Wait for a condition; fails, saying `what` did not come, after a deadline."""
    deadline = time.monotonic() + seconds_max
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        pause.wait(0.002)


class Serving:
    """`with Serving(exports, folder) as serving:` serves on `serving.path` and on `serving.address` (TCP)."""

    def __init__(
        self,
        exports: Exports,
        folder: Path,
        *,
        tls: ssl.SSLContext | None = None,
        durable_tcp: bool = True,
        **options: Any,
    ) -> None:
        self.path = str(folder / "nbd.sock")
        self._unix = socket.socket(socket.AF_UNIX)
        self._unix.bind(self.path)
        self._tcp = socket.socket(socket.AF_INET)
        self._tcp.bind(("127.0.0.1", 0))
        for sock in (self._unix, self._tcp):
            sock.listen()
        self.address: tuple[str, int] = self._tcp.getsockname()
        self._exports = exports
        self._listeners = [
            Listener(self._unix, durable_acks=False),
            Listener(self._tcp, durable_acks=durable_tcp, tls=tls, plaintext=tls is None),
        ]
        self._options = options
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="nbd-server")
        self._started = threading.Event()
        self.errors: list[dict[str, Any]] = []

    @property
    def uri(self) -> str:
        """Of the unix socket, without an export's name."""
        return f"nbd+unix:///?socket={self.path}"

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.set_exception_handler(lambda _loop, context: self.errors.append(context))
        self.server = NbdServer(self._exports, self._listeners, **self._options)
        self._loop.run_until_complete(self.server.start())
        self._loop.call_soon(self._started.set)
        self._loop.run_forever()
        self._loop.close()

    def __enter__(self) -> Serving:
        self._thread.start()
        assert self._started.wait(20)
        return self

    def call(self, function: Callable[[], Answer]) -> Answer:
        """Run a function on the server's event loop."""

        async def called() -> Answer:
            return function()

        return asyncio.run_coroutine_threadsafe(called(), self._loop).result(20)

    def stop_soon(self, seconds_max: float = 10.0) -> Any:
        """Begin to stop the server; `.result()` waits until it has."""
        return asyncio.run_coroutine_threadsafe(self.server.stop(seconds_max), self._loop)

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        try:
            self.stop_soon(seconds_max=2.0).result(20)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(20)
            self._unix.close()
            self._tcp.close()
        assert kind is not None or not self.errors, self.errors
