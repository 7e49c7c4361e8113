"""The laws of retention, over random histories, limits, holds, damage and interruptions."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from dpac_api.errors import Corruption, Temporary, Unrecoverable
from dpac_api.models import FilesystemTargetSpec, JournalSpec, RetentionSpec
from dpac_api.quantities import Duration, Size
from dpac_engine.control.compaction import GRACE_NS
from dpac_engine.control.repositories import TargetRecovery
from dpac_engine.control.worker_api import HoldChange
from dpac_engine.core import levels, retention
from dpac_engine.core.checkpoints import Mark, MarkBody
from dpac_engine.core.manifest import Hold, SegmentRef, mark_range
from dpac_engine.core.retention import SIZE_FRACTION_LEFT, SIZE_FRACTION_MAX, horizon, plan, shortfall
from dpac_engine.core.segment import SegmentKind
from dpac_engine.io.repository import RepositoryWriter
from dpac_engine.io.stores.memory import MemoryStore
from tests.unit.test_compaction import GROUP, KEY_ID, Copy

BEGIN_NS = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp()) * 10**9
HOUR_NS = 3600 * 10**9
KIB = 2**10
PERIODS: dict[str, Callable[[datetime], tuple[int, ...]]] = {
    "hourly": lambda when: (when.year, when.month, when.day, when.hour),
    "daily": lambda when: (when.year, when.month, when.day),
    "weekly": lambda when: (when.isocalendar().year, when.isocalendar().week),
    "monthly": lambda when: (when.year, when.month),
    "yearly": lambda when: (when.year,),
}


class History:
    """A target's segments as plans see them: what plans say is done to them, and nothing else."""

    def __init__(self, chance: random.Random) -> None:
        self.chance, self.now_ns, self.lsn = chance, BEGIN_NS, 0
        self.refs: list[SegmentRef] = []
        self.marks: dict[str, list[Mark]] = {}
        self.ever: list[Mark] = []
        self.held: set[int] = set()

    def grow(self) -> None:
        """A while passes, and a segment of a few checkpoints comes."""
        first, marks = self.lsn, []
        begun_ns = self.now_ns
        for _ in range(self.chance.randint(1, 3)):
            self.now_ns += self.chance.choice((10**9, HOUR_NS // 7, 5 * HOUR_NS, 30 * HOUR_NS))
            self.lsn += 64
            tags = ["t"] if self.chance.random() < 0.1 else []
            body = MarkBody(self.lsn // 64, 1, app=self.chance.random() < 0.1, tags=tags)
            marks.append(Mark(1, self.lsn, self.now_ns, body))
        self.lsn += 64
        size = self.chance.randrange(1, 64) * KIB
        self._add(SegmentKind.LOG, (first, self.lsn), (begun_ns, self.now_ns), size, marks)
        self.ever += marks

    def _add(
        self, kind: SegmentKind, lsns: tuple[int, int], stamps: tuple[int, int], size: int, marks: list[Mark]
    ) -> None:
        name = f"s/{kind}-{lsns[0]}-{lsns[1]}-{len(self.marks)}"
        self.refs.append(SegmentRef(name, kind, 1, *lsns, *stamps, size, "", marks=mark_range(marks)))
        self.marks[name] = marks

    def thin(self, journal: JournalSpec, kept: RetentionSpec) -> int | None:
        """Do what is to do now; the LSN up to which was merged, None if nothing was."""
        merge = plan(self.refs, lambda ref: self.marks[ref.name], journal, kept, self.now_ns, self.held)
        if merge is None:
            return None
        left = {mark.lsn: mark for ref in merge.segments for mark in self.marks[ref.name]}
        stamps = (min(ref.stamp_from for ref in merge.segments), max(ref.stamp_to for ref in merge.segments))
        gone = {ref.name for ref in (*merge.segments, *merge.expired)}
        self.refs = [ref for ref in self.refs if ref.name not in gone]
        begin = 0 if merge.is_base else merge.segments[0].lsn_from
        for lsn in merge.stops:
            self._add(SegmentKind.MERGED, (begin, lsn + 1), stamps, KIB, [left[lsn]])
            begin = lsn
        for ref in merge.expired:
            self._add(SegmentKind.MERGED, (ref.lsn_from, ref.lsn_to), (ref.stamp_from, ref.stamp_to), ref.bytes, [])
        self.refs.sort(key=lambda ref: (ref.lsn_from, ref.lsn_to))
        return max(ref.lsn_to for ref in merge.segments)

    def present(self) -> list[Mark]:
        """The checkpoints there are, oldest first."""
        return sorted((mark for ref in self.refs for mark in self.marks[ref.name]), key=lambda mark: mark.lsn)


@pytest.fixture
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Merge however little there is."""
    monkeypatch.setattr(retention, "MERGE_SEGMENTS_MIN", 1)


def journal_of(history: str, size_bytes: int) -> JournalSpec:
    """Any limit, those that the API refuses too."""
    return JournalSpec(history=Duration.parse(history)).model_copy(update={"size_max": Size.of_bytes(size_bytes)})


@pytest.mark.usefixtures("_at_once")
def test_whatever_is_declared_the_laws_of_retention_hold(seed: int) -> None:
    """The newest stays, and what is held, tagged, good or counted; within the history all, or it is said; twice is as once."""
    chance = random.Random(seed)
    for number in range(60):
        history = History(chance)
        journal = journal_of(chance.choice(("1h", "2d", "30d")), chance.choice((1, 40 * KIB, 400 * KIB, 2**40)))
        kept = RetentionSpec(
            **{name: chance.choice((0, 0, 1, 3, 7)) if number % 2 else 0 for name in PERIODS},  # type: ignore[arg-type]
            keep_good=chance.randint(1, 3),
            tagged=Duration.parse(chance.choice(("0s", "5d", "100d"))),
        )
        for step in range(chance.randint(1, 60)):
            told = f"seed {seed}, history {number}, step {step}"
            history.grow()
            if chance.random() < 0.1:
                history.held.add(chance.choice(history.present()).lsn)
            before = history.present()
            merged_to = history.thin(journal, kept)
            after = {mark.lsn: mark for mark in history.present()}
            check_laws(history, journal, kept, before, after, merged_to, told)
            assert history.thin(journal, kept) is None, f"{told}: a second look found more to do"


@pytest.mark.usefixtures("_at_once")
def test_over_years_the_calendar_keeps_what_it_counts_and_no_more(seed: int) -> None:
    """Six years, thinned about every month: hours, days, ISO weeks, months and years, each the newest of its own."""
    chance = random.Random(seed)
    history, journal = History(chance), journal_of("2d", 2**40)
    kept = RetentionSpec(hourly=24, daily=30, weekly=8, monthly=12, yearly=5, keep_good=1)
    while history.now_ns < BEGIN_NS + 6 * 366 * 24 * HOUR_NS:
        for _ in range(chance.randint(10, 60)):
            history.grow()
        before = history.present()
        merged_to = history.thin(journal, kept)
        after = {mark.lsn: mark for mark in history.present()}
        check_laws(history, journal, kept, before, after, merged_to, f"seed {seed}, {history.now_ns}")
    years = {datetime.fromtimestamp(mark.stamp_ns / 1e9, UTC).year for mark in history.present()}
    assert len(years) >= 5, f"seed {seed}: {years}"


def check_laws(
    history: History,
    journal: JournalSpec,
    kept: RetentionSpec,
    before: list[Mark],
    after: dict[int, Mark],
    merged_to: int | None,
    told: str,
) -> None:
    """After one thinning of a history."""
    now_ns = history.now_ns
    assert before[-1].lsn in after, f"{told}: the newest checkpoint is gone"
    assert history.held <= set(after), f"{told}: a held checkpoint is gone"
    for mark in before:
        if mark.body.tags and mark.stamp_ns >= now_ns - kept.tagged.seconds * 1e9:
            assert mark.lsn in after, f"{told}: a tagged checkpoint is gone before its time"
    if shortfall(history.refs, journal, now_ns) is None:
        for mark in history.ever:
            if mark.stamp_ns >= now_ns - journal.history.seconds * 1e9:
                assert mark.lsn in after, f"{told}: the history has a hole, and nobody says so"
    logs = [ref for ref in history.refs if ref.kind == SegmentKind.LOG]
    assert sum(ref.bytes for ref in logs) <= journal.size_max.bytes or len(logs) == 1, f"{told}: more than the limit"
    if merged_to is not None:
        past = [mark for mark in history.ever if mark.lsn < merged_to]
        expected = {past[-1].lsn}
        for name, period in PERIODS.items():
            newest = {period(datetime.fromtimestamp(mark.stamp_ns / 1e9, UTC)): mark.lsn for mark in past}
            count: int = getattr(kept, name)
            expected |= set(list(newest.values())[len(newest) - count :] if count < len(newest) else newest.values())
        good = [mark.lsn for mark in past if mark.body.app][-kept.keep_good :]
        others = [mark.lsn for mark in past if not mark.body.app]
        expected |= {*good, *others[max(0, len(others) - kept.keep_good + len(good)) :]}
        assert expected <= set(after), f"{told}: what was to be kept is gone"
        rest = {lsn: mark for lsn, mark in after.items() if lsn < merged_to and lsn not in expected | history.held}
        plain = [mark for mark in rest.values() if not mark.body.tags]
        assert not plain, f"{told}: more was kept than anybody asked for"


def test_a_history_that_fits_is_never_cut_for_what_has_aged_out_beside_it() -> None:
    """Segments past the history that wait for a merge go first, at once when the limit is passed."""
    journal = journal_of("1d", 100 * KIB)
    history = History(random.Random(1))
    for age_hours in (*range(60, 30, -1), *range(20, 0, -1)):
        stamp = BEGIN_NS - age_hours * HOUR_NS
        history.lsn += 128
        mark = Mark(1, history.lsn - 64, stamp, MarkBody(history.lsn // 128, 1))
        history._add(SegmentKind.LOG, (history.lsn - 128, history.lsn), (stamp, stamp), 4 * KIB, [mark])
    assert horizon(history.refs, journal, BEGIN_NS) == (BEGIN_NS - 24 * HOUR_NS, False, True)
    assert history.thin(journal, RetentionSpec()) == 30 * 128
    assert shortfall(history.refs, journal, BEGIN_NS) is None
    assert len(history.present()) == 21  # the boundary, and all of the history


def test_what_is_missing_of_the_history_is_told_with_the_size_that_would_do() -> None:
    """By the changes of a day as the log has them; with that size the same history fits."""
    history = History(random.Random(1))
    for hour in range(100):
        stamp = BEGIN_NS + hour * HOUR_NS
        history.lsn += 128
        mark = Mark(1, history.lsn - 64, stamp, MarkBody(history.lsn // 128, 1))
        history._add(SegmentKind.LOG, (history.lsn - 128, history.lsn), (stamp - HOUR_NS, stamp), 2**20, [mark])
    history.now_ns = BEGIN_NS + 99 * HOUR_NS
    journal = journal_of("4d", 50 * 2**20)
    whole = list(history.refs)
    assert history.thin(journal, RetentionSpec()) is not None
    found = shortfall(history.refs, journal, history.now_ns)
    assert found is not None
    assert found.kept_seconds == pytest.approx(SIZE_FRACTION_LEFT * 50 * 3600, rel=0.05)
    assert found.day_bytes == pytest.approx(24 * 2**20, rel=0.05)
    assert not found.fits
    assert found.size_needed_bytes == pytest.approx(96 * 2**20 / SIZE_FRACTION_MAX, rel=0.05)
    enough = journal_of("4d", found.size_needed_bytes)
    assert shortfall(whole, enough, history.now_ns) is None
    grows = shortfall(history.refs, enough, history.now_ns)
    assert grows is not None
    assert grows.fits


class Interrupted(MemoryStore):
    """A target that goes away after so many calls that change something."""

    calls_left: int | None = None

    def _count(self) -> None:
        if self.calls_left is not None:
            self.calls_left -= 1
            if self.calls_left < 0:
                raise Temporary("The target is away.")

    def put(self, key: str, data: bytes | memoryview) -> None:
        self._count()
        super().put(key, data)

    def create(self, key: str, data: bytes | memoryview) -> None:
        self._count()
        super().create(key, data)

    def delete(self, key: str) -> None:
        self._count()
        super().delete(key)


def interruptible(chance: random.Random) -> tuple[Copy, set[str]]:
    """A repository with a history, some of it held, and the ids of that."""
    copy = Copy()
    copy.store = Interrupted()
    copy.open()
    for number in range(1, 17):
        copy.write(chance.randbytes(20), tag="t" if number % 7 == 0 else "", later=HOUR_NS // 20)
    marks = sorted(copy.reader().marks(), key=lambda mark: mark.lsn)
    held = {mark.id: mark for mark in chance.sample(marks, 3)}
    for mark in held.values():
        copy.writer.hold(Hold(mark.id, mark.lsn, copy.clock.now))
    return copy, set(held)


@pytest.mark.usefixtures("_at_once")
def test_interrupted_after_any_call_every_checkpoint_that_is_listed_is_what_was(seed: int) -> None:
    """Joining, merging and deleting, cut off after each single write to the target; the next life finishes."""
    journal, kept, calls, done = journal_of("15m", 2**30), RetentionSpec(hourly=2), 0, False
    while not done:
        copy, held = interruptible(random.Random(seed))
        newest = copy.sequence
        store = copy.store
        assert isinstance(store, Interrupted)
        copy.clock.now += levels.LEVEL_SECONDS[0] * 10**9
        store.calls_left = calls
        try:
            copy.compact(journal, kept)
            copy.clock.now += GRACE_NS + 1
            copy.compact(journal, kept)
            done = True
        except Temporary:
            pass
        store.calls_left = None
        for _ in range(2):
            sequences = copy.check()
            assert newest in sequences, f"seed {seed}, call {calls}"
            assert held <= {mark.id for mark in copy.reader().marks()}, f"seed {seed}, call {calls}"
            copy.open()
            copy.compact(journal, kept)
        calls += 1
    assert calls > 5


def readable(copy: Copy) -> set[str]:
    """The checkpoints that give their content back, whatever is damaged."""
    reader, found = copy.reader(), set()
    for ref in reader.refs():
        with contextlib.suppress(Corruption):
            for mark in reader.exact_marks(ref):
                with contextlib.suppress(Corruption):
                    assert reader.image(mark).volume(1).read(0, 1024) == copy.content[mark.id]
                    found.add(mark.id)
    return found


@pytest.mark.usefixtures("_at_once")
def test_thinning_beside_damage_loses_nothing_that_can_be_read(seed: int) -> None:
    """The newest, the held and the history stay as readable as they were."""
    chance = random.Random(seed)
    for number in range(8):
        copy, held = interruptible(chance)
        newest = {f"ck-1-{copy.sequence - at}" for at in range(3)}
        broken = chance.choice(copy.reader().refs()).name
        data = bytearray(copy.store.objects[broken])
        data[chance.randrange(256, len(data) - 64)] ^= 1
        copy.store.objects[broken] = bytes(data)
        before = readable(copy)
        copy.compact(journal_of("15m", 2**30), RetentionSpec())
        assert (newest | held) & before <= readable(copy), f"seed {seed}, damage {number}"


@pytest.mark.usefixtures("_at_once")
def test_a_held_checkpoint_stays_until_it_is_released_or_its_time_is_over() -> None:
    """At the target itself: by what the manifests say, whoever asks; complete manifests carry it on."""
    copy = Copy()
    for number in range(1, 21):
        copy.write(bytes([number]) * 20)
    journal, kept = journal_of("1h", 2**30), RetentionSpec()
    marks = {mark.sequence: mark for mark in copy.reader().marks()}
    until = copy.clock.now + 30 * HOUR_NS
    copy.writer.hold(Hold(marks[5].id, marks[5].lsn, copy.clock.now, reason="audit"))
    copy.writer.hold(Hold(marks[7].id, marks[7].lsn, copy.clock.now, until))
    copy.open()
    for number in range(21, 101):  # past a complete manifest
        copy.write(bytes([number]) * 20, later=10**9)
    copy.compact(journal, kept)
    assert {5, 7} < set(copy.check())
    copy.clock.now = until
    for number in range(101, 110):
        copy.write(bytes([number]) * 20)
    copy.compact(journal, kept)
    assert 5 in copy.check()
    assert 7 not in copy.check()
    with pytest.raises(Unrecoverable):
        copy.writer.hold(Hold(marks[6].id, marks[6].lsn, copy.clock.now))
    recovery = TargetRecovery(
        lambda _: copy.store,
        dict,
        lambda *_: copy.reader(),
        lambda uid, key_id, _: RepositoryWriter(copy.store, uid, key_id, b"wrapped", lambda _: bytes(32), copy.clock),
        *([None] * 4),  # type: ignore[arg-type]
    )
    target = FilesystemTargetSpec(path="/copies")
    for _ in range(2):  # as control does it where no worker writes
        recovery.change_hold(target, GROUP, KEY_ID, HoldChange(checkpoint=marks[5].id, held=False))
    assert copy.reader().require_state().last.holds == []
    copy.open()
    for number in range(110, 120):
        copy.write(bytes([number]) * 20)
    copy.compact(journal, kept)
    assert 5 not in copy.check()
