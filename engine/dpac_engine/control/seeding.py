"""Seeds: a member's present state, sent to a target that has no log of how it came about.

A seed begins with a reset, then carries the state piece by piece, each as of its own LSN while the application writes on;
the log from the seed's beginning on makes it whole. A volume's seed resumes where it was; a directory's begins again.
Of a volume that the target had whole before, only what differs from what it holds is sent, and nothing is reset.
Several pieces are sealed and on their way to the target at the same time (`SeedStream`); they are committed in order.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

from dpac_engine.core.bitmap import DirtyBitmap
from dpac_engine.core.manifest import SegmentRef
from dpac_engine.core.ranges import Range
from dpac_engine.core.records import Flags, KeyChange, Kind
from dpac_engine.core.segment import SegmentWriter
from dpac_engine.io.daemon_thread import DaemonThread

PIECE_BYTES = 16 * 2**20
PIECES_UNDER_WAY = 3
"""Held in memory at most, plain and sealed: one is read while others are compressed, encrypted and written."""
READ_BYTES = 2**20
_ZEROES = bytes(READ_BYTES)
SEARCH_BYTES = 2**30
"""How far a search for what is allocated goes."""


@runtime_checkable
class VolumeSource(Protocol):
    """A volume as a seed reads it (`io/members/volume.py`)."""

    size_bytes: int

    async def allocated(self, offset: int, length: int) -> list[tuple[int, int]]:
        """(offset, length) of what is allocated in the range."""

    async def read_for_seed(self, offset: int, length: int) -> tuple[int, bytes]:
        """(LSN, the bytes as of it)."""


class TreeSource(Protocol):
    """A directory as a seed reads it (`io/members/directory.py`)."""

    def snapshot_changes(self) -> AsyncIterator[list[KeyChange]]:
        """Every chunk, then every entry of one state; the last list makes it whole. With the log since this was called it
        is the directory: what the log tells stands."""


SeedSource = VolumeSource | TreeSource


class HeldVolume(Protocol):
    """What a target holds of a volume, up to where it has the log (`control/comparing.py`)."""

    compared_bytes: int
    equal_bytes: int
    """Of those compared; they are not sent."""

    async def explore(self, volume: VolumeSource) -> bool:
        """Compare some of it; True once `wanted` can tell. Temporary if the target is away, OSError of the volume."""

    async def wanted(self, begin: int, end: int, allocated: Sequence[Range]) -> list[Range]:
        """(offset, length) of what may differ in a range of the volume, in order; `allocated` is of the volume."""

    async def differing(self, offset: int, data: bytes) -> list[Range]:
        """(offset, length) of what the target lacks of bytes that were wanted. Temporary if it is away."""


class Piece(NamedTuple):
    """A step of a seed. `ready_lsn`: with it the member is recoverable from that LSN on."""

    rows: SegmentWriter
    from_lsn: int
    to_lsn: int
    begins: bool
    ready_lsn: int | None
    position: int


@dataclass
class Seeding:
    """A member's seed under way."""

    ordinal: int
    source: SeedSource
    position: int
    content: int
    head_lsn: Callable[[], int]
    stamp: Callable[[], int]
    dirty: DirtyBitmap | None = None
    """Volumes: what the target lacks, if it has all else; None: all is sent."""
    held: HeldVolume | None = None
    """Volumes: what is compared, so that only what differs is sent; None: all is sent."""
    _explored: bool = False
    _changes: AsyncIterator[list[KeyChange]] | None = field(default=None)
    _to_read: deque[tuple[int, int]] = field(default_factory=deque)
    """What is left of the range searched last. A write into a hole of it is in the log."""
    _searched_to: int = 0
    _began_lsn: int = 0

    async def explore(self) -> bool:
        """Compare some of what is to be compared first; True once the pieces can be told. Errors as of `next_piece`."""
        if not self._explored and self.held is not None and isinstance(self.source, VolumeSource):
            self._explored = await self.held.explore(self.source)
            return self._explored
        return True

    async def next_piece(self) -> Piece:
        """The next step; errors of the member's reading surface here."""
        rows, begins, start = SegmentWriter(), self.position == 0 and self._changes is None, self.head_lsn()
        if begins and self.dirty is None and self.held is None:
            self._add(rows, Kind.RESET, start, 0, 0, b"")
        if isinstance(self.source, VolumeSource):
            ready = await self._volume_piece(self.source, rows, begins, start)
        else:
            # As of its beginning, however late it is read: what is captured beside it is in the log behind that.
            start = self._began_lsn = start if begins else self._began_lsn
            ready = await self._tree_piece(self.source, rows)
        return Piece(rows, start, self.head_lsn() + 1, begins, ready, self.position)

    async def _volume_piece(self, volume: VolumeSource, rows: SegmentWriter, begins: bool, start: int) -> int | None:
        if begins:
            self._add(rows, Kind.RESIZE, start, 0, volume.size_bytes, b"")
        if self.position >= self._searched_to:
            self._searched_to = min(self.position + SEARCH_BYTES, volume.size_bytes)
            self._to_read.extend(await self._wanted(volume, self._searched_to))
        while self._to_read:
            offset, left = self._to_read.popleft()
            length = min(READ_BYTES, left)
            if left > length:
                self._to_read.appendleft((offset + length, left - length))
            lsn, data = await volume.read_for_seed(offset, length)
            for begin, size in await self.held.differing(offset, data) if self.held else [(offset, length)]:
                self._add_data(rows, lsn, begin, data[begin - offset : begin - offset + size])
            self.position = offset + length
            if rows.plain_bytes >= PIECE_BYTES:
                return None
        self.position = self._searched_to
        return self.head_lsn() if self.position >= volume.size_bytes else None

    def _add_data(self, rows: SegmentWriter, lsn: int, offset: int, data: bytes) -> None:
        if data != _ZEROES[: len(data)]:
            self._add(rows, Kind.FILL, lsn, offset, len(data), data)
        elif self.dirty is not None or self.held is not None:
            self._add(rows, Kind.ZERO, lsn, offset, len(data), b"")  # the target may hold something else there

    async def _wanted(self, volume: VolumeSource, end: int) -> list[tuple[int, int]]:
        """(offset, length) of what to read from `position` to `end`."""
        if self.dirty is None:
            allocated = await volume.allocated(self.position, end - self.position)
            return await self.held.wanted(self.position, end, allocated) if self.held else allocated
        # Of a range only: of a volume of 1 TiB in which every other block is dirty they are millions.
        return list(self.dirty.ranges(self.position, end))

    async def _tree_piece(self, tree: TreeSource, rows: SegmentWriter) -> int | None:
        if self._changes is None:
            self._changes = tree.snapshot_changes()
        async for changes in self._changes:
            for change in changes:
                kind, value = (Kind.DELETE, b"") if change.value is None else (Kind.PUT, change.value)
                self._add(rows, kind, self._began_lsn, 0, 0, value, (change.keyspace, change.key))
            if rows.plain_bytes >= PIECE_BYTES:
                return None
        return self.head_lsn()

    def _add(
        self,
        rows: SegmentWriter,
        kind: int,
        lsn: int,
        offset: int,
        length: int,
        payload: bytes | memoryview,
        key: tuple[int, bytes] | None = None,
    ) -> None:
        rows.add(kind, Flags.SEED, self.ordinal, lsn, self.stamp(), offset, length, payload, key)


PutPiece = Callable[[Piece], Sequence[SegmentRef]]
"""Stores what a piece holds, in a thread; no commit names it yet."""


class SeedStream:
    """A seed on its way: pieces are put side by side, each in a thread of its own, and arrive in order."""

    def __init__(self, name: str, seeding: Seeding, put: PutPiece) -> None:
        self.seeding = seeding
        self._put = put
        self._threads = deque(DaemonThread(f"{name}-{number}") for number in range(PIECES_UNDER_WAY))
        self._under_way: deque[tuple[Piece, asyncio.Future[Sequence[SegmentRef]]]] = deque()
        self._read_whole = False

    async def read_on(self) -> None:
        """Read pieces and send them off until enough are under way, or compare some of what is to be compared first; errors of
        the member's reading surface here."""
        if not await self.seeding.explore():
            return
        while not self._read_whole and len(self._under_way) < PIECES_UNDER_WAY:
            piece = await self.seeding.next_piece()
            self._read_whole = piece.ready_lsn is not None
            # In turn: the thread whose piece arrived longest ago is free.
            self._threads.rotate()
            self._under_way.append((piece, asyncio.ensure_future(self._threads[0].run(self._put, piece))))

    async def arrived(self) -> list[tuple[Piece, Sequence[SegmentRef]]]:
        """The oldest piece under way and those that arrived with it, in order, if any is; errors of the target surface here."""
        found: list[tuple[Piece, Sequence[SegmentRef]]] = []
        while self._under_way and (not found or self._under_way[0][1].done()):
            piece, putting = self._under_way[0]
            found.append((piece, await putting))
            self._under_way.popleft()
        return found

    async def abandon(self) -> None:
        """Wait for what is under way, which no commit will name, and end."""
        await asyncio.gather(*(putting for _, putting in self._under_way), return_exceptions=True)
        self.close()

    def close(self) -> None:
        """End without waiting; nobody wants to hear what becomes of what is under way."""
        for _, putting in self._under_way:
            putting.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._under_way.clear()
        for thread in self._threads:
            thread.stop()
