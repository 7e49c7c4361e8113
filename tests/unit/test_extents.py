"""Extent maps against a byte array."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dpac_engine.core.extents import ZEROES, fold

SIZE = 80
extents = st.lists(st.tuples(st.integers(0, 90), st.integers(0, 40), st.booleans()), max_size=30)


@settings(max_examples=500, deadline=None)
@given(extents, st.integers(0, SIZE), st.integers(0, SIZE))
def test_the_last_extent_over_a_byte_wins(rows: list[tuple[int, int, bool]], offset: int, length: int) -> None:
    """For any extents, each byte comes from the newest that covers it, by whole maps and by lookups."""
    starts = np.array([start for start, _, _ in rows], np.int64)
    ends = starts + np.array([count for _, count, _ in rows], np.int64)
    sources = np.array([ZEROES if zero else at for at, (_, _, zero) in enumerate(rows)], np.int64)
    positions = np.arange(len(rows), dtype=np.int64) * 1000
    made = fold(starts, ends, sources, positions, SIZE)
    model: list[tuple[int, int] | None] = [None] * SIZE
    for at, (start, count, zero) in enumerate(rows):
        for byte in range(start, min(start + count, SIZE)):
            model[byte] = (ZEROES, 0) if zero else (at, at * 1000 + byte - start)
    for pieces, low, high in (
        (made.pieces(), 0, SIZE),
        (made.lookup(offset, length), offset, min(offset + length, SIZE)),
    ):
        seen: list[tuple[int, int] | None] = [None] * SIZE
        last = low
        for piece in pieces:
            assert piece.offset >= last
            last = piece.offset + piece.length
            for byte in range(piece.length):
                zero = piece.source == ZEROES
                seen[piece.offset + byte] = (ZEROES, 0) if zero else (piece.source, piece.position + byte)
        assert seen[low:high] == model[low:high]
    assert made.data_bytes == sum(1 for byte in model if byte is not None and byte[0] != ZEROES)
    assert np.all(made.starts[1:] >= made.ends[:-1])
