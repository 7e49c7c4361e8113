"""A worker process: the groups first, then the exports, then control's calls."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import uvloop

from dpac_engine.control.child_process import ChildArguments, begin, say_ready, stand_by
from dpac_engine.control.logs import log_to
from dpac_engine.control.worker import Worker
from dpac_engine.io.nbd.server import Listener, NbdServer

if TYPE_CHECKING:
    from dpac_engine.control.http_server import HttpServer

_log = logging.getLogger(__name__)
NBD_STOP_SECONDS_MAX = 3.0
"""How long clients may take to read their last answers; what they send after that is refused."""


@dataclass(frozen=True)
class WorkerParts:
    """What wiring builds for a worker, inside its event loop."""

    worker: Worker
    close: Callable[[], None]
    """Called last, when nothing runs any more."""


SWITCH_SECONDS = 0.0005
"""How long a sealing or write-behind thread may hold the interpreter while the event loop, after each of its system calls,
waits for it: the default of 5 ms is what a client's slowest writes would then take."""


def run_worker(
    arguments: ChildArguments, build: Callable[[ChildArguments], WorkerParts], load: Callable[[], None]
) -> int:
    """Serve until SIGTERM; returns the exit status. `load` imports what `build` will need."""
    begin(arguments)
    if arguments.orders_fd >= 0:
        load()
        _load_rpc()
        arguments = stand_by(arguments)
    began = time.monotonic()
    threading.excepthook = _end_with_thread
    log_to(arguments.name, arguments.log_folder)
    sys.setswitchinterval(SWITCH_SECONDS)
    uvloop.run(_serve(arguments, build, began))
    return 0


async def _serve(arguments: ChildArguments, build: Callable[[ChildArguments], WorkerParts], began: float) -> None:
    told_to_stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told_to_stop.set)
    parts = build(arguments)
    built = time.monotonic()
    await parts.worker.start()
    nbd = NbdServer(parts.worker, _listeners(arguments))
    await nbd.start()
    listening = time.monotonic()
    _log.info("exports are served after %.2f s of loading and %.2f s of recovery", built - began, listening - built)
    rpc = _load_rpc()(parts.worker, socket.socket(fileno=arguments.rpc_fd))
    await rpc.start()
    say_ready(arguments)
    await rpc.until(told_to_stop)
    await rpc.stop()
    await nbd.stop(NBD_STOP_SECONDS_MAX)
    await parts.worker.stop()
    parts.close()


def _load_rpc() -> Callable[[Worker, socket.socket], HttpServer]:
    """What answers control. Imported when the exports are served: their clients need not wait for it."""
    from dpac_engine.control.http_server import HttpServer
    from dpac_engine.control.worker_rpc import rpc_app

    return lambda worker, sock: HttpServer(rpc_app(worker), sock)


def _end_with_thread(died: threading.ExceptHookArgs) -> None:
    """A thread of the data path that died by an unforeseen error leaves a worker that only seems to work: flushes would
    never be answered. What was acknowledged lies in the page cache; the next worker takes it up."""
    name = died.thread.name if died.thread else "a thread"
    trace = (died.exc_type, died.exc_value or died.exc_type(), died.exc_traceback)
    _log.critical("%s died; the worker ends, to be started again", name, exc_info=trace)
    os._exit(70)


def _listeners(arguments: ChildArguments) -> list[Listener]:
    """TCP clients outlive this host, so what they are told is durable; clients on it do not."""
    listeners = [Listener(socket.socket(fileno=arguments.nbd_fd), durable_acks=False)]
    if arguments.nbd_tcp_fd >= 0:
        tls = _tls(arguments)
        plaintext = True if arguments.plaintext else None
        sock = socket.socket(fileno=arguments.nbd_tcp_fd)
        listeners.append(Listener(sock, durable_acks=True, tls=tls, plaintext=plaintext))
    return listeners


def _tls(arguments: ChildArguments) -> ssl.SSLContext | None:
    if arguments.tls_cert is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(arguments.tls_cert, arguments.tls_key)
    if arguments.tls_ca is not None:
        context.load_verify_locations(arguments.tls_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context
