"""Seeds: a member's present state, sent to a target that has no log of how it came about.

A seed begins with a reset, then carries the state piece by piece, each as of its own LSN while the application writes on;
the log from the seed's beginning on makes it whole. A volume's seed resumes where it was; a directory's begins again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

from dpac_engine.core.records import Flags, KeyChange, Kind
from dpac_engine.core.segment import SegmentWriter

PIECE_BYTES = 8 * 2**20
READ_BYTES = 2**20
SEARCH_BYTES = 2**30
"""How far one piece looks for data past holes."""


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
        """Every chunk, then every entry of one state; the last list makes it whole."""


SeedSource = VolumeSource | TreeSource


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
    _changes: AsyncIterator[list[KeyChange]] | None = field(default=None)

    async def next_piece(self) -> Piece:
        """The next step; errors of the member's reading surface here."""
        rows, begins, start = SegmentWriter(), self.position == 0 and self._changes is None, self.head_lsn()
        if begins:
            self._add(rows, Kind.RESET, start, 0, 0, b"")
        if isinstance(self.source, VolumeSource):
            ready = await self._volume_piece(self.source, rows, begins, start)
        else:
            ready = await self._tree_piece(self.source, rows)
        return Piece(rows, start, self.head_lsn() + 1, begins, ready, self.position)

    async def _volume_piece(self, volume: VolumeSource, rows: SegmentWriter, begins: bool, start: int) -> int | None:
        if begins:
            self._add(rows, Kind.RESIZE, start, 0, volume.size_bytes, b"")
        end = min(self.position + SEARCH_BYTES, volume.size_bytes)
        for offset, length in await volume.allocated(self.position, end - self.position):
            for at in range(offset, offset + length, READ_BYTES):
                lsn, data = await volume.read_for_seed(at, min(READ_BYTES, offset + length - at))
                if data.count(0) != len(data):
                    self._add(rows, Kind.FILL, lsn, at, len(data), data)
                self.position = at + len(data)
                if rows.plain_bytes >= PIECE_BYTES:
                    return None
        self.position = end
        return self.head_lsn() if end >= volume.size_bytes else None

    async def _tree_piece(self, tree: TreeSource, rows: SegmentWriter) -> int | None:
        if self._changes is None:
            self._changes = tree.snapshot_changes()
        async for changes in self._changes:
            lsn = self.head_lsn()
            for change in changes:
                kind, value = (Kind.DELETE, b"") if change.value is None else (Kind.PUT, change.value)
                self._add(rows, kind, lsn, 0, 0, value, (change.keyspace, change.key))
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
