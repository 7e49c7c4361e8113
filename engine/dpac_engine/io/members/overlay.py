"""The overlay: where the newest bytes of a volume's blocks lie while they are journalled but not yet in its file.

Per 4 KiB block an entry says where in the journal's stream its bytes are. Entries are kept in a dictionary, a run of
blocks is entered by one update. Blocks written in part have an entry per sector.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

BLOCK_BYTES = 4096
SECTOR_BYTES = 512
SECTORS = BLOCK_BYTES // SECTOR_BYTES
ZERO_BLOCKS_MAX = 1024
"""Zeroed ranges of more blocks than this are kept as ranges."""

UNDERLYING = 0
"""A sector whose newest bytes are in the volume's file. Positions are never 0: payloads follow a header."""


class Slice(NamedTuple):
    """`length` bytes from `offset` of the device: in the journal at `position`; zeroes if that is negative; in the
    volume's file if it is `UNDERLYING`."""

    offset: int
    length: int
    position: int


class Overlay:
    """The newest journalled bytes. A position is an LSN-like place in the stream, or minus an LSN for zeroes."""

    def __init__(self) -> None:
        self._blocks: dict[int, int | tuple[int, ...]] = {}
        self._zeroes: list[tuple[int, int, int]] = []  # first block, end block, LSN: newer than no block's own entry

    def __bool__(self) -> bool:
        return bool(self._blocks or self._zeroes)

    def __len__(self) -> int:
        return len(self._blocks)

    def write(self, offset: int, length: int, position: int) -> None:
        """The range's bytes lie at `position` of the stream from now on."""
        if length == BLOCK_BYTES and not offset & 4095:
            self._blocks[offset >> 12] = position
            return
        self._cover(offset, length, position, SECTOR_BYTES)

    def zero(self, offset: int, length: int, lsn: int) -> None:
        """The range reads as zeroes from now on, by the record at `lsn`."""
        first, end = -(-offset // BLOCK_BYTES), (offset + length) // BLOCK_BYTES
        if end - first <= ZERO_BLOCKS_MAX:
            self._cover(offset, length, -lsn, 0)
            return
        self._cover(offset, first * BLOCK_BYTES - offset, -lsn, 0)
        self._cover(end * BLOCK_BYTES, offset + length - end * BLOCK_BYTES, -lsn, 0)
        # The range first: a reader in another thread must not see a block with neither its entry nor the range.
        self._zeroes.append((first, end, lsn))
        if end - first > len(self._blocks):
            for block in [block for block in self._blocks if first <= block < end]:
                del self._blocks[block]
        else:
            for block in range(first, end):
                self._blocks.pop(block, None)

    def _cover(self, offset: int, length: int, position: int, step: int) -> None:
        # `step` is what a sector adds to the position: its bytes in the stream, or nothing for zeroes.
        if length <= 0:
            return
        first, end = -(-offset // BLOCK_BYTES), (offset + length) // BLOCK_BYTES
        if end > first:
            start = position + (first * BLOCK_BYTES - offset) // SECTOR_BYTES * step
            if step:
                self._blocks.update(
                    zip(range(first, end), range(start, start + (end - first) * BLOCK_BYTES, BLOCK_BYTES), strict=True)
                )
            else:
                self._blocks.update(dict.fromkeys(range(first, end), position))
        for block in {offset // BLOCK_BYTES, (offset + length - 1) // BLOCK_BYTES}:
            if not first <= block < end:
                self._cover_part(block, offset, length, position, step)

    def _cover_part(self, block: int, offset: int, length: int, position: int, step: int) -> None:
        sectors = list(self._sectors(block))
        for sector in range(SECTORS):
            at = block * BLOCK_BYTES + sector * SECTOR_BYTES
            if offset <= at < offset + length:
                sectors[sector] = position + (at - offset) // SECTOR_BYTES * step
        self._blocks[block] = tuple(sectors)

    def _sectors(self, block: int) -> tuple[int, ...]:
        entry = self._blocks.get(block)
        if entry is None:
            return (self._zeroed(block),) * SECTORS
        if isinstance(entry, tuple):
            return entry
        return (entry,) * SECTORS if entry < 0 else tuple(range(entry, entry + BLOCK_BYTES, SECTOR_BYTES))

    def _zeroed(self, block: int) -> int:
        for first, end, lsn in reversed(self._zeroes):
            if first <= block < end:
                return -lsn
        return UNDERLYING

    def block_position(self, block: int) -> int | None:
        """Where a whole block's newest bytes lie; None if it must be pieced together (`slices`)."""
        entry = self._blocks.get(block)
        if entry is None:
            return self._zeroed(block) if self._zeroes else UNDERLYING
        return None if isinstance(entry, tuple) else entry

    def slices(self, offset: int, length: int) -> Iterator[Slice]:
        """The range's parts and where their newest bytes lie, in order; what is not here in as few as can be."""
        at, end = offset, offset + length
        plain = offset
        while at < end and self:
            block = at // BLOCK_BYTES
            stop = min((block + 1) * BLOCK_BYTES, end)
            position = self.block_position(block)
            if position == UNDERLYING:
                at = stop
                continue
            if at > plain:
                yield Slice(plain, at - plain, UNDERLYING)
            if position is None or position > 0:
                sectors = self._sectors(block)
                for sector in range(at % BLOCK_BYTES // SECTOR_BYTES, -(-(stop - block * BLOCK_BYTES) // SECTOR_BYTES)):
                    yield Slice(block * BLOCK_BYTES + sector * SECTOR_BYTES, SECTOR_BYTES, sectors[sector])
            else:
                yield Slice(at, stop - at, position)
            at = plain = stop
        if end > plain:
            yield Slice(plain, end - plain, UNDERLYING)

    def applied_write(self, offset: int, length: int, position: int) -> None:
        """The write whose bytes lie at `position` is in the volume's file now: entries that still name it go."""
        if length == BLOCK_BYTES and not offset & 4095:
            entry = self._blocks.get(offset >> 12)
            if entry == position:
                del self._blocks[offset >> 12]
            if not isinstance(entry, tuple):  # a tuple: part of the block was changed since, the rest still names this
                return
        self._uncover(offset, length, position, SECTOR_BYTES)

    def applied_zero(self, offset: int, length: int, lsn: int) -> None:
        """The same for a zeroed range."""
        self._zeroes = [zeroed for zeroed in self._zeroes if zeroed[2] != lsn]
        if length > (ZERO_BLOCKS_MAX + 2) * BLOCK_BYTES:
            # A block written in part since then took its other sectors from the range.
            touched = [block for block, entry in self._blocks.items() if entry == -lsn or _names(entry, -lsn)]
            for block in touched:
                self._uncover(block * BLOCK_BYTES, BLOCK_BYTES, -lsn, 0)
        else:
            self._uncover(offset, length, -lsn, 0)

    def _uncover(self, offset: int, length: int, position: int, step: int) -> None:
        blocks = self._blocks
        for block in range(offset // BLOCK_BYTES, (offset + length - 1) // BLOCK_BYTES + 1):
            entry = blocks.get(block)
            if entry is None:
                continue
            here = position + (block * BLOCK_BYTES - offset) // SECTOR_BYTES * step
            if isinstance(entry, int):
                if entry == here:
                    del blocks[block]
                continue
            left = tuple(UNDERLYING if at == here + sector * step else at for sector, at in enumerate(entry))
            if any(left):
                blocks[block] = left
            else:
                del blocks[block]


def _names(entry: int | tuple[int, ...], position: int) -> bool:
    return isinstance(entry, tuple) and position in entry
