"""Reading a file's content into chunks, and knowing whether it held still meanwhile."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Container, Generator
from typing import NamedTuple

from dpac_engine.core.entries import CHUNK_BYTES, RUNS_MAX, digest_of

TIMESTAMP_TICK_NS = 20_000_000
"""File systems stamp changes with a clock this coarse: two changes within one tick may carry one time."""
_CHUNKS_PER_LOOK = 16
PIECE_BYTES = 4 * 2**20
"""About so much content is handed over at once."""

Chunk = tuple[bytes, bytes]
"""Hash and content."""


class Moved(Exception):
    """The file changed while it was read."""


class Abandoned(Exception):
    """The member stops: what was read so far is dropped."""


class Content(NamedTuple):
    """What an entry says of a file's content."""

    chunks: bytes
    runs: tuple[tuple[int, int], ...] | None
    sparse: bool


class ChunkSink:
    """Collects the chunks that are new: neither `known` to the journal nor met before in this capture."""

    def __init__(self, known: Container[bytes], stopping: threading.Event | None = None) -> None:
        self._known = known
        self._stopping = stopping
        self._met: set[bytes] = set()
        self._waiting: list[Chunk] = []
        self._waiting_bytes = 0

    def add(self, content: bytes) -> bytes:
        """The chunk's hash. Abandoned if the member stops."""
        if self._stopping is not None and self._stopping.is_set():
            raise Abandoned
        digest = digest_of(content)
        if digest not in self._met and digest not in self._known:
            self._met.add(digest)
            self._waiting.append((digest, content))
            self._waiting_bytes += len(content)
        return digest

    @property
    def full(self) -> bool:
        """A piece has come together."""
        return self._waiting_bytes >= PIECE_BYTES

    def take(self) -> list[Chunk]:
        """The chunks collected since the last call."""
        taken, self._waiting, self._waiting_bytes = self._waiting, [], 0
        return taken


def settled_status(fd: int) -> tuple[os.stat_result, bool]:
    """The file's status, and whether it was taken so late that any later change shows in it.

    Waits out the clock's tick, once; a file that changes all the time does not settle.
    """
    found = os.fstat(fd)
    age_ns = _age_ns(found)
    if 0 <= age_ns < TIMESTAMP_TICK_NS:
        time.sleep((TIMESTAMP_TICK_NS - age_ns) / 1e9)
        found = os.fstat(fd)
    return found, not 0 <= _age_ns(found) < TIMESTAMP_TICK_NS


def _age_ns(found: os.stat_result) -> int:
    return time.clock_gettime_ns(time.CLOCK_REALTIME) - found.st_ctime_ns


def check_still(fd: int, before: os.stat_result) -> None:
    """Moved, if the file is not as it was `before`."""
    now = os.fstat(fd)
    if (now.st_size, now.st_mtime_ns, now.st_ctime_ns) != (before.st_size, before.st_mtime_ns, before.st_ctime_ns):
        raise Moved


def read_content(fd: int, status: os.stat_result, sink: ChunkSink) -> Generator[list[Chunk], None, Content]:
    """Read the file whole; yields pieces of new chunks as they come together, returns its content.

    Moved if it changed since `status`.
    """
    runs, sparse = data_runs(fd, status)
    digests = bytearray()
    count = 0
    for first, run in runs:
        for position in range(first, first + run):
            offset = position * CHUNK_BYTES
            digests += sink.add(_read_exactly(fd, offset, min(CHUNK_BYTES, status.st_size - offset)))
            count += 1
            if count % _CHUNKS_PER_LOOK == 0:
                check_still(fd, status)
            if sink.full:
                yield sink.take()
    check_still(fd, status)
    whole = (status.st_size + CHUNK_BYTES - 1) // CHUNK_BYTES
    return Content(bytes(digests), None if count == whole else tuple(runs), sparse)


def check_same(fd: int, status: os.stat_result, content: Content) -> None:
    """Moved, if a second reading finds anything else: for a file whose times cannot tell."""
    again = ChunkSink(())
    reading = read_content(fd, status, again)
    while True:
        try:
            next(reading)
        except StopIteration as end:
            if end.value.chunks != content.chunks:
                raise Moved from None
            return


def data_runs(fd: int, status: os.stat_result) -> tuple[list[tuple[int, int]], bool]:
    """Runs (first position, count) of the chunks in which there is data, and whether there is any hole at all."""
    size = status.st_size
    whole = [(0, (size + CHUNK_BYTES - 1) // CHUNK_BYTES)] if size else []
    if status.st_blocks * 512 >= size:
        return whole, False
    runs: list[tuple[int, int]] = []
    sparse = False
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
            end = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole from here on
                sparse = True
                break
            if error.errno == errno.EINVAL:  # a file system without holes
                return whole, False
            raise
        sparse = sparse or start > at
        _add_run(runs, start // CHUNK_BYTES, (end + CHUNK_BYTES - 1) // CHUNK_BYTES)
        at = end
    return (runs if len(runs) <= RUNS_MAX else whole), sparse


def _add_run(runs: list[tuple[int, int]], first: int, end: int) -> None:
    """Append chunks [first, end), joining them to the last run where they touch it."""
    if runs and first <= sum(runs[-1]):
        begin = runs[-1][0]
        runs[-1] = (begin, max(end, sum(runs[-1])) - begin)
    elif end > first:
        runs.append((first, end - first))


def _read_exactly(fd: int, offset: int, length: int) -> bytes:
    content = os.pread(fd, length, offset)
    while len(content) < length:
        more = os.pread(fd, length - len(content), offset + len(content))
        if not more:
            raise Moved
        content += more
    return content
