"""Stripes: the base of a target in pieces that are rewritten one by one, each only once enough of it has changed.

A stripe is what one segment of the base tells, or several that overlap: an interval of *positions*, which order all that a
group's members hold. Stripes do not overlap and leave nothing out. Pure: works on indexes, no content is read.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from dpac_engine.core.extents import Int64Array
from dpac_engine.core.image import IndexedSegment
from dpac_engine.core.manifest import SegmentRef
from dpac_engine.core.records import Kind
from dpac_engine.core.segment import RowArray

STRIPE_BYTES = 2**30
"""Stored bytes that are rewritten before they are published together, and so about what a crash can cost."""
FOLD_SHARE = 0.25
"""A stripe is rewritten once what lies over it is at least this share of it."""
SMALL_BYTES = 16 * 2**20
"""Stripes so small are rewritten with a neighbour that is, so that many small ones do not stay."""
DELETED_BYTES = 2**16
"""What a deleted key is taken to free: its record does not tell."""

Position = tuple[int, int, int, bytes]
"""(member, 0 for its size and streams, 1 for its device, 2 for its keys; offset or key space; key)."""
LOWEST: Position = (0, 0, 0, b"")
HIGHEST: Position = (2**32, 0, 0, b"")

_STATE, _DEVICE, _KEYS = 0, 1, 2
_STATE_KINDS = (Kind.RESET, Kind.RESIZE, Kind.APPEND)
_DEVICE_KINDS = (Kind.WRITE, Kind.FILL, Kind.ZERO, Kind.TRIM)
_KEY_KINDS = (Kind.PUT, Kind.DELETE)


class Interval(NamedTuple):
    """Positions `[first, end)`."""

    first: Position
    end: Position

    def overlaps(self, other: Interval) -> bool:
        """Whether they have a position in common."""
        return self.first < other.end and other.first < self.end

    def device(self, ordinal: int) -> tuple[int, int]:
        """Which bytes of the member's device lie in it; empty if the end is not greater than the begin."""
        return _offset(self.first, ordinal), _offset(self.end, ordinal)

    def has(self, position: Position) -> bool:
        """Whether the position lies in it."""
        return self.first <= position < self.end


EVERYWHERE = Interval(LOWEST, HIGHEST)


def _offset(position: Position, ordinal: int) -> int:
    device = (ordinal, _DEVICE)
    if position[:2] == device:
        return position[2]
    return 0 if position[:2] < device else 1 << 62


def state_position(ordinal: int) -> Position:
    """Where a member's size, streams and resets are."""
    return (ordinal, _STATE, 0, b"")


def key_position(ordinal: int, key: tuple[int, bytes]) -> Position:
    """Where a key of a member is."""
    return (ordinal, _KEYS, *key)


class Outline(NamedTuple):
    """What a plan needs to know of a merged segment."""

    span: Interval
    data_bytes: int
    freed_bytes: int
    """What zeroes, trims and deletes in it may free of what lies below."""
    resets: frozenset[int]
    """Members of which all that lies below is void."""


def outline(segment: IndexedSegment) -> Outline:
    """Read off an index."""
    rows, firsts, ends = segment.rows, list[Position](), list[Position]()
    for ordinal in np.unique(rows["member"]).tolist():
        mine = rows[rows["member"] == ordinal]
        if np.isin(mine["kind"], _STATE_KINDS).any():
            firsts.append(state_position(ordinal))
            ends.append((ordinal, _STATE, 0, b"\0"))
        device = mine[np.isin(mine["kind"], _DEVICE_KINDS)]
        if len(device):
            firsts.append((ordinal, _DEVICE, int(device["offset"].min()), b""))
            ends.append((ordinal, _DEVICE, int((device["offset"] + device["length"]).max()), b""))
    for ordinal, keys in _keys(segment).items():
        firsts.append(key_position(ordinal, min(keys)))
        space, last = max(keys)
        ends.append(key_position(ordinal, (space, last + b"\0")))
    kinds = rows["kind"]
    absent = rows["length"][(kinds == Kind.ZERO) | (kinds == Kind.TRIM)]
    return Outline(
        Interval(min(firsts), max(ends)) if firsts else Interval(LOWEST, LOWEST),
        int(rows["payload_bytes"].sum()),
        int(absent.sum()) + DELETED_BYTES * int((kinds == Kind.DELETE).sum()),
        frozenset(rows["member"][kinds == Kind.RESET].tolist()),
    )


def _keys(segment: IndexedSegment) -> dict[int, list[tuple[int, bytes]]]:
    found: dict[int, list[tuple[int, bytes]]] = {}
    members = segment.rows["member"][np.isin(segment.rows["kind"], _KEY_KINDS)].tolist()
    for ordinal, key in zip(members, segment.keys, strict=True):
        found.setdefault(ordinal, []).append((key[0], key[1]))
    return found


class Stripe(NamedTuple):
    """An interval, and the segments of the base that tell of it."""

    interval: Interval
    refs: list[SegmentRef]

    @property
    def stored_bytes(self) -> int:
        """What the base takes there."""
        return sum(ref.bytes for ref in self.refs)


def divide(segments: Iterable[tuple[SegmentRef, Outline]]) -> list[Stripe]:
    """Stripes in order, from the lowest position to the highest. Segments that overlap are of one stripe."""
    groups: list[tuple[Interval, list[SegmentRef]]] = []
    for ref, of in sorted(segments, key=lambda pair: pair[1].span):
        if groups and of.span.first < groups[-1][0].end:
            before, refs = groups[-1]
            groups[-1] = Interval(before.first, max(before.end, of.span.end)), [*refs, ref]
        else:
            groups.append((of.span, [ref]))
    if not groups:
        return [Stripe(EVERYWHERE, [])]
    firsts = [LOWEST, *(span.first for span, _ in groups[1:]), HIGHEST]
    return [Stripe(Interval(*firsts[at : at + 2]), refs) for at, (_, refs) in enumerate(groups)]


class Burden:
    """What lies over each stripe. Shapes (n,), stored bytes: of what replaces or adds, and what may be freed."""

    def __init__(self, stripes: Sequence[Stripe]) -> None:
        """Nothing yet."""
        self._firsts = [stripe.interval.first for stripe in stripes]
        self.data_bytes: Int64Array = np.zeros(len(stripes), np.int64)
        self.freed_bytes: Int64Array = np.zeros(len(stripes), np.int64)

    def add(self, segment: IndexedSegment, stored_bytes: int) -> None:
        """A segment that lies there too. A row counts for the stripe in which it begins, absence wherever it is."""
        rows = segment.rows
        data, freed = np.zeros_like(self.data_bytes), np.zeros_like(self.freed_bytes)
        for ordinal in np.unique(rows["member"][np.isin(rows["kind"], _DEVICE_KINDS)]).tolist():
            _weigh_device(rows[rows["member"] == ordinal], ordinal, self._firsts, data, freed)
        keyed = rows[np.isin(rows["kind"], _KEY_KINDS)]
        columns = (keyed["member"].tolist(), keyed["payload_bytes"].tolist(), keyed["kind"].tolist())
        for ordinal, size, kind, key in zip(*columns, segment.keys, strict=True):
            at = bisect_right(self._firsts, key_position(ordinal, (key[0], key[1]))) - 1
            data[at] += size
            freed[at] += DELETED_BYTES if kind == Kind.DELETE else 0
        self.data_bytes += np.ceil(data * (stored_bytes / max(int(data.sum()), 1))).astype(np.int64)
        self.freed_bytes += freed


def _weigh_device(rows: RowArray, ordinal: int, firsts: list[Position], data: Int64Array, freed: Int64Array) -> None:
    low = bisect_right(firsts, (ordinal, _DEVICE, 0, b"")) - 1
    high = bisect_right(firsts, (ordinal, _DEVICE, 1 << 62, b"")) - 1
    bounds = np.array([first[2] for first in firsts[low + 1 : high + 1]], np.int64)
    has_data = np.isin(rows["kind"], (Kind.WRITE, Kind.FILL))
    begins = rows["offset"][has_data].astype(np.int64)
    sizes = rows["payload_bytes"][has_data].astype(np.int64)
    np.add.at(data, low + np.searchsorted(bounds, begins, side="right"), sizes)
    for row in rows[np.isin(rows["kind"], (Kind.ZERO, Kind.TRIM))]:
        begin, end = int(row["offset"]), int(row["offset"] + row["length"])
        first = int(np.searchsorted(bounds, begin, side="right"))
        last = int(np.searchsorted(bounds, end, side="left"))
        edges = [begin, *bounds[first:last].tolist(), end]
        freed[low + first : low + last + 1] += np.diff(edges)


def chosen(
    stripes: Sequence[Stripe], burden: Burden, reset: Collection[int] = (), spared: Collection[str] = ()
) -> list[bool]:
    """Which stripes to rewrite now: those that changed enough, the most changed first, within `STRIPE_BYTES`.

    `reset`: members of which all that the base has is void: their stripes in any case. `spared`: names of segments whose
    stripes stay.
    """
    base = np.array([stripe.stored_bytes for stripe in stripes], np.int64)
    over = burden.data_bytes + np.minimum(burden.freed_bytes, base)
    free = [not any(ref.name in spared for ref in stripe.refs) for stripe in stripes]
    picked = [any(_touches(stripe.interval, ordinal) for ordinal in reset) for stripe in stripes]
    if any(pick and not may for pick, may in zip(picked, free, strict=True)):
        return [False] * len(stripes)
    shares = over / np.maximum(base, 1)
    total = sum(int(base[at] + over[at]) for at, pick in enumerate(picked) if pick)
    for at in np.argsort(-shares, kind="stable").tolist():
        if over[at] == 0 or shares[at] < FOLD_SHARE or total >= STRIPE_BYTES:
            break
        if not picked[at] and free[at]:
            picked[at] = True
            total += int(base[at] + over[at])
    for at in np.flatnonzero(picked).tolist():
        for beside in (at - 1, at + 1):
            if 0 <= beside < len(stripes) and free[beside] and max(base[at], base[beside]) < SMALL_BYTES:
                picked[beside] = True
    return picked


def _touches(interval: Interval, ordinal: int) -> bool:
    return interval.overlaps(Interval(state_position(ordinal), state_position(ordinal + 1)))


class Piece(NamedTuple):
    """Neighbouring stripes that are worked on together: rewritten, or left with what lies over them."""

    interval: Interval
    refs: list[SegmentRef]
    """Of the base; none if it stays."""
    is_rewritten: bool


def pieces(stripes: Sequence[Stripe], burden: Burden, rewritten: Sequence[bool]) -> Iterator[Piece]:
    """All positions in order, in pieces of about `STRIPE_BYTES` at most, or of one stripe."""
    begin, size = 0, 0
    for at, stripe in enumerate(stripes):
        mine = int(burden.data_bytes[at]) + stripe.stored_bytes
        if at > begin and (rewritten[at] != rewritten[begin] or size + mine > STRIPE_BYTES):
            yield _piece(stripes[begin:at], rewritten[begin])
            begin, size = at, 0
        size += mine
    yield _piece(stripes[begin:], rewritten[begin])


def _piece(stripes: Sequence[Stripe], is_rewritten: bool) -> Piece:
    interval = Interval(stripes[0].interval.first, stripes[-1].interval.end)
    return Piece(interval, [ref for stripe in stripes for ref in stripe.refs] if is_rewritten else [], is_rewritten)
