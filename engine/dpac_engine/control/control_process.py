"""The control process: REST and whatever the application behind it runs."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable
from typing import Any

import uvloop

from dpac_engine.control.child_process import ChildArguments, begin, say_ready
from dpac_engine.control.http_server import HttpServer
from dpac_engine.control.logs import log_to


def run_control(arguments: ChildArguments, build: Callable[[ChildArguments], Callable[..., Any]]) -> int:
    """Serve the ASGI application that `build` makes, inside the event loop, until SIGTERM; returns the exit status."""
    begin(arguments)
    log_to(arguments.name, arguments.log_folder)
    uvloop.run(_serve(arguments, build))
    return 0


async def _serve(arguments: ChildArguments, build: Callable[[ChildArguments], Callable[..., Any]]) -> None:
    told_to_stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told_to_stop.set)
    tls = (arguments.tls_cert, arguments.tls_key) if arguments.tls_cert and arguments.tls_key else None
    rest = HttpServer(build(arguments), socket.socket(fileno=arguments.rest_fd), tls)
    await rest.start()
    say_ready(arguments)
    await rest.until(told_to_stop)
    await rest.stop()
