"""Reads whole volumes of an image, a bounded piece at a time."""

from __future__ import annotations

from collections.abc import Iterator

from dpac_engine.control.recovery import VolumeView

PIECE_BYTES = 4 * 2**20


def pieces(volume: VolumeView) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) of everything stored of the volume, authenticated by being read."""
    for offset, length in _joined(volume):
        for at in range(offset, offset + length, PIECE_BYTES):
            yield at, volume.read(at, min(PIECE_BYTES, offset + length - at))


def stored_bytes(volume: VolumeView) -> int:
    """How much of the volume is stored."""
    return sum(length for _, length in volume.extents())


def _joined(volume: VolumeView) -> Iterator[tuple[int, int]]:
    """The extents, neighbours joined, so that small writes are not read one by one."""
    begin = end = 0
    for offset, length in volume.extents():
        if offset != end and end > begin:
            yield begin, end - begin
            begin = offset
        elif end == begin:
            begin = offset
        end = offset + length
    if end > begin:
        yield begin, end - begin
