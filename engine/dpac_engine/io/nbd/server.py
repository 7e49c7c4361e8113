"""The NBD server: exports on sockets that somebody else listens with."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from dpac_api.errors import Invalid
from dpac_engine.io.nbd.connection import NbdConnection, Terms
from dpac_engine.io.nbd.export import Exports
from dpac_engine.io.nbd.negotiation import TlsMode
from dpac_engine.io.nbd.readers import ReaderPools

HANDSHAKE_SECONDS_MAX = 30.0
STOP_SECONDS_MAX = 10.0
BACKLOG = 1024


@dataclass(frozen=True)
class Listener:
    """A socket that listens already, unix or TCP; the server closes its own descriptor of it and removes no path.

    `durable_acks`: acknowledge every change only when it is durable (for clients that outlive this host).
    `tls`: a server-side context; without one the socket is served in plain. `plaintext`: whether clients may do
    without TLS; by default on unix sockets and loopback addresses only.
    """

    sock: socket.socket
    durable_acks: bool
    tls: ssl.SSLContext | None = None
    plaintext: bool | None = None

    def tls_mode(self) -> TlsMode:
        """Raises Invalid where TLS is required and there is no context."""
        plaintext = _stays_on_this_host(self.sock) if self.plaintext is None else self.plaintext
        if self.tls is not None:
            return TlsMode.OPTIONAL if plaintext else TlsMode.REQUIRED
        if not plaintext:
            raise Invalid(
                f"The NBD address {self.sock.getsockname()!r} can be reached from other hosts and has no TLS. "
                "Give it a certificate, bind it to a loopback address, or allow plain text explicitly."
            )
        return TlsMode.OFF


def _stays_on_this_host(sock: socket.socket) -> bool:
    if sock.family == socket.AF_UNIX:
        return True
    address = ipaddress.ip_address(str(sock.getsockname()[0]).partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


class NbdServer:
    """Serves `exports` on `listeners`, in the running event loop (uvloop for its speed; asyncio's own works)."""

    def __init__(
        self,
        exports: Exports,
        listeners: Sequence[Listener],
        *,
        handshake_seconds_max: float = HANDSHAKE_SECONDS_MAX,
    ) -> None:
        """Raises Invalid for a listener that needs TLS and has none."""
        self._exports = exports
        self._listeners = [(listener, listener.tls_mode()) for listener in listeners]
        self._handshake_seconds_max = handshake_seconds_max
        self._servers: list[asyncio.AbstractServer] = []
        self._connections: set[NbdConnection] = set()
        self._drained = asyncio.Event()

    @property
    def clients(self) -> int:
        """Connections that have opened an export."""
        return sum(connection.serving for connection in self._connections)

    async def start(self) -> None:
        """Accept clients."""
        loop = asyncio.get_running_loop()
        readers = ReaderPools(loop)
        for listener, tls_mode in self._listeners:
            terms = Terms(
                exports=self._exports,
                readers=readers,
                durable_acks=listener.durable_acks,
                tls_mode=tls_mode,
                tls=listener.tls,
                handshake_seconds_max=self._handshake_seconds_max,
            )
            accept = partial(self._accept, terms)
            if listener.sock.family == socket.AF_UNIX:
                # The path belongs to whoever bound it; newer event loops would remove it.
                keep_path: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
                server = await loop.create_unix_server(accept, sock=listener.sock, backlog=BACKLOG, **keep_path)
            else:
                server = await loop.create_server(accept, sock=listener.sock, backlog=BACKLOG)
            self._servers.append(server)

    async def stop(self, seconds_max: float = STOP_SECONDS_MAX) -> None:
        """Accept no more clients, answer what is under way, refuse what comes, and close. What a client or an export
        does not let finish within `seconds_max` is cut."""
        for server in self._servers:
            server.close()
        for connection in list(self._connections):
            connection.stop()
        try:
            async with asyncio.timeout(seconds_max):
                while any(connection.serving for connection in self._connections):
                    await self._one_gone()
        except TimeoutError:
            pass
        for connection in list(self._connections):
            connection.abort()
        while self._connections:
            await self._one_gone()

    async def _one_gone(self) -> None:
        self._drained.clear()
        await self._drained.wait()

    def _accept(self, terms: Terms) -> NbdConnection:
        connection = NbdConnection(terms, self._forget)
        self._connections.add(connection)
        return connection

    def _forget(self, connection: NbdConnection) -> None:
        self._connections.discard(connection)
        self._drained.set()
