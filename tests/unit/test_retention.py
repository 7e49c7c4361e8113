"""Retention: what is kept by age, by calendar, by tag and by size."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from dpac_api.models import JournalSpec, RetentionSpec
from dpac_api.quantities import Duration, Size
from dpac_engine.core.checkpoints import Mark, MarkBody
from dpac_engine.core.manifest import MarkRange, SegmentRef
from dpac_engine.core.retention import MERGE_SEGMENTS_MIN, horizon, keep, plan, shortfall
from dpac_engine.core.segment import SegmentKind

NOW = datetime(2026, 3, 15, 12, tzinfo=UTC)
NOW_NS = int(NOW.timestamp()) * 10**9
MIB = 2**20


def mark(age: timedelta, tag: str = "") -> Mark:
    """A checkpoint of that age; older ones have lower LSNs."""
    stamp = NOW_NS - int(age.total_seconds() * 1e9)
    return Mark(1, stamp // 10**9, stamp, MarkBody(stamp // 10**9, 1, tags=[tag] if tag else []))


def ages(marks: list[Mark]) -> list[timedelta]:
    """How old they are, oldest first."""
    return [timedelta(seconds=(NOW_NS - kept.stamp_ns) / 1e9) for kept in marks]


def ref(number: int, age_seconds: int, *, size: int = MIB, kind: SegmentKind = SegmentKind.LOG) -> SegmentRef:
    """A segment of one checkpoint."""
    stamp = NOW_NS - age_seconds * 10**9
    marks = MarkRange(number, number, stamp, stamp, 1)
    return SegmentRef(f"s/{number}", kind, 1, number * 64, number * 64 + 64, stamp, stamp, size, "", marks=marks)


def marks_of(of: SegmentRef) -> list[Mark]:
    """Its checkpoint."""
    return [Mark(1, of.lsn_from, of.stamp_from, MarkBody(of.lsn_from // 64, 1))]


def test_the_newest_of_each_period_stays() -> None:
    """Two hours, three days: the newest checkpoint of each, and the newest of all."""
    every_half_hour = [mark(timedelta(minutes=30 * at)) for at in range(1, 48 * 5)]
    kept = keep(every_half_hour, RetentionSpec(hourly=2, daily=3), NOW_NS)
    assert ages(kept) == [
        timedelta(hours=36, minutes=30),
        timedelta(hours=12, minutes=30),
        timedelta(minutes=90),
        timedelta(minutes=30),
    ]


def test_weeks_months_and_years_are_calendar_ones_in_utc() -> None:
    """The newest of the ISO week, the month and the year before this one."""
    daily = [mark(timedelta(days=at, hours=1)) for at in range(800)]
    kept = keep(daily, RetentionSpec(weekly=2, monthly=2, yearly=3), NOW_NS)
    dates = [datetime.fromtimestamp(found.stamp_ns / 1e9, UTC).date().isoformat() for found in kept]
    assert dates == ["2024-12-31", "2025-12-31", "2026-02-28", "2026-03-08", "2026-03-15"]


def test_tagged_checkpoints_stay_for_their_time() -> None:
    """Within `tagged`, and no longer."""
    spec = RetentionSpec(tagged=Duration.parse("2d"))
    marks = [mark(timedelta(days=3), "old"), mark(timedelta(days=1), "young"), mark(timedelta(hours=1))]
    assert ages(keep(marks, spec, NOW_NS)) == [timedelta(days=1), timedelta(hours=1)]


def test_something_always_stays() -> None:
    """With no retention at all the newest remains; of nothing, nothing."""
    assert ages(keep([mark(timedelta(days=9)), mark(timedelta(days=8))], RetentionSpec(), NOW_NS)) == [
        timedelta(days=8)
    ]
    assert keep([], RetentionSpec(), NOW_NS) == []


def test_the_history_ends_by_age_or_earlier_by_size() -> None:
    """By size it is short, and says so."""
    journal = JournalSpec(history=Duration.parse("1h"), size_max=Size.parse("64MiB"))
    fits = [ref(at, 2000 - at, size=MIB) for at in range(64)]
    assert horizon(fits, journal, NOW_NS) == (NOW_NS - 3600 * 10**9, False, False)
    too_much = [ref(at, 2000 - at, size=MIB) for at in range(100)]
    end = horizon(too_much, journal, NOW_NS)
    assert end.short
    assert end.stamp_ns == too_much[48].stamp_to  # four fifths of the limit stay, so that a merge pays
    assert shortfall(too_much, journal, NOW_NS)
    merged = [ref(at, 2000 - at, size=MIB, kind=SegmentKind.MERGED) for at in range(100)]
    assert not horizon(merged, journal, NOW_NS).short


def test_history_that_size_cost_is_told_until_it_would_have_aged_out() -> None:
    """After a merge for size the limit holds again, and the history is short all the same."""
    journal = JournalSpec(history=Duration.parse("1h"), size_max=Size.parse("64MiB"))
    young = [ref(1, 600, size=MIB, kind=SegmentKind.MERGED), ref(2, 500, size=MIB)]
    assert shortfall(young, journal, NOW_NS)
    aged = [ref(1, 3700, size=MIB, kind=SegmentKind.MERGED), ref(2, 500, size=MIB)]
    assert not shortfall(aged, journal, NOW_NS)


def test_merging_waits_until_it_is_worth_it() -> None:
    """Not for a few segments; what is merged already is left alone."""
    journal = JournalSpec(history=Duration.parse("1m"))
    newest = ref(10_000, 0)
    few = [ref(at, 500) for at in range(1, MERGE_SEGMENTS_MIN)]
    assert plan([*few, newest], marks_of, journal, RetentionSpec(), NOW_NS) is None
    many = [*few, ref(MERGE_SEGMENTS_MIN, 500)]
    merge = plan([*many, newest], marks_of, journal, RetentionSpec(), NOW_NS)
    assert merge is not None
    assert merge.segments == many
    assert merge.stops == [many[-1].lsn_from]
    base = ref(0, 9000, size=1000 * MIB, kind=SegmentKind.MERGED)
    beside = plan([base, *many, newest], marks_of, journal, RetentionSpec(), NOW_NS)
    assert beside is not None
    assert (beside.segments, beside.is_base, beside.expired) == (many, False, [base])


def test_the_newest_segment_is_never_merged() -> None:
    """An idle group's last checkpoint, however old, stays in its own segment."""
    journal = JournalSpec(history=Duration.parse("1m"))
    refs = [ref(at, 90_000) for at in range(1, 200)]
    merge = plan(refs, marks_of, journal, RetentionSpec(), NOW_NS)
    assert merge is not None
    assert refs[-1] not in merge.segments
