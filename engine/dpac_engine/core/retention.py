"""Retention: which checkpoints a target keeps, by age and by size, and which segments are merged for it.

Within the history every checkpoint stays. Of what is older, those stay that `RetentionSpec` counts (the newest of
each hour, day, week, month, year; tagged ones for their time; so many good ones), those that are held, and always the newest
one, at the boundary. Whatever lies between two kept checkpoints is merged. Pure: plans are data.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import UTC, datetime
from itertools import accumulate
from typing import NamedTuple

from dpac_api.models import JournalSpec, RetentionSpec
from dpac_engine.core.checkpoints import Mark
from dpac_engine.core.folding import barriers
from dpac_engine.core.manifest import SegmentRef
from dpac_engine.core.segment import SegmentKind

MERGE_SEGMENTS_MIN = 64
"""Merging waits for so many segments past the horizon."""
MERGE_BYTES_MAX = 256 * 2**20
"""Stored bytes of the log that are merged at a time, so that memory is bounded however much has aged out."""

SIZE_FRACTION_LEFT = 0.8
"""Where the history that is asked for does not fit, merging goes down to this share of the limit."""
SIZE_FRACTION_MAX = 0.95
"""The history fits if it takes at most this share of the limit: in the rest, what has aged out waits until merging it pays."""
DAY_NS = 86_400 * 10**9
MIB = 2**20


class Horizon(NamedTuple):
    """Where the history ends: every checkpoint after `stamp_ns` stays."""

    stamp_ns: int
    short: bool
    """Size alone made it later than asked."""
    full: bool
    """The log takes more than it may: what is past the horizon is merged at once."""


class Shortfall(NamedTuple):
    """How much of the history that was asked for is there, and what would do."""

    kept_seconds: float
    day_bytes: int
    """What a day of changes takes at the target, by the log that is there."""
    fits: bool
    """By that, the limit is large enough by now: the history grows back."""
    size_needed_bytes: int
    """The size limit with which the history would fit, rounded up."""


class Merge(NamedTuple):
    """Replace `segments` by merged ones, one layer for each range that ends in a stop, and one for the rest."""

    segments: list[SegmentRef]
    """Of the log, of seeds, and what the merge before this one left behind its last checkpoint."""
    stops: list[int]
    """LSNs of the kept checkpoints among them, and of barriers, ascending."""
    is_base: bool
    """Nothing older remains: what is zero, deleted or reset need not be told."""
    expired: list[SegmentRef]
    """Merged segments whose checkpoint is not kept any longer."""


def horizon(refs: Iterable[SegmentRef], journal: JournalSpec, now_ns: int) -> Horizon:
    """Where the history ends, by age and by what its log segments take.

    Where the history alone takes more than its share of the limit it ends at `SIZE_FRACTION_LEFT` of it, so that the next
    merge is not due with the next segment.
    """
    by_age, limit = _by_age(journal, now_ns), journal.size_max.bytes
    logs = sorted(_logs(refs), key=lambda ref: ref.lsn_to, reverse=True)
    full = sum(ref.bytes for ref in logs) > limit
    wanted_bytes = sum(ref.bytes for ref in logs if ref.stamp_to >= by_age)
    if not full or wanted_bytes <= SIZE_FRACTION_MAX * limit:
        return Horizon(by_age, False, full)
    total = 0
    for ref in logs:
        total += ref.bytes
        if total > SIZE_FRACTION_LEFT * limit:
            end = ref.stamp_to if total <= limit else ref.stamp_to + 1
            return Horizon(max(by_age, end), end > by_age, full)
    raise AssertionError("more than the limit is more than a share of it")


def shortfall(refs: Iterable[SegmentRef], journal: JournalSpec, now_ns: int) -> Shortfall | None:
    """What the size limit cost of the history that was asked for; None if nothing of it is merged already, or due."""
    refs = list(refs)
    by_age, end = _by_age(journal, now_ns), horizon(refs, journal, now_ns)
    merged = max((ref.stamp_to for ref in refs if ref.kind == SegmentKind.MERGED), default=0)
    if merged <= by_age and not end.short:
        return None
    logs = _logs(refs)
    span_ns = max(now_ns - min((ref.stamp_from for ref in logs), default=now_ns), 1)
    day_bytes = sum(ref.bytes for ref in logs) * DAY_NS // span_ns
    needed = int(day_bytes * journal.history.seconds / 86_400 / SIZE_FRACTION_MAX)
    kept_ns = now_ns - max(merged, end.stamp_ns)
    return Shortfall(max(0, kept_ns) / 1e9, day_bytes, needed <= journal.size_max.bytes, -(-needed // MIB) * MIB)


def _logs(refs: Iterable[SegmentRef]) -> list[SegmentRef]:
    return [ref for ref in refs if ref.kind == SegmentKind.LOG]


def _by_age(journal: JournalSpec, now_ns: int) -> int:
    return now_ns - int(journal.history.seconds * 1e9)


def plan(
    refs: Sequence[SegmentRef],
    marks_of: Callable[[SegmentRef], Sequence[Mark]],
    journal: JournalSpec,
    retention: RetentionSpec,
    now_ns: int,
    held: Collection[int] = (),
    damaged: Collection[str] = (),
) -> Merge | None:
    """What to merge now, or None. `refs`: live segments in LSN order; `marks_of` opens one; `held`: LSNs of held checkpoints.

    Of the log the oldest goes first, `MERGE_BYTES_MAX` at a time. What is `damaged` stays, with what is needed to read it.
    """
    end = horizon(refs, journal, now_ns)
    newest = max((ref.lsn_to for ref in refs if ref.kind == SegmentKind.LOG), default=0)
    due = [
        ref for ref in _logs(refs) if ref.stamp_to < end.stamp_ns and ref.lsn_to != newest and ref.name not in damaged
    ]
    if not due or not (len(due) >= MERGE_SEGMENTS_MIN or end.full):
        return None
    totals = accumulate(ref.bytes for ref in due)
    taken = [ref for ref, total in zip(due, totals, strict=True) if total <= MERGE_BYTES_MAX] or due[:1]
    limit = max(ref.lsn_to for ref in taken)
    merged = [ref for ref in refs if ref.kind == SegmentKind.MERGED]
    settled = max((ref.lsn_to - 1 for ref in merged if ref.marks), default=limit)
    segments = [
        ref
        for ref in refs
        if ref.name not in damaged
        and (
            ref.lsn_to <= limit
            if ref.kind == SegmentKind.LOG
            else ref.lsn_from < limit and (ref.kind == SegmentKind.FILL or ref.lsn_from >= max(settled, 1))
        )
    ]
    marked = [ref for ref in merged if ref.marks and ref.name not in damaged]
    marks = {ref.name: marks_of(ref) for ref in [*segments, *marked] if ref.marks}
    shared = checkpoints_of([mark for of in marks.values() for mark in of], lambda: _marks_after(refs, limit, marks_of))
    kept = {mark.lsn for mark in keep(shared, retention, now_ns, held)}
    stops = {mark.lsn for ref in segments for mark in marks.get(ref.name, ()) if mark.lsn in kept}
    first, last = min(ref.lsn_from for ref in segments), max(ref.lsn_to for ref in segments)
    stops |= {lsn for lsn in barriers(refs, damaged) if first < lsn < last}
    expired = [ref for ref in marked if not any(mark.lsn in kept for mark in marks[ref.name])]
    return Merge(segments, sorted(stops), not merged, [ref for ref in expired if ref not in segments])


def _marks_after(
    refs: Iterable[SegmentRef], lsn: int, marks_of: Callable[[SegmentRef], Sequence[Mark]]
) -> Sequence[Mark]:
    """The first mark behind an LSN."""
    after = next((ref for ref in refs if ref.marks and ref.kind == SegmentKind.LOG and ref.lsn_from >= lsn), None)
    return marks_of(after)[:1] if after else ()


def checkpoints_of(marks: Sequence[Mark], after: Callable[[], Sequence[Mark]] = tuple) -> Sequence[Mark]:
    """The marks of a shard that are checkpoints of all: those that neither a later one nor one of `after` calls void."""
    if not any(mark.body.shards for mark in marks):
        return marks
    void = {at for mark in (*marks, *after()) for at in range(mark.body.void_from, mark.body.void_to)}
    return [mark for mark in marks if mark.sequence not in void]


def keep(marks: Iterable[Mark], retention: RetentionSpec, now_ns: int, held: Collection[int] = ()) -> list[Mark]:
    """The checkpoints to keep of those past the horizon, oldest first. `held`: LSNs of those that stay in any case."""
    ordered = sorted(marks, key=lambda mark: mark.lsn)
    if not ordered:
        return []
    kept = {mark.lsn: mark for mark in [ordered[-1], *_good(ordered, retention.keep_good)]}
    for count, period in _periods(retention):
        for mark in _newest_of_each(ordered, period)[-count:] if count else []:
            kept[mark.lsn] = mark
    tagged_from = now_ns - int(retention.tagged.seconds * 1e9)
    for mark in ordered:
        if mark.lsn in held or (mark.body.tags and mark.stamp_ns >= tagged_from):
            kept[mark.lsn] = mark
    return [kept[lsn] for lsn in sorted(kept)]


def _good(ordered: Sequence[Mark], count: int) -> list[Mark]:
    """The newest application-consistent ones; for want of those, the newest."""
    proven = [mark for mark in ordered if mark.body.app][-count:]
    others = [mark for mark in ordered if not mark.body.app]
    return [*proven, *others[max(0, len(others) - count + len(proven)) :]]


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
