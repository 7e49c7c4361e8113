"""Reads whole volumes of an image, a bounded number of pieces at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from dpac_engine.control.recovery import VolumeView

PIECE_BYTES = 4 * 2**20
READERS = 4
"""Pieces that are fetched, decrypted and decompressed at the same time; that works without the interpreter."""


def pieces(volume: VolumeView) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) of everything stored of the volume, in order, authenticated by being read."""
    with ThreadPoolExecutor(READERS, thread_name_prefix="image") as readers:
        ahead: deque[tuple[int, Future[bytes]]] = deque()
        try:
            for at, length in _spans(volume):
                ahead.append((at, readers.submit(volume.read, at, length)))
                if len(ahead) > READERS:
                    begin, reading = ahead.popleft()
                    yield begin, reading.result()
            while ahead:
                begin, reading = ahead.popleft()
                yield begin, reading.result()
        finally:
            for _, reading in ahead:
                reading.cancel()


def _spans(volume: VolumeView) -> Iterator[tuple[int, int]]:
    for offset, length in _joined(volume):
        for at in range(offset, offset + length, PIECE_BYTES):
            yield at, min(PIECE_BYTES, offset + length - at)


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
