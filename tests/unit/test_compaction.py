"""Compaction of a repository: what is kept, what is dropped, and when its objects go."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from dpac_api.errors import Corruption, Unrecoverable
from dpac_api.models import AsyncLegSpec, JournalSpec, RetentionSpec
from dpac_api.quantities import Duration, Size
from dpac_engine.control.compaction import GRACE_NS, Compaction
from dpac_engine.core import retention
from dpac_engine.core.checkpoints import CutBody, Mark, MarkBody
from dpac_engine.core.manifest import COMPLETE_EVERY, MemberState, RepositoryState, SegmentRef
from dpac_engine.core.records import Flags, Kind
from dpac_engine.core.segment import SegmentKind, SegmentWriter
from dpac_engine.io.repository import RepositoryReader, RepositoryWriter
from dpac_engine.io.stores.memory import MemoryStore

GROUP, SHARD, KEY_ID = "11" * 16, "22" * 16, "33" * 16
HOUR = 3600 * 10**9
BEGIN_NS = 480_000 * HOUR


class Clock:
    """A clock that the test sets."""

    now = BEGIN_NS

    def now_ns(self) -> int:
        return self.now

    def monotonic_ns(self) -> int:
        return self.now


class Copy:
    """A repository of one small volume that a test fills."""

    def __init__(self) -> None:
        self.clock, self.store = Clock(), MemoryStore()
        self.lsn, self.sequence, self.device = 0, 0, bytearray(1024)
        self.content: dict[str, bytes] = {}
        self.kind = "volume"
        self.open()

    def open(self) -> None:
        """A new writer, as after a restart."""
        self.writer = RepositoryWriter(self.store, GROUP, KEY_ID, b"wrapped", lambda _: bytes(32), self.clock)
        self.writer.open()

    def commit(self, add: Sequence[SegmentRef], drop: Sequence[str] = ()) -> RepositoryState:
        """See `shipper.Commit`."""
        member = MemberState("aa" * 16, self.kind, "disk", ready=[(0, None)], founding=True)
        return self.writer.commit(
            epoch=1,
            epochs=[(1, 0)],
            cursor={SHARD: self.lsn},
            members={1: member},
            membership_version=1,
            spec=1,
            log_from=0,
            add=add,
            drop=drop,
        )

    def put(self, rows: SegmentWriter, marks: list[Mark], kind: SegmentKind, lsns: tuple[int, int]) -> SegmentRef:
        """A stored segment, not committed."""
        stamps = (self.clock.now, self.clock.now)
        return self.writer.put_segment(
            rows,
            marks,
            kind=kind,
            shard_uid=SHARD,
            epoch=1,
            lsn_from=lsns[0],
            lsn_to=lsns[1],
            stamps=stamps,
            membership_version=1,
            compression_level=1,
        )

    def write(self, data: bytes, *, tag: str = "", later: int = HOUR) -> None:
        """One write, a trim of what an older one wrote (no change at all if it is empty), one checkpoint, one segment."""
        self.clock.now += later
        self.sequence += 1
        begin, rows = self.lsn, SegmentWriter()
        if not begin:
            rows.add(Kind.RESIZE, 0, 1, 0, self.clock.now, 0, 1024, b"")
        if data:
            rows.add(Kind.WRITE, 0, 1, begin + 64, self.clock.now, self.sequence * 8 % 512, len(data), data)
            self.device[self.sequence * 8 % 512 : self.sequence * 8 % 512 + len(data)] = data
            trimmed = (self.sequence - 2) * 8 % 512
            rows.add(Kind.TRIM, 0, 1, begin + 512, self.clock.now, trimmed, 4, b"")
            self.device[trimmed : trimmed + 4] = bytes(4)
        body = MarkBody(self.sequence, 1, {"1": CutBody("exact")}, tags=[tag] if tag else [])
        mark = Mark(1, begin + 1024, self.clock.now, body)
        rows.add(Kind.MARK, 0, 0, mark.lsn, mark.stamp_ns, 0, 0, body.encode())
        self.lsn = begin + 2048
        self.content[mark.id] = bytes(self.device)
        self.commit([self.put(rows, [mark], SegmentKind.LOG, (begin, self.lsn))])

    def compact(self, journal: JournalSpec, kept: RetentionSpec) -> None:
        """All there is to do now."""
        compaction = Compaction(journal, AsyncLegSpec(target="t", retention=kept))
        while compaction.step(self.writer, self.commit, self.clock.now):
            pass

    def reader(self) -> RepositoryReader:
        """Someone else's look at it."""
        reader = RepositoryReader(self.store, GROUP, lambda _: bytes(32))
        reader.refresh()
        return reader

    def check(self) -> list[int]:
        """Sequences of the checkpoints, oldest first; each gives its content back."""
        reader = self.reader()
        marks = list(reader.marks())
        for mark in marks:
            assert reader.image(mark).volume(1).read(0, 1024) == self.content[mark.id], mark.id
        return sorted(mark.sequence for mark in marks)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Merge however little there is."""
    monkeypatch.setattr(retention, "MERGE_SEGMENTS_MIN", 1)


def test_by_age_the_newest_the_tagged_and_those_of_the_calendar_stay() -> None:
    """Ten hours of history, then two days' newest, and what was tagged."""
    copy = Copy()
    for number in range(1, 101):
        copy.write(bytes([number]) * 20, tag="release" if number == 40 else "")
    copy.compact(JournalSpec(history=Duration.parse("10h")), RetentionSpec(daily=2, tagged=Duration.parse("30d")))
    sequences = copy.check()
    assert sequences == [40, 71, 89, *range(90, 101)]
    stored = sum(len(copy.store.get(ref.name)) for ref in copy.reader().refs())
    assert stored == copy.reader().state.stored_bytes  # type: ignore[union-attr]
    copy.compact(JournalSpec(history=Duration.parse("10h")), RetentionSpec())
    for number in range(101, 131):
        copy.write(bytes([number]) * 20)
    copy.compact(JournalSpec(history=Duration.parse("10h")), RetentionSpec(daily=1, tagged=Duration.parse("30d")))
    assert {119, 40} <= set(copy.check())


def test_checkpoints_between_which_nothing_changed_stay_as_promised() -> None:
    """A layer that holds nothing but a checkpoint is folded with the one before, and the checkpoint stays."""
    copy = Copy()
    copy.write(b"before")
    for number in range(2, 13):
        copy.write(b"")
        copy.compact(JournalSpec(history=Duration.parse("2h")), RetentionSpec(hourly=3))
        assert set(range(max(1, number - 5), number + 1)) <= set(copy.check())  # two hours, and three behind them
    copy.write(b"after")
    assert copy.check()[-1] == 13


def test_by_size_the_newest_stay_and_the_rest_is_thinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """History that takes more than it may is cut from its old end, however young it is."""
    copy = Copy()
    for number in range(1, 31):
        copy.write(bytes([number]) * 20, later=10**9)
    each = copy.reader().refs()[-1].bytes
    journal = JournalSpec(history=Duration.parse("30d")).model_copy(update={"size_max": Size.of_bytes(each * 10)})
    copy.compact(journal, RetentionSpec())
    sequences = copy.check()
    assert sequences[-8:] == list(range(23, 31))  # four fifths of what the limit allows
    assert len(sequences) <= 10


def test_dropped_objects_stay_for_a_day_and_go_then() -> None:
    """A reader that opened the repository before still finds them; after the grace nobody does."""
    copy = Copy()
    for number in range(1, 21):
        copy.write(bytes([number]) * 20)
    before = copy.reader()
    journal = JournalSpec(history=Duration.parse("1h"))
    copy.compact(journal, RetentionSpec())
    oldest = list(before.marks())[-1]
    assert before.image(oldest).volume(1).read(0, 1024) == copy.content[oldest.id]
    with pytest.raises(Unrecoverable):
        copy.reader().resolve(oldest.id)
    dropped = set(copy.writer.state.dropped)  # type: ignore[union-attr]
    assert dropped <= set(copy.store.objects)
    copy.clock.now += GRACE_NS + 1
    copy.compact(journal, RetentionSpec())
    assert not dropped & set(copy.store.objects)
    copy.check()


def test_what_a_crash_left_without_a_manifest_is_collected() -> None:
    """A stored segment that no manifest ever named goes a day after it was noticed."""
    copy = Copy()
    copy.write(b"x")
    rows = SegmentWriter()
    rows.add(Kind.WRITE, 0, 1, 64, 1, 0, 4, b"lost")
    stray = copy.put(rows, [], SegmentKind.LOG, (4096, 8192)).name
    copy.open()
    copy.compact(JournalSpec(), RetentionSpec())
    assert stray in copy.store.objects
    copy.clock.now += GRACE_NS + 1
    copy.compact(JournalSpec(), RetentionSpec())
    assert stray not in copy.store.objects
    copy.check()


def test_what_is_committed_while_the_target_is_listed_is_not_taken_for_left_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A listing takes its time; a segment that came meanwhile stays."""
    copy = Copy()
    copy.write(b"before")
    visible = copy.writer.visible

    def slow(prefix: str) -> list[str]:
        if copy.sequence == 1:
            copy.write(b"meanwhile")
        return list(visible(prefix))

    monkeypatch.setattr(copy.writer, "visible", slow)
    copy.compact(JournalSpec(), RetentionSpec())
    assert copy.check() == [1, 2]


def test_manifests_that_nobody_needs_go() -> None:
    """Two complete ones stay, with all after the older of them; a reader that was away meanwhile catches up."""
    copy = Copy()
    copy.write(b"x")
    away = copy.reader()
    for number in range(3 * COMPLETE_EVERY):
        copy.write(bytes([number % 256]) * 4, later=10**9)
    copy.compact(JournalSpec(), RetentionSpec())
    numbers = [int(key[2:]) for key in copy.store.list("m/")]
    assert numbers[0] == 2 * COMPLETE_EVERY
    assert copy.check()[0] == 1
    away.refresh()
    assert away.state == copy.reader().state


def test_seeds_of_one_moment_are_read_in_the_order_they_were_made() -> None:
    """A seed cut in pieces while nothing was written: the piece that begins it never voids the others."""
    for _ in range(12):
        copy = Copy()
        copy.write(b"before")
        lsn, added = copy.lsn, []
        for piece in range(4):
            rows = SegmentWriter()
            if piece == 0:
                rows.add(Kind.RESET, Flags.SEED, 1, lsn, 1, 0, 0, b"")
                rows.add(Kind.RESIZE, Flags.SEED, 1, lsn, 1, 0, 1024, b"")
            rows.add(Kind.FILL, Flags.SEED, 1, lsn, 1, piece * 256, 256, bytes([piece + 1]) * 256)
            added.append(copy.put(rows, [], SegmentKind.FILL, (lsn, lsn + 1)))
            copy.commit(added[-1:])
        copy.device[:] = b"".join(bytes([piece + 1]) * 256 for piece in range(4))
        copy.write(b"after")
        assert copy.check() == [1, 2]


def test_a_repository_whose_manifests_were_mixed_up_is_corrupt() -> None:
    """A manifest under another's number, or of another repository, is not believed."""
    copy, other = Copy(), Copy()
    for number in range(3):
        copy.write(bytes([number]))
        other.write(bytes([number]))
    keys = list(copy.store.list("m/"))
    copy.store.objects[keys[2]] = copy.store.objects[keys[1]]
    with pytest.raises(Corruption, match="moved or mixed"):
        copy.reader()
    copy.store.objects[keys[2]] = other.store.objects[keys[2]]
    with pytest.raises(Corruption, match="objects were mixed"):
        copy.reader()
