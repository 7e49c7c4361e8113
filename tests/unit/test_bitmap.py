"""Dirty bitmaps: everything that was marked is in the ranges, and little else."""

from __future__ import annotations

import random

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
