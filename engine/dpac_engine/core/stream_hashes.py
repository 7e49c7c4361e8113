"""Hashes of a segment's block stream: by them a disk that holds an earlier state is brought to a checkpoint without fetching
what is there already."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import blake3

from dpac_engine.core.extents import Piece

UNIT_BYTES = 65536
"""One hash for so much of the stream; the last one for what is left."""
HASH_BYTES = 32
ReadDevice = Callable[[int, int], bytes | memoryview]
"""(offset, length) of a device -> its bytes."""


class StreamHashes(NamedTuple):
    """The hashes of one segment; none if it was sealed without."""

    digests: bytes
    stream_bytes: int

    def lacking(self, places: Sequence[Piece], read: ReadDevice) -> list[Piece]:
        """What of `places`, sorted by position, the device that `read` reads does not hold for certain, cut to units.

        A unit counts as held if every byte of it belongs to the device, and these bytes have its hash.
        """
        found: list[Piece] = []
        unit: list[Piece] = []
        for place in _cut(places):
            if unit and place.position // UNIT_BYTES != unit[0].position // UNIT_BYTES:
                found += [] if self._is_held(unit, read) else unit
                unit = []
            unit.append(place)
        return found if not unit or self._is_held(unit, read) else found + unit

    def _is_held(self, unit: list[Piece], read: ReadDevice) -> bool:
        number = unit[0].position // UNIT_BYTES
        digest = self.digests[number * HASH_BYTES : (number + 1) * HASH_BYTES]
        length = min(UNIT_BYTES, self.stream_bytes - number * UNIT_BYTES)
        if not digest or sum(place.length for place in unit) != length:
            return False
        hasher = blake3.blake3()
        for place in unit:
            hasher.update(read(place.offset, place.length))
        return hasher.digest() == digest


def _cut(places: Sequence[Piece]) -> list[Piece]:
    """The places, cut where units end; neighbours on the device are joined within a unit, so that they are read at once."""
    found: list[Piece] = []
    for offset, length, source, position in places:
        while length:
            part = min(length, UNIT_BYTES - position % UNIT_BYTES)
            last = found[-1] if found else None
            if (
                last is not None
                and position % UNIT_BYTES
                and (last.offset + last.length, last.position + last.length) == (offset, position)
            ):
                found[-1] = last._replace(length=last.length + part)
            else:
                found.append(Piece(offset, part, source, position))
            offset, length, position = offset + part, length - part, position + part
    return found


def digests_of(stream: memoryview) -> bytes:
    """The hashes of a block stream, one after the other."""
    return b"".join(blake3.blake3(stream[at : at + UNIT_BYTES]).digest() for at in range(0, len(stream), UNIT_BYTES))
