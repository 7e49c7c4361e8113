"""uvicorn on a socket that the supervisor listens with, in an event loop and under signals that are ours."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

STOP_SECONDS_MAX = 5.0
"""How long requests under way may take to end."""


class HttpServer:
    """An ASGI application at work."""

    def __init__(self, app: Callable[..., Any], sock: socket.socket, tls: tuple[str, str] | None = None) -> None:
        """`tls`: certificate chain and private key, PEM files."""
        cert, key = tls or (None, None)
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="on",
            ssl_certfile=cert,
            ssl_keyfile=key,
            timeout_graceful_shutdown=int(STOP_SECONDS_MAX),
        )
        self._server = _Server(config)
        self._sock = sock
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Returns once it answers. RuntimeError if the application does not start; its reason is in the log."""
        self._task = asyncio.create_task(self._server.serve(sockets=[self._sock]), name="http")
        listening = asyncio.create_task(self._server.listening.wait())
        await asyncio.wait([self._task, listening], return_when=asyncio.FIRST_COMPLETED)
        if not self._server.listening.is_set():
            listening.cancel()
            await self._task
            raise RuntimeError("the application did not start")

    async def until(self, told_to_stop: asyncio.Event) -> None:
        """Returns when told to stop. RuntimeError if the server ends by itself meanwhile: the process has no use then."""
        assert self._task is not None, "it was started"
        told = asyncio.create_task(told_to_stop.wait())
        await asyncio.wait([self._task, told], return_when=asyncio.FIRST_COMPLETED)
        if not told_to_stop.is_set():
            told.cancel()
            await self._task
            raise RuntimeError("the HTTP server ended by itself")

    async def stop(self) -> None:
        """Answer what was asked, then end."""
        if self._task is not None:
            self._server.should_exit = True
            await self._task


class _Server(uvicorn.Server):
    """uvicorn's, without its signal handlers, and telling when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self.listening.set()
