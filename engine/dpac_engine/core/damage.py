"""Damage: which ranges, keys and checkpoints are lost with stored bytes that are not what was written. Pure.

A row is seen by an unbroken run of checkpoints: from the first one after it until all of it is overwritten. So
past a segment's own range, its damage hurts fewer and fewer checkpoints, and where that ends is found by halving.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dpac_engine.core.checkpoints import Mark
from dpac_engine.core.image import Image, Span
from dpac_engine.core.records import Kind
from dpac_engine.core.segment import RowArray

FOLDS_MAX = 256
"""A segment's own checkpoints are looked at one by one up to so many; with more, all of them count as hurt."""
_DATA = (Kind.WRITE, Kind.FILL)


class Run(NamedTuple):
    """Checkpoints that need a damaged object, by sequence. `last_sequence` None: and all that come after."""

    first: str
    first_sequence: int
    last: str
    last_sequence: int | None

    def __contains__(self, sequence: object) -> bool:
        return (
            isinstance(sequence, int)
            and self.first_sequence <= sequence
            and (self.last_sequence is None or sequence <= self.last_sequence)
        )


EVERY_CHECKPOINT = Run("", 0, "", None)


@dataclass(frozen=True)
class LostPart:
    """What of a member lies in damaged bytes. `more`: ranges or paths beyond those named."""

    member: str
    ranges: Sequence[tuple[int, int]] = ()
    """(offset, length) of a volume."""
    paths: Sequence[str] = ()
    more: int = 0


@dataclass(frozen=True)
class Finding:
    """An object that is not what was written, and what is lost with it."""

    object: str
    problem: str
    runs: Sequence[Run] = ()
    """The checkpoints that need it, oldest first; none: no checkpoint does."""
    exact: bool = True
    """False: it may be fewer checkpoints than `runs` says."""
    lost: Sequence[LostPart] = ()


class Spare(NamedTuple):
    """An object that nothing here needs, and why: its space can be had back."""

    object: str
    reason: str


@dataclass(frozen=True)
class Verification:
    """What reading a whole repository found."""

    objects: int
    bytes_read: int
    checkpoints: int
    """Recoverable ones, all of whose objects are sound."""
    findings: Sequence[Finding]
    spares: Sequence[Spare]
    newest: Mark | None
    """The newest checkpoint all of whose objects were read and are sound."""
    manifest: int
    """Number of the newest manifest seen, whether sound or not; 0: none."""


def spans_of_blocks(numbers: Iterable[int], block_bytes: int) -> list[Span]:
    """Bytes of the block stream that those blocks hold, neighbours joined."""
    spans: list[Span] = []
    for number in sorted(numbers):
        begin = number * block_bytes
        if spans and spans[-1].end == begin:
            spans[-1] = Span(spans[-1].begin, begin + block_bytes)
        else:
            spans.append(Span(begin, begin + block_bytes))
    return spans


def lost_rows(rows: RowArray, keys: Sequence[tuple[int, bytes]], spans: Sequence[Span]) -> tuple[RowArray, list[int]]:
    """The rows whose payload lies in `spans`, and of each its place in `keys` (-1: it has no key)."""
    begins = rows["position"].astype(np.int64)
    ends = begins + rows["payload_bytes"].astype(np.int64)
    hit = np.zeros(len(rows), bool)
    for span in spans:
        hit |= (begins < span.end) & (ends > span.begin)
    keyed = np.isin(rows["kind"], (Kind.PUT, Kind.DELETE))
    places = np.where(keyed, np.cumsum(keyed) - 1, -1)
    assert not len(places) or places.max() < len(keys)
    return rows[hit], places[hit].tolist()


def lost_ranges(rows: RowArray, spans: Sequence[Span]) -> list[tuple[int, int]]:
    """(offset, length) of device ranges whose data lies in `spans`, in order and joined."""
    pieces: list[tuple[int, int]] = []
    for row in rows[np.isin(rows["kind"], _DATA)]:
        position, offset = int(row["position"]), int(row["offset"])
        for span in spans:
            begin, end = max(span.begin, position), min(span.end, position + int(row["payload_bytes"]))
            if begin < end:
                pieces.append((offset + begin - position, offset + end - position))
    joined: list[tuple[int, int]] = []
    for begin, end in sorted(pieces):
        if joined and begin <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(joined[-1][1], end)
        else:
            joined.append((begin, end))
    return [(begin, end - begin) for begin, end in joined]


def image_reads(image: Image, members: Iterable[tuple[int, str]], source: int, spans: Sequence[Span]) -> bool:
    """Whether the members (ordinal, kind) at a checkpoint are made of bytes in `spans` of the image's segment `source`."""
    return any(
        (image.volume(ordinal) if kind == "volume" else image.tree(ordinal)).reads(source, spans)
        for ordinal, kind in members
    )


def hurt(
    marks: Sequence[Mark], lsn_from: int, lsn_to: int, needs: Callable[[Mark], bool]
) -> tuple[list[tuple[int, int]], bool]:
    """Which of `marks` (by rising LSN) need a damaged segment, as half-open index ranges; and whether that is exact.

    `needs` says it of one, by folding it. Within the segment's own range every checkpoint is asked, past it the end is searched.
    """
    begin = bisect_left(marks, lsn_from, key=lambda mark: mark.lsn)
    own_end = bisect_left(marks, lsn_to, key=lambda mark: mark.lsn)
    exact = own_end - begin <= FOLDS_MAX
    own = [index for index in range(begin, own_end) if not exact or needs(marks[index])]
    low, high = own_end, len(marks)
    while low < high:
        middle = (low + high) // 2
        if needs(marks[middle]):
            low = middle + 1
        else:
            high = middle
    return _ranges([*own, *range(own_end, low)]), exact


def _ranges(indexes: Iterable[int]) -> list[tuple[int, int]]:
    ranges: list[tuple[int, int]] = []
    for index in indexes:
        if ranges and ranges[-1][1] == index:
            ranges[-1] = ranges[-1][0], index + 1
        else:
            ranges.append((index, index + 1))
    return ranges


def runs_of(marks: Sequence[Mark], ranges: Iterable[tuple[int, int]]) -> list[Run]:
    """The checkpoints in index ranges of `marks`; one that reaches the newest has no end."""
    return [
        Run(
            marks[begin].id,
            marks[begin].sequence,
            marks[end - 1].id,
            None if end == len(marks) else marks[end - 1].sequence,
        )
        for begin, end in ranges
    ]
