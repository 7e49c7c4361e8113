"""An export in memory, the plainest that keeps the contract of `export.py`, with switches to make it misbehave."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from dpac_engine.io.nbd.export import Change, ChangeKind, Export, Extent


class MemoryExport:
    """Bytes that reads see at once and that become durable when flushed.

    `durable` is what a power cut would leave. With `hold_flushes` flushes wait in `held` for the test; with
    `slow_reads` every read goes through a thread.
    """

    def __init__(self, size_bytes: int = 2**20, *, read_only: bool = False) -> None:
        self.size_bytes = size_bytes
        self.durable_acks = False
        self.read_only = read_only
        self.data = bytearray(size_bytes)
        self.durable = bytes(size_bytes)
        self.holes = bytearray(b"\1" * (size_bytes // 512))
        self.batches: list[list[tuple[ChangeKind, int, int]]] = []
        self.hold_flushes = False
        self.held: list[Callable[[OSError | None], None]] = []
        self.slow_reads = False
        self.submit_error: Exception | None = None
        self.flush_error: OSError | None = None
        self.read_error: Exception | None = None
        self.read_gate: Callable[[], None] = lambda: None
        self.clients: list[Callable[[], None]] = []
        self._congested = False
        self._relief: list[Callable[[], None]] = []

    def submit(self, changes: Sequence[Change]) -> None:
        if self.submit_error is not None:
            raise self.submit_error
        self.batches.append([(change.kind, change.offset, change.length) for change in changes])
        for kind, offset, length, data in changes:
            assert (data is not None) == (kind is ChangeKind.WRITE)
            self.data[offset : offset + length] = data if data is not None else bytes(length)
            hole = b"\1" if kind is ChangeKind.TRIM else b"\0"
            self.holes[offset // 512 : (offset + length) // 512] = hole * (length // 512)

    def flush(self, done: Callable[[OSError | None], None]) -> None:
        if self.hold_flushes:
            self.held.append(done)
            return
        asyncio.get_running_loop().call_soon(self._flushed, done)

    def _flushed(self, done: Callable[[OSError | None], None]) -> None:
        if self.flush_error is None:
            self.durable = bytes(self.data)
        done(self.flush_error)

    def release_flushes(self) -> None:
        """Let the held flushes end, as one group commit would."""
        held, self.held = self.held, []
        for done in held:
            self._flushed(done)

    def read_now(self, offset: int, length: int) -> bytes | memoryview | Sequence[bytes | memoryview] | None:
        if self.slow_reads:
            return None
        return self.read_blocking(offset, length)

    def read_blocking(self, offset: int, length: int) -> bytes:
        self.read_gate()
        if self.read_error is not None:
            raise self.read_error
        return bytes(self.data[offset : offset + length])

    def extents_blocking(self, offset: int, length: int) -> list[Extent]:
        self.read_gate()
        if self.read_error is not None:
            raise self.read_error
        sectors = self.holes[offset // 512 : (offset + length) // 512]
        return [Extent(512, bool(hole), bool(hole)) for hole in sectors]

    @property
    def congested(self) -> bool:
        return self._congested

    def congest(self) -> None:
        """Be congested from now on."""
        self._congested = True

    def relieve(self) -> None:
        """Be congested no more."""
        self._congested = False
        relief, self._relief = self._relief, []
        for callback in relief:
            callback()

    def when_relieved(self, callback: Callable[[], None]) -> None:
        self._relief.append(callback)

    def opened(self, close: Callable[[], None]) -> None:
        self.clients.append(close)

    def closed(self, close: Callable[[], None]) -> None:
        self.clients.remove(close)


class MemoryExports:
    """Exports by name."""

    def __init__(self, **exports: Export) -> None:
        self.by_name = dict(exports)

    def names(self) -> Sequence[str]:
        return sorted(self.by_name)

    def find(self, name: str) -> Export | None:
        return self.by_name.get(name)
