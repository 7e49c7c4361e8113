"""Where a connection's bytes arrive: one buffer in which every request, payload included, is contiguous."""

from __future__ import annotations

from dpac_engine.io.nbd.protocol import REQUEST_BYTES

BUFFER_BYTES = 256 * 1024
BUFFER_RETAINED_BYTES = 8 * 2**20
"""A buffer grown beyond this for one request is given back after it."""
LARGE_REQUEST_BYTES = 64 * 1024


class ReceiveBuffer:
    """Bytes `[start, end)` of `view` were received and not consumed yet.

    Small requests are read many at a time; what is left of one that is incomplete is moved to the front. A large
    request is read up to its own end and not further: the buffer is empty after it, so its payload is never moved
    and the same memory, warm in the cache, takes the next one.
    """

    __slots__ = ("end", "start", "view", "wanted")

    def __init__(self) -> None:
        self.view = memoryview(bytearray(BUFFER_BYTES))
        self.start = 0
        self.end = 0
        self.wanted = REQUEST_BYTES

    def __len__(self) -> int:
        return self.end - self.start

    def writable(self) -> memoryview:
        """Where the next bytes go; never empty."""
        pending = self.end - self.start
        capacity = len(self.view)
        wanted = self.wanted
        if not pending and not self.start and capacity <= BUFFER_RETAINED_BYTES and wanted <= LARGE_REQUEST_BYTES:
            return self.view
        needed = max(wanted, pending + 1)
        if needed > capacity or (not pending and needed < capacity > BUFFER_RETAINED_BYTES):
            self._move(memoryview(bytearray(max(needed, BUFFER_BYTES))))
        elif self.start and (pending <= LARGE_REQUEST_BYTES or self.start + needed > capacity):
            self._move(self.view)
        if wanted > LARGE_REQUEST_BYTES and wanted > pending:
            return self.view[self.end : self.start + wanted]
        return self.view[self.end :]

    def _move(self, to: memoryview) -> None:
        pending = self.end - self.start
        to[:pending] = self.view[self.start : self.end]
        self.view = to
        self.start, self.end = 0, pending

    def received(self, count: int) -> None:
        """The transport has put `count` bytes where `writable` said."""
        self.end += count

    def consume(self, start: int, wanted: int = REQUEST_BYTES) -> None:
        """Everything before `start` is done with; the request that begins there has `wanted` bytes, as far as known."""
        self.start = start
        self.wanted = wanted
        if start == self.end:
            self.start = self.end = 0
