"""The control process: REST and whatever the application behind it runs."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import uvloop

from dpac_engine.control.child_process import ChildArguments, begin, say_ready
from dpac_engine.control.http_server import HttpServer
from dpac_engine.control.logs import log_to

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ControlParts:
    """What wiring builds for control, inside its event loop."""

    app: Callable[..., Any]
    """The ASGI application."""
    outdated: Callable[[], Awaitable[None]]
    """Returns once the process must be started again to go on well."""


Build = Callable[[ChildArguments], ControlParts]


def run_control(arguments: ChildArguments, build: Build) -> int:
    """Serve what `build` makes until SIGTERM, or until it is outdated; returns the exit status."""
    begin(arguments)
    log_to(arguments.name, arguments.log_folder)
    uvloop.run(_serve(arguments, build))
    return 0


async def _serve(arguments: ChildArguments, build: Build) -> None:
    told_to_stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told_to_stop.set)
    tls = (arguments.tls_cert, arguments.tls_key) if arguments.tls_cert and arguments.tls_key else None
    parts = build(arguments)
    rest = HttpServer(parts.app, socket.socket(fileno=arguments.rest_fd), tls)
    await rest.start()
    say_ready(arguments)
    watch = asyncio.create_task(_end_when_outdated(parts, told_to_stop), name="outdated")
    await rest.until(told_to_stop)
    watch.cancel()
    await rest.stop()


async def _end_when_outdated(parts: ControlParts, end: asyncio.Event) -> None:
    await parts.outdated()
    _log.warning("the catalogue is not what it was when control opened it; control is started again")
    end.set()
