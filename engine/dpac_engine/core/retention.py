"""Retention: which checkpoints a target keeps, by age and by size, and which segments are merged for it.

Within the history every checkpoint stays. Of what is older, those stay that `RetentionSpec` counts (the newest of
each hour, day, week, month, year; tagged ones for their time), and always the newest one, at the boundary. Whatever lies
between two kept checkpoints is merged. Pure: plans are data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from dpac_api.models import JournalSpec, RetentionSpec
from dpac_engine.core.checkpoints import Mark
from dpac_engine.core.manifest import SegmentRef
from dpac_engine.core.segment import SegmentKind

MERGE_SEGMENTS_MIN = 64
"""Merging waits for so many segments past the horizon ..."""
MERGE_FRACTION_MIN = 0.25
"""... that hold at least this share of what is merged already, so that a base is not rewritten for a trifle."""


SIZE_FRACTION_LEFT = 0.8
"""Merging for size goes down to this share of the limit."""


class Horizon(NamedTuple):
    """Where the history ends: every checkpoint after `stamp_ns` stays. `short`: size alone made it later than asked."""

    stamp_ns: int
    short: bool


class Merge(NamedTuple):
    """Replace `segments` by merged ones, one for each range that ends in a kept checkpoint, and one for the rest."""

    segments: list[SegmentRef]
    keep_lsns: list[int]
    """LSNs of the kept checkpoints, ascending."""
    is_base: bool
    """Nothing older remains: what is zero, deleted or reset need not be told."""


def horizon(refs: Iterable[SegmentRef], journal: JournalSpec, now_ns: int) -> Horizon:
    """Where the history ends, by age and by what its log segments take.

    Over the size limit it ends at `SIZE_FRACTION_LEFT` of it, so that the next merge is not due with the next segment.
    """
    by_age = _by_age(journal, now_ns)
    logs = sorted((ref for ref in refs if ref.kind == SegmentKind.LOG), key=lambda ref: ref.lsn_to, reverse=True)
    limit, total, by_size = journal.size_max.bytes, 0, by_age
    if sum(ref.bytes for ref in logs) > limit:
        for ref in logs:
            total += ref.bytes
            if total > SIZE_FRACTION_LEFT * limit:
                by_size = max(by_size, ref.stamp_to)
                break
    return Horizon(max(by_age, by_size), by_size > by_age)


def is_short(refs: Iterable[SegmentRef], journal: JournalSpec, now_ns: int) -> bool:
    """Whether the size limit cost history that was asked for: something younger than it is merged already, or due."""
    refs = list(refs)
    by_age = _by_age(journal, now_ns)
    merged = any(ref.kind == SegmentKind.MERGED and ref.stamp_to > by_age for ref in refs)
    return merged or horizon(refs, journal, now_ns).short


def _by_age(journal: JournalSpec, now_ns: int) -> int:
    return now_ns - int(journal.history.seconds * 1e9)


def plan(
    refs: Sequence[SegmentRef],
    marks_of: Callable[[SegmentRef], Sequence[Mark]],
    journal: JournalSpec,
    retention: RetentionSpec,
    now_ns: int,
) -> Merge | None:
    """What to merge now, or None. `refs`: live segments in LSN order; `marks_of` opens one."""
    end = horizon(refs, journal, now_ns)
    newest = max((ref.lsn_to for ref in refs if ref.kind == SegmentKind.LOG), default=0)
    old_logs = [
        ref for ref in refs if ref.kind == SegmentKind.LOG and ref.stamp_to < end.stamp_ns and ref.lsn_to != newest
    ]
    if not old_logs:
        return None
    limit = max(ref.lsn_to for ref in old_logs)
    old = [ref for ref in refs if ref.lsn_to <= limit or (ref.kind != SegmentKind.LOG and ref.lsn_from < limit)]
    old_bytes = sum(ref.bytes for ref in old_logs)
    merged_bytes = sum(ref.bytes for ref in old if ref.kind == SegmentKind.MERGED)
    worth = len(old_logs) >= MERGE_SEGMENTS_MIN and old_bytes >= MERGE_FRACTION_MIN * merged_bytes
    if not (worth or end.short):
        return None
    marks = [mark for ref in old if ref.marks for mark in marks_of(ref)]
    kept = keep(marks, retention, now_ns)
    return Merge(old, [mark.lsn for mark in kept], is_base=True)


def keep(marks: Iterable[Mark], retention: RetentionSpec, now_ns: int) -> list[Mark]:
    """The checkpoints to keep of those past the horizon, oldest first."""
    ordered = sorted(marks, key=lambda mark: mark.lsn)
    if not ordered:
        return []
    kept = {ordered[-1].lsn: ordered[-1]}
    for count, period in _periods(retention):
        for mark in _newest_of_each(ordered, period)[-count:] if count else []:
            kept[mark.lsn] = mark
    tagged_from = now_ns - int(retention.tagged.seconds * 1e9)
    for mark in ordered:
        if mark.body.tags and mark.stamp_ns >= tagged_from:
            kept[mark.lsn] = mark
    return [kept[lsn] for lsn in sorted(kept)]


_Period = Callable[[datetime], tuple[int, ...]]


def _periods(retention: RetentionSpec) -> list[tuple[int, _Period]]:
    return [
        (retention.hourly, lambda when: (when.year, when.month, when.day, when.hour)),
        (retention.daily, lambda when: (when.year, when.month, when.day)),
        (retention.weekly, lambda when: tuple(when.isocalendar())[:2]),
        (retention.monthly, lambda when: (when.year, when.month)),
        (retention.yearly, lambda when: (when.year,)),
    ]


def _newest_of_each(ordered: Sequence[Mark], period: _Period) -> list[Mark]:
    newest: dict[tuple[int, ...], Mark] = {}
    for mark in ordered:
        newest[period(datetime.fromtimestamp(mark.stamp_ns / 1e9, UTC))] = mark
    return list(newest.values())
