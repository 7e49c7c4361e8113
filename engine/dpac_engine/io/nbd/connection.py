"""A client's connection: bytes in and out, the handshake, the upgrade to TLS, the session, and the end."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from dpac_engine.io.nbd.export import Exports
from dpac_engine.io.nbd.negotiation import Close, Enter, Negotiation, StartTls, TlsMode
from dpac_engine.io.nbd.protocol import ProtocolViolation
from dpac_engine.io.nbd.readers import ReaderPools
from dpac_engine.io.nbd.receiving import ReceiveBuffer
from dpac_engine.io.nbd.session import Data, Session

log = logging.getLogger(__name__)

OUTPUT_HIGH_BYTES = 4 * 2**20
OUTPUT_LOW_BYTES = 2**20
CLOSE_SECONDS_MAX = 5.0
"""How long a client may take to accept its last answers before the connection is cut."""


@dataclass(frozen=True)
class Terms:
    """What holds for every client of one listening socket."""

    exports: Exports
    readers: ReaderPools
    durable_acks: bool
    tls_mode: TlsMode
    tls: ssl.SSLContext | None
    handshake_seconds_max: float


class NbdConnection(asyncio.BufferedProtocol):
    """One client. `gone` is called once, with the connection, when it is over."""

    def __init__(self, terms: Terms, gone: Callable[[NbdConnection], None]) -> None:
        self._terms = terms
        self._gone = gone
        self._loop = asyncio.get_running_loop()
        self._buffer = ReceiveBuffer()
        self._negotiation = Negotiation(terms.exports, terms.tls_mode)
        self._transport: asyncio.Transport | None = None
        self._upgrade: asyncio.Task[None] | None = None
        self._handshake_timer: asyncio.TimerHandle | None = None
        self._cut_timer: asyncio.TimerHandle | None = None
        self._entered: Enter | None = None
        self._session: Session | None = None
        self._reading = True
        self._output_paused = False
        self._secured = False
        self._over = False
        self._close = self.close  # one object, so that an export can tell by it who left

    @property
    def serving(self) -> bool:
        """Whether the client has opened an export."""
        return self._session is not None

    # What the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=OUTPUT_HIGH_BYTES, low=OUTPUT_LOW_BYTES)
        sock = self._transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._handshake_timer = self._loop.call_later(self._terms.handshake_seconds_max, self._handshake_expired)
        self._transport.write(self._negotiation.greeting)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        return self._buffer.writable()

    def buffer_updated(self, nbytes: int) -> None:
        buffer = self._buffer
        buffer.received(nbytes)
        if self._session is None:
            self._negotiate()
        elif len(buffer) >= buffer.wanted:
            self._continue()

    def eof_received(self) -> bool:
        if self._session is None or self._secured:
            return False  # TLS cannot be half closed
        self._session.leaving = True
        self._continue()
        return not self._over

    def pause_writing(self) -> None:
        self._output_paused = True
        if self._session is not None:
            self._session.output_paused = True
        else:
            self._read_on(False)

    def resume_writing(self) -> None:
        self._output_paused = False
        if self._session is not None:
            self._session.output_paused = False
            self._continue()
        elif not self._over and self._upgrade is None:
            self._read_on(True)
            self._negotiate()

    def connection_lost(self, exc: BaseException | None) -> None:  # noqa: ARG002
        if self._over:
            return
        self._over = True
        if self._handshake_timer is not None:
            self._handshake_timer.cancel()
        if self._cut_timer is not None:
            self._cut_timer.cancel()
        if self._session is not None and self._entered is not None:
            self._session.close()
            self._terms.readers.release(self._entered.export)
            self._entered.export.closed(self._close)
        self._gone(self)

    # What the server and exports call

    def close(self) -> None:
        """Drop the client: what is answered already is still sent if it takes it in time, nothing else is."""
        if self._session is not None:
            self._session.close()
        if self._upgrade is not None:
            self._upgrade.cancel()
        elif self._transport is not None and not self._over:
            self._transport.close()
            if self._cut_timer is None:
                self._cut_timer = self._loop.call_later(CLOSE_SECONDS_MAX, self.abort)

    def abort(self) -> None:
        """Drop the client now."""
        if self._upgrade is not None:
            self._upgrade.cancel()
        elif self._transport is not None:
            self._transport.abort()

    def stop(self) -> None:
        """The server goes: answer what is under way, refuse the rest, then close."""
        self._negotiation.stopping = True
        if self._session is not None:
            self._session.stopping = True
            self._continue()

    # Handshake

    def _handshake_expired(self) -> None:
        log.info("dropped a client that did not finish its handshake in time")
        self.abort()

    def _negotiate(self) -> None:
        buffer = self._buffer
        while self._session is None and not self._output_paused:
            step = self._negotiation.receive(buffer.view[buffer.start : buffer.end])
            buffer.consume(buffer.start + step.consumed)
            if step.reply:
                self._send([step.reply])
            match step.outcome:
                case Enter() as enter:
                    self._enter(enter)
                case StartTls():
                    self._start_tls()
                    return
                case Close(reason):
                    log.debug("handshake ended: %s", reason)
                    self.close()
                    return
            if not step.consumed:
                return

    def _enter(self, enter: Enter) -> None:
        if self._handshake_timer is not None:
            self._handshake_timer.cancel()
        self._entered = enter
        self._session = Session(
            enter,
            self._buffer,
            self._terms.readers.lease(enter.export),
            durable_acks=self._terms.durable_acks,
            send=self._send,
            wake=self._continue,
        )
        self._session.output_paused = self._output_paused
        enter.export.opened(self._close)
        self._continue()

    def _start_tls(self) -> None:
        assert self._transport is not None
        self._transport.pause_reading()
        if len(self._buffer):  # somebody put plain bytes before the first encrypted one
            log.warning("dropped a client that sent plain bytes after asking for TLS")
            self.abort()
            return
        self._upgrade = self._loop.create_task(self._start_tls_on(self._transport))

    async def _start_tls_on(self, transport: asyncio.Transport) -> None:
        assert self._terms.tls is not None
        try:
            secured = await self._loop.start_tls(
                transport,
                self,
                self._terms.tls,
                server_side=True,
                ssl_handshake_timeout=self._terms.handshake_seconds_max,
            )
        except (OSError, asyncio.CancelledError) as error:  # ssl.SSLError is an OSError
            self._upgrade = None
            log.info("TLS could not be started with a client: %r", error)
            transport.abort()
            self.connection_lost(None)
            return
        self._upgrade = None
        if secured is None or self._over:
            transport.abort()
            return
        self._transport = secured
        self._secured = self._reading = True
        self._output_paused = False
        self._negotiation.secured()
        secured.set_write_buffer_limits(high=OUTPUT_HIGH_BYTES, low=OUTPUT_LOW_BYTES)

    # Transmission

    def _continue(self) -> None:
        """Serve on, then read on or stop reading, or end."""
        session = self._session
        if session is None or self._over:
            return
        try:
            session.pump()
        except ProtocolViolation as violation:
            log.warning("dropped a client: %s", violation)
            self.abort()
            return
        if session.finished:
            self.close()
        else:
            self._read_on(not (session.waits or session.leaving))

    def _read_on(self, reading: bool) -> None:
        """Take more of the client's bytes, or leave them where they are."""
        if reading is not self._reading and self._transport is not None:
            self._reading = reading
            if reading:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def _send(self, output: list[Data]) -> None:
        assert self._transport is not None
        if self._over or self._transport.is_closing():
            return
        if len(output) == 1:
            self._transport.write(output[0])
        else:
            self._transport.writelines(output)
