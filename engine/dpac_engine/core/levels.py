"""Levels: neighbouring small segments of the history are joined, so that opening it does not cost a request a few seconds.

A joined segment holds every record and checkpoint of those it replaces: nothing is lost within the history, unlike by
merging past it (`core/retention.py`). Segments of `SEGMENT_BYTES` are large enough as they are: a restore's requests
grow with what it reads, not with how long ago it was written. Pure: a plan is data.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from dpac_engine.core.manifest import SegmentRef
from dpac_engine.core.sealing import SEGMENT_BYTES
from dpac_engine.core.segment import SegmentKind

LEVEL_SECONDS = (30, 300, 3600, 86_400)
"""What a segment of level 1, 2, 3 and 4 spans at most. Level 0 is as it was sealed."""
JOINED_BYTES_MAX = 2 * SEGMENT_BYTES


class Join(NamedTuple):
    """Replace `segments`, neighbours in the log, by one of `level`."""

    segments: list[SegmentRef]
    level: int


def plan(refs: Iterable[SegmentRef], now_ns: int) -> Join | None:
    """The oldest neighbours to join at the lowest level that has some; None if nothing is to do.

    `refs`: live segments in LSN order. Only spans that are over are joined, each byte at most once a level.
    """
    logs = [ref for ref in refs if ref.kind == SegmentKind.LOG]
    for level, seconds in enumerate(LEVEL_SECONDS, start=1):
        span_ns = seconds * 10**9
        done = [ref for ref in logs if ref.stamp_to // span_ns < now_ns // span_ns]
        for run in _runs(done, level, span_ns):
            if len(run) > 1:
                return Join(run, level)
    return None


def _runs(logs: Sequence[SegmentRef], level: int, span_ns: int) -> Iterator[list[SegmentRef]]:
    run = list(logs[:1])
    for before, ref in pairwise(logs):
        small = max(before.bytes, ref.bytes) < SEGMENT_BYTES and max(before.level, ref.level) < level
        adjacent = before.lsn_to == ref.lsn_from and before.epoch == ref.epoch
        together = before.stamp_to // span_ns == ref.stamp_to // span_ns
        if small and adjacent and together and sum(each.bytes for each in run) + ref.bytes <= JOINED_BYTES_MAX:
            run.append(ref)
        else:
            yield run
            run = [ref]
    yield run
