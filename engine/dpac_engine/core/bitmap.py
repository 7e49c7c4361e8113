"""Dirty bitmaps: which parts of a volume changed while a target could not be told, and the spool could not wait.

A bitmap has no order: it says where to read anew, not what was there when. Bits are only ever added until a resync has
brought every one of them to the target.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import xxhash
from backports import zstd

from dpac_api.errors import Corruption

GRANULARITY_BYTES_MIN = 64 * 1024
BYTES_MAX = 2**20
"""Bits of one bitmap, eight a byte, at most; beyond 512 GiB each stands for more than 64 KiB. In memory each bit is a byte: 8 MiB
at most, for a volume of whatever size."""
_MAGIC = b"DPACBMP1"
_HEAD = struct.Struct("<8sQQ")


class DirtyBitmap:
    """Bits of one volume, each for `granularity_bytes` of it."""

    def __init__(self, size_bytes: int, bytes_max: int = BYTES_MAX) -> None:
        self.size_bytes = 0
        self.granularity_bytes = GRANULARITY_BYTES_MIN
        self._bytes_max = bytes_max
        self._bits: npt.NDArray[np.bool_] = np.zeros(0, bool)
        self.grow(size_bytes)

    def grow(self, size_bytes: int) -> None:
        """The volume has that size from now on; what is new is clean. Coarsens where memory is short."""
        self.size_bytes = max(self.size_bytes, size_bytes)
        while -(-self.size_bytes // self.granularity_bytes) > self._bytes_max * 8:
            pairs = np.append(self._bits, np.zeros(len(self._bits) % 2, bool)).reshape(-1, 2)
            self._bits = pairs[:, 0] | pairs[:, 1]
            self.granularity_bytes *= 2
        count = -(-self.size_bytes // self.granularity_bytes)
        self._bits = np.append(self._bits, np.zeros(count - len(self._bits), bool))

    def mark(self, offset: int, length: int) -> None:
        """The range changed; the volume may have grown to hold it."""
        if offset + length > self.size_bytes:
            self.grow(offset + length)
        if length:
            self._bits[offset // self.granularity_bytes : -(-(offset + length) // self.granularity_bytes)] = True

    def mark_many(self, offsets: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> None:
        """The ranges changed. Shapes (n,)."""
        self.grow(int((offsets + lengths).max(initial=0)))
        some = lengths > 0
        first = offsets[some] // self.granularity_bytes
        end = -(-(offsets + lengths)[some] // self.granularity_bytes)
        narrow = end - first == 1
        self._bits[first[narrow]] = True
        for begin, stop in zip(first[~narrow].tolist(), end[~narrow].tolist(), strict=True):
            self._bits[begin:stop] = True

    def merge(self, other: DirtyBitmap) -> None:
        """What is dirty in either is dirty."""
        self.grow(other.size_bytes)
        other.grow(self.size_bytes)
        self._bits |= other._bits

    @property
    def dirty_bytes(self) -> int:
        """What a resync reads at most."""
        return int(self._bits.sum()) * self.granularity_bytes

    def ranges(self, begin: int = 0, end: int | None = None) -> Iterator[tuple[int, int]]:
        """(offset, length) of what is dirty of `[begin, end)`, neighbours together, in order, within the volume."""
        end = self.size_bytes if end is None else min(end, self.size_bytes)
        first = begin // self.granularity_bytes
        bits = self._bits[first : -(-end // self.granularity_bytes)]
        edges = first + np.flatnonzero(np.diff(np.concatenate(([False], bits, [False])).astype(np.int8)))
        for one, after in edges.reshape(-1, 2).tolist():
            offset = max(one * self.granularity_bytes, begin)
            yield offset, min(after * self.granularity_bytes, end) - offset

    def encode(self) -> bytes:
        """For a file: what `decode` reads."""
        body = _HEAD.pack(_MAGIC, self.size_bytes, self.granularity_bytes) + zstd.compress(
            np.packbits(self._bits).tobytes()
        )
        return body + xxhash.xxh3_64_intdigest(body).to_bytes(8, "little")


def decode_bitmap(data: bytes, bytes_max: int = BYTES_MAX) -> DirtyBitmap:
    """The bitmap that `encode` wrote; Corruption if it is damaged."""
    body = data[:-8]
    if (
        len(body) < _HEAD.size
        or body[:8] != _MAGIC
        or xxhash.xxh3_64_intdigest(body).to_bytes(8, "little") != data[-8:]
    ):
        raise Corruption("The dirty bitmap is damaged: the volume is read anew in full.")
    _, size_bytes, granularity_bytes = _HEAD.unpack_from(body)
    bitmap = DirtyBitmap(0, bytes_max)
    bitmap.granularity_bytes = granularity_bytes
    bits = np.unpackbits(np.frombuffer(zstd.decompress(memoryview(body)[_HEAD.size :]), np.uint8)).astype(bool)
    bitmap.size_bytes = size_bytes
    bitmap._bits = bits[: -(-size_bytes // granularity_bytes)]
    bitmap.grow(size_bytes)
    return bitmap
