"""Extent maps: which stored bytes make up a device at a checkpoint.

A map is four parallel arrays of one length, sorted by `starts` and disjoint:
shapes (n,), dtype int64. It is built once by `fold` from all records in order
of age, and then only looked up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]

ZEROES = -1
"""The `sources` value of an extent that reads as zeroes."""


class Piece(NamedTuple):
    """A part of a device: `[offset, offset + length)` comes from `position` in `source`."""

    offset: int
    length: int
    source: int
    position: int


@dataclass(frozen=True)
class ExtentMap:
    """Disjoint extents sorted by start.

    starts, ends: (n,) device bytes; sources: (n,) which segment, or `ZEROES`; positions: (n,) byte in that segment's
    block stream at which the extent's first byte lies.
    """

    starts: Int64Array
    ends: Int64Array
    sources: Int64Array
    positions: Int64Array

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def data_bytes(self) -> int:
        """Bytes that come from a segment, zeroes not counted."""
        return int((self.ends - self.starts)[self.sources != ZEROES].sum())

    def lookup(self, offset: int, length: int) -> Iterator[Piece]:
        """The pieces that overlap `[offset, offset + length)`, clipped to it, in order. What no piece covers reads as zeroes."""
        end = offset + length
        first = int(np.searchsorted(self.ends, offset, side="right"))
        last = int(np.searchsorted(self.starts, end, side="left"))
        for at in range(first, last):
            start = max(int(self.starts[at]), offset)
            stop = min(int(self.ends[at]), end)
            yield Piece(
                start, stop - start, int(self.sources[at]), int(self.positions[at]) + start - int(self.starts[at])
            )

    def pieces(self) -> Iterator[Piece]:
        """Every extent, in order."""
        for start, end, source, position in zip(
            self.starts.tolist(), self.ends.tolist(), self.sources.tolist(), self.positions.tolist(), strict=True
        ):
            yield Piece(start, end - start, source, position)


def fold(starts: Int64Array, ends: Int64Array, sources: Int64Array, positions: Int64Array, size: int) -> ExtentMap:
    """The map in which the last of all extents that cover a byte wins.

    starts, ends, sources, positions: (n,), oldest first; ends exclusive; extents past `size` bytes are cut off.
    Time O(n log n) where extents are small against the device; each extent that spans k boundaries of others costs k.
    """
    ends = np.minimum(ends, size)
    alive = ends > starts
    starts, ends, sources, positions = starts[alive], ends[alive], sources[alive], positions[alive]
    if not len(starts):
        empty = np.empty(0, np.int64)
        return ExtentMap(empty, empty, empty, empty)
    boundaries, low, high = _ranked(starts, ends)
    return _coalesce(boundaries, _paint(low, high, len(boundaries) - 1), starts, sources, positions)


def _ranked(starts: Int64Array, ends: Int64Array) -> tuple[Int64Array, npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """The distinct starts and ends, sorted, and where among them each start and each end is.

    One sort gives all three: `unique` hashes, and `searchsorted` of unsorted values misses the cache at every step.
    """
    both = np.concatenate((starts, ends))
    order = np.argsort(both)
    both = both[order]
    new = np.append(True, both[1:] != both[:-1])
    ranks = np.empty(len(both), np.intp)
    ranks[order] = np.cumsum(new) - 1
    return both[new], ranks[: len(starts)], ranks[len(starts) :]


def _paint(low: npt.NDArray[np.intp], high: npt.NDArray[np.intp], intervals: int) -> npt.NDArray[np.intp]:
    """For each elementary interval the index of the last extent that covers it, or -1. Shape (intervals,)."""
    owners = np.full(intervals, -1, np.intp)
    wide = high - low > 1
    for at in np.flatnonzero(wide).tolist():
        owners[low[at] : high[at]] = at
    # Extents of one interval each: the greatest index is the newest, whether the older one is wide or not.
    narrow = np.flatnonzero(~wide)
    np.maximum.at(owners, low[narrow], narrow)
    return owners


def _coalesce(
    boundaries: Int64Array,
    owners: npt.NDArray[np.intp],
    starts: Int64Array,
    sources: Int64Array,
    positions: Int64Array,
) -> ExtentMap:
    covered = np.flatnonzero(owners >= 0)
    owner = owners[covered]
    piece_starts, piece_ends = boundaries[covered], boundaries[covered + 1]
    joins = np.zeros(len(covered), bool)
    joins[1:] = (owner[1:] == owner[:-1]) & (piece_starts[1:] == piece_ends[:-1])
    heads = np.flatnonzero(~joins)
    tails = np.append(heads[1:], len(covered)) - 1
    owner = owner[heads]
    piece_starts, piece_ends = piece_starts[heads], piece_ends[tails]
    return ExtentMap(
        piece_starts,
        piece_ends,
        sources[owner],
        np.where(sources[owner] == ZEROES, 0, positions[owner] + piece_starts - starts[owner]),
    )
