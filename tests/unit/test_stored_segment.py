"""Reading a segment at a target: how many requests it takes, and what damage that nobody asked for does."""

from __future__ import annotations

import os

import pytest

from dpac_api.errors import Corruption
from dpac_engine.core.records import Kind
from dpac_engine.core.segment import BULK_BLOCK_BYTES, SegmentKind, SegmentWriter
from dpac_engine.io.clock import SystemClock
from dpac_engine.io.repository import RepositoryWriter
from dpac_engine.io.stored_segment import BlockCache, StoredSegment
from dpac_engine.io.stores.memory import MemoryStore

KEY, UID = bytes(32), "1" * 32
BLOCKS = 64
SMALL_BYTES = 8192


class Counted(MemoryStore):
    """Counts reads."""

    reads = 0

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        self.reads += 1
        return super().get(key, offset, length)


def stored(store: Counted, plain: bytes, damaged_at: int | None = None) -> StoredSegment:
    """A fill segment of these bytes, opened; one byte of the object flipped, if asked for."""
    writer = RepositoryWriter(store, UID, "7" * 32, b"wrapped", lambda _: KEY, SystemClock())
    writer.open()
    rows = SegmentWriter()
    rows.add(Kind.FILL, 0, 1, 0, 1, 0, len(plain), plain)
    ref = writer.put_segment(
        rows, [], kind=SegmentKind.FILL, shard_uid="6" * 32, epoch=1, lsn_from=0, lsn_to=1, stamps=(1, 1),
        membership_version=1, compression_level=3,
    )  # fmt: skip
    if damaged_at is not None:
        data = bytearray(store.get(ref.name))
        data[damaged_at] ^= 1
        store.put(ref.name, bytes(data))
    segment = StoredSegment(store, ref, lambda _: KEY, BlockCache())
    assert len(segment.rows) == 1
    store.reads = 0
    return segment


def test_small_reads_in_order_share_requests() -> None:
    """Thousands of small files of one segment cost a handful of requests, and every byte is right."""
    plain = os.urandom(BLOCKS * BULK_BLOCK_BYTES)
    segment = stored(store := Counted(), plain)
    for at in range(0, len(plain), SMALL_BYTES):
        assert segment.read(at, SMALL_BYTES) == plain[at : at + SMALL_BYTES]
    assert store.reads < BLOCKS / 6


def test_reads_at_random_fetch_nothing_else() -> None:
    """A mount that looks here and there does not pay for what it does not look at."""
    segment = stored(store := Counted(), os.urandom(BLOCKS * BULK_BLOCK_BYTES))
    fetched = []
    get = store.get
    store.get = lambda key, offset=0, length=None: (fetched.append(length), get(key, offset, length))[1]  # type: ignore[method-assign]
    for block in (40, 3, 20, 50):
        segment.read(block * BULK_BLOCK_BYTES, SMALL_BYTES)
    assert len(fetched) == 4
    assert max(fetched) < 1.01 * BULK_BLOCK_BYTES


def test_damage_beyond_what_was_asked_for_does_not_hurt() -> None:
    """What is fetched ahead may be damaged: only who asks for it is told."""
    plain = os.urandom(8 * BULK_BLOCK_BYTES)
    segment = stored(Counted(), plain, damaged_at=int(2.5 * BULK_BLOCK_BYTES))
    for block in (0, 1):
        assert segment.read(block * BULK_BLOCK_BYTES, 512) == plain[block * BULK_BLOCK_BYTES :][:512]
    with pytest.raises(Corruption):
        segment.read(2 * BULK_BLOCK_BYTES, 512)
    assert segment.read(3 * BULK_BLOCK_BYTES, 512) == plain[3 * BULK_BLOCK_BYTES :][:512]
