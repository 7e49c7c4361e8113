"""Dirty bitmaps: everything that was marked is in the ranges, and little else."""

from __future__ import annotations

import random
import tracemalloc

import numpy as np
import pytest

from dpac_api.errors import Corruption
from dpac_engine.core.bitmap import GRANULARITY_BYTES_MIN, DirtyBitmap, decode_bitmap

KIB, MIB, TIB = 2**10, 2**20, 2**40


def covered(bitmap: DirtyBitmap) -> set[int]:
    """Blocks of 64 KiB in the ranges."""
    blocks: set[int] = set()
    for offset, length in bitmap.ranges():
        blocks |= set(range(offset // GRANULARITY_BYTES_MIN, -(-(offset + length) // GRANULARITY_BYTES_MIN)))
    return blocks


@pytest.mark.parametrize("many", [False, True])
def test_the_ranges_are_the_blocks_that_were_marked(seed: int, many: bool) -> None:
    """At 64 KiB exactly those, one by one or all at once, and again after a file."""
    chance, bitmap, expected = random.Random(seed), DirtyBitmap(64 * MIB), set()
    marks = [(chance.randrange(60 * MIB), chance.choice([0, 1, 4096, 65536, 300_000])) for _ in range(200)]
    for offset, length in marks:
        if length:
            expected |= set(range(offset // GRANULARITY_BYTES_MIN, -(-(offset + length) // GRANULARITY_BYTES_MIN)))
        if not many:
            bitmap.mark(offset, length)
    if many:
        offsets, lengths = np.array(marks, np.int64).T
        bitmap.mark_many(offsets, lengths)
    assert covered(bitmap) == covered(decode_bitmap(bitmap.encode())) == expected
    assert bitmap.dirty_bytes == len(expected) * GRANULARITY_BYTES_MIN


def test_a_volume_of_a_tebibyte_is_tracked_in_bounded_memory() -> None:
    """A bit stands for more; what was marked before and after stays marked."""
    bitmap = DirtyBitmap(MIB, bytes_max=64 * KIB)
    bitmap.mark(900 * KIB, 1)
    bitmap.grow(TIB)
    bitmap.mark(TIB - 1, 1)
    assert TIB // bitmap.granularity_bytes <= 64 * KIB * 8
    assert bitmap.granularity_bytes == 2 * MIB
    assert list(bitmap.ranges()) == [(0, 2 * MIB), (TIB - 2 * MIB, 2 * MIB)]
    assert list(decode_bitmap(bitmap.encode(), 64 * KIB).ranges()) == list(bitmap.ranges())


def test_the_last_range_ends_with_the_volume() -> None:
    """A volume need not be a multiple of what a bit stands for."""
    bitmap = DirtyBitmap(100 * KIB)
    bitmap.mark(99 * KIB, 512)
    assert list(bitmap.ranges()) == [(64 * KIB, 36 * KIB)]


def test_a_damaged_bitmap_is_not_believed(seed: int) -> None:
    """Any flipped bit, and any missing end, is found: bits that are lost would be data that is lost."""
    bitmap = DirtyBitmap(10 * MIB)
    bitmap.mark(5 * MIB, MIB)
    stored = bitmap.encode()
    for at in range(len(stored) * 8):
        damaged = bytearray(stored)
        damaged[at // 8] ^= 1 << at % 8
        with pytest.raises(Corruption):
            decode_bitmap(bytes(damaged))
    with pytest.raises(Corruption):
        decode_bitmap(stored[: random.Random(seed).randrange(len(stored))])


def test_a_window_of_it_is_told_without_the_rest() -> None:
    """Clipped to the window, also where neither begins on a bit; all windows together tell all of it."""
    bitmap = DirtyBitmap(MIB)
    bitmap.mark(0, 200 * KIB)
    bitmap.mark(512 * KIB, 1)
    assert list(bitmap.ranges(100 * KIB, 130 * KIB)) == [(100 * KIB, 30 * KIB)]
    assert list(bitmap.ranges(256 * KIB, 512 * KIB)) == []
    assert list(bitmap.ranges(500 * KIB)) == [(512 * KIB, 64 * KIB)]
    told = [found for at in range(0, MIB, 96 * KIB) for found in bitmap.ranges(at, at + 96 * KIB)]
    assert sum(length for _, length in told) == sum(length for _, length in bitmap.ranges()) == (256 + 64) * KIB


def test_a_volume_of_a_tebibyte_with_every_other_block_dirty_takes_bounded_memory() -> None:
    """Noting, storing, loading, and telling what to send, window by window: less than 64 MiB over what there was."""
    tracemalloc.start()
    try:
        bitmap = DirtyBitmap(TIB // 4)  # it grows on: bits are joined while they are set
        for grown in (TIB // 4, TIB):
            offsets = np.arange(0, grown, 256 * KIB, dtype=np.int64)
            bitmap.mark_many(offsets, np.full(len(offsets), 4096, np.int64))
            del offsets
        assert bitmap.granularity_bytes == 2 * GRANULARITY_BYTES_MIN
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        again = decode_bitmap(bitmap.encode())
        windows = [len(list(again.ranges(at, at + 2**30))) for at in range(0, TIB, 2**36)]
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert windows == [4096] * 16
    assert again.dirty_bytes == TIB // 2
    print(f"peak {peak / MIB:.1f} MiB; the bitmap itself {before / MIB:.1f} MiB")
    assert before < 16 * MIB
    assert peak < 64 * MIB
