"""One client's transmission phase: rounds of requests to the export, answers back, and when to wait.

A session never blocks and never buffers without bound. It waits, which makes the connection stop reading, while the
export is congested, while the client does not take its answers, and while too much of what it asked for is under way.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from dpac_engine.io.nbd import protocol as nbd
from dpac_engine.io.nbd import replies
from dpac_engine.io.nbd.export import Export, Extent
from dpac_engine.io.nbd.negotiation import Enter, exported_bytes
from dpac_engine.io.nbd.readers import THREADS_MAX, Readers
from dpac_engine.io.nbd.receiving import ReceiveBuffer
from dpac_engine.io.nbd.requests import Query, RequestParser, Round

log = logging.getLogger(__name__)

Data = bytes | bytearray | memoryview

UNDER_WAY_MAX = 4096
"""Requests of one client that may wait for a flush or a thread before no more are read."""
READING_BYTES_MAX = 64 * 2**20
"""Bytes one client may have under way in reader threads; a single read may exceed it."""
OUTPUT_BYTES_MAX = 2**20
"""Answers gathered before they are handed to the transport."""


class Session:
    """Serves one client of one export.

    `send` takes answers for the wire; `wake` is called when something the session waited for has happened:
    the connection then calls `pump` and asks `waits` and `finished` again.
    """

    def __init__(
        self,
        enter: Enter,
        buffer: ReceiveBuffer,
        readers: Readers,
        *,
        durable_acks: bool,
        send: Callable[[list[Data]], None],
        wake: Callable[[], None],
    ) -> None:
        self.output_paused = False
        self.stopping = False
        """The server goes: what is under way is answered, everything new is refused with ESHUTDOWN."""
        self.leaving = False
        """The client goes: what it asked for before is answered, nothing more is read."""
        self._export = enter.export
        self._durable_acks = durable_acks
        self._structured = enter.structured
        self._buffer = buffer
        self._readers = readers
        self._parser = RequestParser(
            structured=enter.structured, block_status=enter.block_status, durable_acks=durable_acks
        )
        self._send = send
        self._wake = wake
        self._queries: deque[Query] = deque()
        self._output: list[Data] = []
        self._output_bytes = 0
        self._under_way = 0
        self._reading_bytes = 0
        self._pumping = False
        self._awaits_relief = False
        self._closed = False

    @property
    def finished(self) -> bool:
        """Nothing is left to answer, and nothing more will be asked."""
        return (self.leaving or self.stopping) and not self._under_way and not self._queries

    @property
    def waits(self) -> bool:
        """Whether nothing more may be read from the client now; `wake` follows."""
        if self.output_paused or self._under_way >= UNDER_WAY_MAX or self._reading_bytes >= READING_BYTES_MAX:
            return True
        if self._awaits_relief:
            return not self.stopping
        if self._export.congested and not self.stopping:
            self._awaits_relief = True
            self._export.when_relieved(self._relieved)
            return True
        return False

    def close(self) -> None:
        """The connection is gone: answers that come from now on are dropped."""
        self._closed = True
        self._queries.clear()

    def pump(self) -> None:
        """Serve what lies in the buffer until it is used up or the session waits. Raises ProtocolViolation."""
        if self._pumping or self._closed:
            return
        self._pumping = True
        try:
            while not self.waits:
                if self._queries:
                    self._serve_queries()
                elif self.leaving or not self._serve_round():
                    break
            self._hand_over()
        finally:
            self._pumping = False

    def _serve_round(self) -> bool:
        """Serve every complete request of the buffer; whether there was one."""
        buffer, export = self._buffer, self._export
        if len(buffer) < buffer.wanted:
            return False
        start = buffer.start
        self._parser.durable_acks = self._durable_acks or export.durable_acks
        found = self._parser.parse(buffer.view, start, buffer.end, exported_bytes(export), export.read_only)
        if found.next == start:
            buffer.consume(start, found.wanted)
            return False
        if self.stopping:
            self._refuse_all(found)
        else:
            if found.changes:
                self._submit(found)
            if found.durable or found.flushes:
                self._flush(found.durable + found.flushes)
            self._queries.extend(found.queries)
        for cookie, command, error, message in found.refusals:
            log.debug("refused command %d: %s", command, message)
            self._fail(cookie, error, message)
        self.leaving = self.leaving or found.disconnect
        buffer.consume(found.next, found.wanted)
        return True

    def _refuse_all(self, found: Round) -> None:
        for cookie in (*found.acked, *found.durable, *found.flushes, *(query.cookie for query in found.queries)):
            self._fail(cookie, nbd.ESHUTDOWN, "The server is being stopped; connect again in a moment.")

    def _submit(self, found: Round) -> None:
        try:
            self._export.submit(found.changes)
        except Exception as error:
            self._fail_all(found.acked + found.durable, error)
            found.durable = []
            return
        if found.acked:
            self._put(replies.done(found.acked))

    def _flush(self, cookies: list[bytes]) -> None:
        self._under_way += len(cookies)
        try:
            self._export.flush(partial(self._flushed, cookies))
        except Exception as error:
            self._under_way -= len(cookies)
            self._fail_all(cookies, error)

    def _flushed(self, cookies: list[bytes], error: OSError | None) -> None:
        self._under_way -= len(cookies)
        if self._closed:
            return
        if error is None:
            self._put(replies.done(cookies))
        else:
            self._fail_all(cookies, error)
        self._progressed()

    def _serve_queries(self) -> None:
        slow: list[Query] = []
        queries = self._queries
        while queries and self._output_bytes < OUTPUT_BYTES_MAX and self._reading_bytes < READING_BYTES_MAX:
            query = queries.popleft()
            if query.command == nbd.CMD_READ and self._read_now(query):
                continue
            slow.append(query)
            self._under_way += 1
            self._reading_bytes += query.length if query.command == nbd.CMD_READ else 0
        shares = min(len(slow), THREADS_MAX)
        for share in range(shares):
            group = slow[share::shares]
            self._readers.run(partial(_ask, self._export, group), partial(self._answered, group))
        self._hand_over()

    def _read_now(self, query: Query) -> bool:
        try:
            data = self._export.read_now(query.offset, query.length)
        except Exception as error:
            self._fail_all([query.cookie], error)
            return True
        if data is None:
            return False
        self._put_data(query, data)
        return True

    def _answered(self, group: list[Query], answers: list[bytes | list[Extent] | Exception]) -> None:
        for query, answer in zip(group, answers, strict=True):
            self._under_way -= 1
            self._reading_bytes -= query.length if query.command == nbd.CMD_READ else 0
            if self._closed:
                continue
            if isinstance(answer, Exception):
                self._fail_all([query.cookie], answer)
            elif isinstance(answer, list):
                self._put_status(query, answer)
            else:
                self._put_data(query, answer)
        if not self._closed:
            self._progressed()

    def _relieved(self) -> None:
        self._awaits_relief = False
        if not self._closed:
            self._progressed()

    def _progressed(self) -> None:
        """Something was answered outside a pump. Inside one (an export that calls back at once) it goes on anyway."""
        if not self._pumping:
            self._hand_over()
            self._wake()

    def _put_data(self, query: Query, data: Data | Sequence[Data]) -> None:
        pieces = [data] if isinstance(data, Data) else data
        length = sum(piece.nbytes if isinstance(piece, memoryview) else len(piece) for piece in pieces)
        if length != query.length:
            log.error("an export answered a read of %d bytes with %d", query.length, length)
            self._fail(query.cookie, nbd.EIO, "The export answered with another length than asked for.")
            return
        self._put(replies.data_header(query.cookie, query.offset, length, structured=self._structured))
        self._output.extend(pieces)
        self._output_bytes += length

    def _put_status(self, query: Query, extents: list[Extent]) -> None:
        one = bool(query.flags & nbd.CMD_FLAG_REQ_ONE)
        try:
            self._put(replies.block_status(query.cookie, query.length, extents, one=one))
        except ValueError as error:
            self._fail_all([query.cookie], error)

    def _fail_all(self, cookies: Sequence[bytes], error: Exception) -> None:
        if isinstance(error, OSError):
            message = error.strerror or str(error)
        else:
            log.error("an export failed unexpectedly", exc_info=error)
            message = "The export failed unexpectedly; the server's log says more."
        for cookie in cookies:
            self._fail(cookie, nbd.error_number(error), message)

    def _fail(self, cookie: bytes, error: int, message: str) -> None:
        self._put(replies.failed(cookie, error, message, structured=self._structured))

    def _put(self, reply: bytes) -> None:
        self._output.append(reply)
        self._output_bytes += len(reply)

    def _hand_over(self) -> None:
        if self._output:
            output, self._output = self._output, []
            self._output_bytes = 0
            self._send(output)


def _ask(export: Export, group: list[Query]) -> list[bytes | list[Extent] | Exception]:
    """What the export says to each query; runs in a thread."""
    answers: list[bytes | list[Extent] | Exception] = []
    for query in group:
        try:
            if query.command == nbd.CMD_READ:
                answers.append(export.read_blocking(query.offset, query.length))
            else:
                answers.append(export.extents_blocking(query.offset, query.length))
        except Exception as error:
            answers.append(error)
    return answers
