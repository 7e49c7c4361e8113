"""The sockets of a site: bound by the supervisor before anything is started, described in `run/endpoint.json`."""

from __future__ import annotations

import json
import socket
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dpac_api.errors import Conflict
from dpac_engine.control.serve_options import REST_PORT, ServeOptions
from dpac_engine.control.site import Site
from dpac_engine.control.sockets import Address, bound_address, listen_tcp, listen_unix
from dpac_engine.io.files import replace_file


@dataclass(frozen=True)
class WorkerSockets:
    """Where one worker is reached."""

    nbd: socket.socket
    nbd_tcp: socket.socket | None
    rpc: socket.socket


@dataclass
class Listening:
    """All of them; a context that closes them."""

    rest: socket.socket
    workers: list[WorkerSockets]
    _stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


def listen(site: Site, options: ServeOptions) -> Listening:
    """Bind every socket and write `endpoint.json`. Conflict if an address that was asked for is taken."""
    with ExitStack() as stack:
        workers = [_worker(site, options, index, stack) for index in range(options.workers or 1)]
        rest = stack.enter_context(_rest(site, options))
        _describe(site, options, rest, workers)
        return Listening(rest, workers, stack.pop_all())


def _worker(site: Site, options: ServeOptions, index: int, stack: ExitStack) -> WorkerSockets:
    nbd = stack.enter_context(listen_unix(site.nbd_socket(index)))
    nbd_tcp = None
    if options.nbd_tcp is not None:
        first = Address.parse(options.nbd_tcp, "--nbd-tcp")
        address = Address(first.host, first.port + index if first.port else 0)
        nbd_tcp = stack.enter_context(listen_tcp(address, "--nbd-tcp"))
    return WorkerSockets(nbd, nbd_tcp, stack.enter_context(listen_unix(site.rpc_socket(index))))


def _rest(site: Site, options: ServeOptions) -> socket.socket:
    """What was asked for; else where REST listened last time, or the usual port, or any."""
    if options.listen is not None:
        return listen_tcp(Address.parse(options.listen, "--listen"), "--listen")
    last = _last_port(site.endpoint_file)
    for port in [last, REST_PORT] if last else [REST_PORT]:
        try:
            return listen_tcp(Address("127.0.0.1", port), "--listen")
        except Conflict:
            continue
    return listen_tcp(Address("127.0.0.1", 0), "--listen")


def _last_port(endpoint_file: Path) -> int | None:
    try:
        return int(json.loads(endpoint_file.read_bytes())["port"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # only a preference


def _describe(site: Site, options: ServeOptions, rest: socket.socket, workers: list[WorkerSockets]) -> None:
    address = bound_address(rest)
    scheme = "https" if options.tls_cert else "http"
    # "Every address" is none that a client can use.
    named = Address("::1" if ":" in address.host else "127.0.0.1", address.port) if address.everywhere else address
    description: dict[str, Any] = {
        "url": f"{scheme}://{named}",
        "listen": str(address),
        "port": address.port,
        "site_uid": site.site_uid,
        "name": site.name,
        "token_file": str(site.admin_token_file),
        "nbd": [
            {
                "worker": index,
                "unix": str(site.nbd_socket(index)),
                "tcp": None if sockets.nbd_tcp is None else str(bound_address(sockets.nbd_tcp)),
            }
            for index, sockets in enumerate(workers)
        ],
    }
    replace_file(site.endpoint_file, (json.dumps(description, indent=1) + "\n").encode())
