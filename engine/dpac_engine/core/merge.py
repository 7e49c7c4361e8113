"""Merging: the rows that are left of a range of the log when only the state at its end is wanted.

What a later row of the range overwrites goes. Rows keep their LSNs, so that merged and other segments fold together as
before. Pure: says which rows to write, and from where their payloads come.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from dpac_engine.core.extents import ZEROES, Int64Array, fold
from dpac_engine.core.image import IndexedSegment, MemberRows, rows_between
from dpac_engine.core.records import Kind
from dpac_engine.core.stripes import EVERYWHERE, Interval, key_position, state_position

_DEVICE = (Kind.WRITE, Kind.FILL, Kind.ZERO, Kind.TRIM)
_DATA = (Kind.WRITE, Kind.FILL)


class Kept(NamedTuple):
    """A row of the merged segment. `source` -1: it has no payload; else the payload is `payload_bytes` at `position`."""

    kind: int
    flags: int
    member: int
    lsn: int
    stamp: int
    offset: int
    length: int
    source: int
    position: int
    payload_bytes: int
    key: tuple[int, bytes] | None


def merged_rows(
    segments: Sequence[IndexedSegment],
    ordinals: Sequence[int],
    from_lsn: int,
    to_lsn: int,
    *,
    is_base: bool,
    within: Interval = EVERYWHERE,
    seeding: Collection[int] = (),
) -> Iterator[Kept]:
    """What is left of `[from_lsn, to_lsn)` at the positions `within`, in their order but for keys, which stay in that of the log.

    `is_base`: nothing older exists, so absence need not be told; but of members that are `seeding`, whose seed may bring what
    is older, what was zeroed and deleted must be.
    """
    for ordinal in ordinals:
        rows = rows_between(segments, ordinal, from_lsn, to_lsn)
        bare = is_base and ordinal not in seeding
        if within.has(state_position(ordinal)):
            yield from _state_rows(rows, ordinal, is_base)
        yield from _device_rows(rows, ordinal, bare, *within.device(ordinal))
        yield from _key_rows(rows, ordinal, segments, bare, within)


def _row(rows: MemberRows, at: int, ordinal: int, key: tuple[int, bytes] | None = None) -> Kept:
    return Kept(
        int(rows.kind[at]),
        int(rows.flags[at]),
        ordinal,
        int(rows.lsn[at]),
        int(rows.stamp[at]),
        int(rows.offset[at]),
        int(rows.length[at]),
        int(rows.source[at]) if rows.payload_bytes[at] else -1,
        int(rows.position[at]),
        int(rows.payload_bytes[at]),
        key,
    )


def _state_rows(rows: MemberRows, ordinal: int, is_base: bool) -> Iterator[Kept]:
    # The last reset (rows before it are gone already) and the last size; streams are kept whole.
    resets = np.flatnonzero(rows.kind == Kind.RESET)
    if len(resets) and not is_base:
        yield _row(rows, int(resets[-1]), ordinal)
    sizes = np.flatnonzero(rows.kind == Kind.RESIZE)
    if len(sizes):
        yield _row(rows, int(sizes[-1]), ordinal)
    for at in np.flatnonzero(rows.kind == Kind.APPEND).tolist():
        yield _row(rows, at, ordinal)


def _device_rows(rows: MemberRows, ordinal: int, is_base: bool, begin: int, end: int) -> Iterator[Kept]:
    picked: Int64Array = np.flatnonzero(np.isin(rows.kind, _DEVICE)).astype(np.int64)
    picked = picked[(rows.offset[picked] < end) & (rows.offset[picked] + rows.length[picked] > begin)]
    if not len(picked):
        return
    starts = rows.offset[picked]
    # Each row is its own source, so that the map tells which row a piece is left of.
    left = fold(starts, starts + rows.length[picked], picked, np.zeros(len(picked), np.int64), 1 << 62)
    for piece in left.lookup(begin, end - begin):
        row = _row(rows, piece.source, ordinal)
        if row.kind in _DATA:
            yield row._replace(
                offset=piece.offset,
                length=piece.length,
                position=row.position + piece.offset - row.offset,
                payload_bytes=piece.length,
            )
        elif not is_base:
            yield row._replace(offset=piece.offset, length=piece.length, source=ZEROES)


def _key_rows(
    rows: MemberRows, ordinal: int, segments: Sequence[IndexedSegment], is_base: bool, within: Interval
) -> Iterator[Kept]:
    newest: dict[tuple[int, bytes], int] = {}
    for at in np.flatnonzero(np.isin(rows.kind, (Kind.PUT, Kind.DELETE))).tolist():
        newest[segments[int(rows.source[at])].keys[int(rows.key_index[at])]] = at
    for key, at in newest.items():
        if (rows.kind[at] == Kind.PUT or not is_base) and within.has(key_position(ordinal, key)):
            yield _row(rows, at, ordinal, key)
