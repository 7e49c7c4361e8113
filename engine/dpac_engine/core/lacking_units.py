"""Which parts of what a target has stored of a device the device itself is known to differ from: a bit for each unit of a
segment's block stream (`stream_hashes.UNIT_BYTES`), 16 MiB of memory for 1 TiB."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from dpac_engine.core.extents import ZEROES, ExtentMap, Piece
from dpac_engine.core.stream_hashes import UNIT_BYTES


class LackingUnits:
    """Units of the segments that a map names. None is marked at first."""

    def __init__(self, stored: ExtentMap) -> None:
        self._map = stored
        data = stored.sources != ZEROES
        sources, ends = stored.sources[data], (stored.positions + stored.ends - stored.starts)[data]
        stream_bytes = np.zeros(int(sources.max(initial=-1)) + 1, np.int64)
        np.maximum.at(stream_bytes, sources, ends)
        units = -(-stream_bytes // UNIT_BYTES)
        self._first = (np.cumsum(units) - units).tolist()
        """By source: where the bits of its units begin."""
        self._bits = np.zeros(int(units.sum()), bool)

    def mark(self, pieces: Iterable[Piece]) -> None:
        """The units in which the pieces begin are lacking."""
        for piece in pieces:
            self._bits[self._first[piece.source] + piece.position // UNIT_BYTES] = True

    def ranges(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """(offset, length) of what of the device is stored in such units, in order, within `[begin, end)`."""
        for offset, length, source, position in self._map.lookup(begin, end - begin):
            if source == ZEROES:
                continue
            first, last = position // UNIT_BYTES, (position + length - 1) // UNIT_BYTES
            bits = self._bits[self._first[source] + first : self._first[source] + last + 1]
            for unit in (first + np.flatnonzero(bits)).tolist() if bits.any() else ():
                low, high = max(position, unit * UNIT_BYTES), min(position + length, (unit + 1) * UNIT_BYTES)
                yield offset + low - position, high - low
