"""A segment at a target, read by blocks: cached where reads are at random, once and past the cache where all is wanted."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

from dpac_api.errors import Corruption, DpacError, NotFound
from dpac_engine.core.checkpoints import Mark
from dpac_engine.core.manifest import SegmentRef
from dpac_engine.core.ports import Store
from dpac_engine.core.segment import DataKeys, RowArray, SegmentReader
from dpac_engine.core.stream_hashes import StreamHashes

CACHE_BYTES = 64 * 2**20
READ_BYTES_MAX = 4 * 2**20
"""Plain bytes fetched by one read."""


class BlockCache:
    """Decrypted blocks of all segments, least recently used out first; safe for threads."""

    def __init__(self, bytes_max: int = CACHE_BYTES) -> None:
        self._bytes_max = bytes_max
        self._blocks: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, segment: str, number: int) -> bytes | None:
        """The block, or None if it is not cached."""
        with self._lock:
            block = self._blocks.get((segment, number))
            if block is not None:
                self._blocks.move_to_end((segment, number))
            return block

    def keep(self, segment: str, number: int, block: bytes) -> None:
        """Remember a block."""
        with self._lock:
            if (segment, number) in self._blocks:
                return
            self._blocks[segment, number] = block
            self._bytes += len(block)
            while self._bytes > self._bytes_max:
                self._bytes -= len(self._blocks.popitem(last=False)[1])


class StoredSegment:
    """A segment at a target, opened at its first use (an `image.IndexedSegment`)."""

    def __init__(self, store: Store, ref: SegmentRef, data_keys: DataKeys, cache: BlockCache) -> None:
        self.ref = ref
        self._store = store
        self._data_keys = data_keys
        self._cache = cache
        self._opened: SegmentReader | None = None
        self._fetched_to = 0
        self._fetched_blocks = 0
        """How many blocks the last fetch had: who reads on where it ended gets twice as many."""

    @property
    def reader(self) -> SegmentReader:
        """The open segment; its key is the one its header names."""
        if self._opened is None:
            name = self.ref.name
            try:
                opened = SegmentReader(
                    lambda at, length: self._store.get(name, at, length), self.ref.bytes, self._data_keys
                )
                if opened.header.name != name:
                    raise Corruption(f"what lies there is another segment, {opened.header.name}.")
                self._opened = opened
            except (NotFound, Corruption) as error:
                raise self._damaged(error) from error
        return self._opened

    def _damaged(self, error: DpacError) -> Corruption:
        return Corruption(
            f"Segment {self.ref.name} cannot be read: {error.message} Recover from an earlier checkpoint or from another "
            "target; `dpac verify` tells which checkpoints are affected."
        )

    def marks(self) -> list[Mark]:
        """Its checkpoints, oldest first."""
        return self.reader.marks()

    @property
    def rows(self) -> RowArray:
        """See `image.IndexedSegment`."""
        return self.reader.rows

    @property
    def keys(self) -> Sequence[tuple[int, bytes]]:
        """See `image.IndexedSegment`."""
        return self.reader.keys

    @property
    def name(self) -> str:
        """See `image.IndexedSegment`."""
        return self.ref.name

    def hashes(self) -> StreamHashes:
        """See `image.IndexedSegment`."""
        try:
            return self.reader.hashes()
        except (NotFound, Corruption) as error:
            raise self._damaged(error) from error

    def read_once(self, position: int, length: int) -> bytes:
        """See `image.IndexedSegment`: by one read, past the cache."""
        block_bytes = self.reader.header.block_bytes
        first, begin = divmod(position, block_bytes)
        count = (position + length - 1) // block_bytes - first + 1
        try:
            blocks = self.reader.blocks(first, count)
        except (NotFound, Corruption) as error:
            raise self._damaged(error) from error
        return b"".join(blocks)[begin : begin + length] if count > 1 else blocks[0][begin : begin + length]

    def read(self, position: int, length: int) -> bytes:
        """See `image.IndexedSegment`."""
        if not length:
            return b""
        block_bytes = self.reader.header.block_bytes
        first, begin = divmod(position, block_bytes)
        last = (position + length - 1) // block_bytes
        parts = [memoryview(self._block(number, last)) for number in range(first, last + 1)]
        parts[-1] = parts[-1][: position + length - last * block_bytes]
        parts[0] = parts[0][begin:]
        return b"".join(parts)

    def _block(self, number: int, last: int) -> bytes:
        """A block, fetched together with those up to `last` that follow it, and with more while reads go on in order."""
        block = self._cache.get(self.ref.name, number)
        if block is not None:
            return block
        most = min(READ_BYTES_MAX // self.reader.header.block_bytes, self.reader.block_count - number)
        wanted = min(last - number + 1, most)
        ahead = min(2 * self._fetched_blocks, most) if number == self._fetched_to else 0
        try:
            blocks = self._fetch(number, max(wanted, ahead), wanted)
        except (NotFound, Corruption) as error:
            raise self._damaged(error) from error
        self._fetched_to, self._fetched_blocks = number + len(blocks), len(blocks)
        for at, plain in enumerate(blocks):
            self._cache.keep(self.ref.name, number + at, plain)
        return blocks[0]

    def _fetch(self, number: int, count: int, wanted: int) -> list[bytes]:
        try:
            return self.reader.blocks(number, count)
        except Corruption:
            if count == wanted:
                raise
            return self.reader.blocks(number, wanted)  # the damage may lie in what nobody asked for
