"""Folding: the base is rewritten in stripes and seldom, checked before it counts, and a crash or damage costs nothing."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest

from dpac_api.errors import Temporary
from dpac_api.models import AsyncLegSpec, JournalSpec, RetentionSpec
from dpac_api.quantities import Duration
from dpac_engine.control import merging
from dpac_engine.control.compaction import LOOK_AGAIN_NS, Compaction
from dpac_engine.core import folding, retention, stripes
from dpac_engine.core.checkpoints import CutBody, Mark, MarkBody
from dpac_engine.core.folding import LAYERS_MAX
from dpac_engine.core.manifest import Hold, MarkRange, SegmentRef
from dpac_engine.core.records import Kind
from dpac_engine.core.segment import SegmentKind, SegmentWriter
from tests.unit.test_compaction import Copy
from tests.unit.test_retention_laws import Interrupted

SIZE = 256 * 1024
STRIPE = 8 * 1024
JOURNAL = JournalSpec(history=Duration.parse("1m"))
Changes = Sequence[tuple[int, bytes]]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stripes of a few blocks, merged however little there is."""
    monkeypatch.setattr(retention, "MERGE_SEGMENTS_MIN", 1)
    monkeypatch.setattr(merging, "MERGED_BYTES", STRIPE)
    monkeypatch.setattr(stripes, "STRIPE_BYTES", 8 * STRIPE)
    monkeypatch.setattr(stripes, "SMALL_BYTES", 0)


class Disk(Copy):
    """A repository of one volume of some stripes."""

    def __init__(self, seed: int, size: int = SIZE) -> None:
        super().__init__()
        self.chance, self.device = random.Random(seed), bytearray(size)
        self.compaction = Compaction(JOURNAL, AsyncLegSpec(target="t", retention=RetentionSpec(keep_good=1)))

    def change(self, changes: Changes) -> None:
        """A segment of these writes, empty ones as zeroes, with a checkpoint after them."""
        self.clock.now += 60 * 10**9
        self.sequence += 1
        rows, lsn = SegmentWriter(), self.lsn
        if not lsn:
            rows.add(Kind.RESIZE, 0, 1, 0, self.clock.now, 0, len(self.device), b"")
        for offset, data in changes:
            lsn += 64
            kind, length = (Kind.WRITE, len(data)) if any(data) else (Kind.ZERO, len(data))
            rows.add(kind, 0, 1, lsn, self.clock.now, offset, length, data if kind == Kind.WRITE else b"")
            self.device[offset : offset + length] = data
        body = MarkBody(self.sequence, 1, {"1": CutBody("exact")})
        mark = Mark(1, lsn + 64, self.clock.now, body)
        rows.add(Kind.MARK, 0, 0, mark.lsn, mark.stamp_ns, 0, 0, body.encode())
        begin, self.lsn = self.lsn, lsn + 128
        self.content[mark.id] = bytes(self.device)
        self.commit([self.put(rows, [mark], SegmentKind.LOG, (begin, self.lsn))])

    def fold(self) -> None:
        """Let all age, and do what there is to do."""
        for _ in range(3):
            self.change([(0, b"\1")])
        self.compact_all()

    def filled(self) -> Disk:
        """Written once from end to end, and folded."""
        self.change([(at, self.chance.randbytes(1024)) for at in range(0, len(self.device), 1024)])
        self.fold()
        return self

    def compact_all(self) -> None:
        """All there is to do now."""
        while self.compaction.step(self.writer, self.commit, self.clock.now):
            pass

    def base(self) -> set[str]:
        """Names of its segments."""
        return {ref.name for ref in self.reader().refs() if folding.is_base(ref)}

    def bytes_put_by(self, act: Callable[[], object]) -> int:
        """Stored bytes of the segments that are put meanwhile."""
        before = set(self.store.objects)
        act()
        return sum(len(data) for name, data in self.store.objects.items() if name[:2] == "s/" and name not in before)

    def check(self) -> list[int]:
        """As `Copy.check`, the whole device."""
        reader = self.reader()
        marks = list(reader.marks())
        for mark in marks:
            assert reader.image(mark).volume(1).read(0, len(self.device)) == self.content[mark.id], mark.id
        return sorted(mark.sequence for mark in marks)


def test_a_change_of_one_percent_all_over_rewrites_nothing_of_the_base(seed: int) -> None:
    """What it wrote is written once more, as a layer; it was the whole base before there were stripes."""
    disk = Disk(seed).filled()
    base, size = disk.base(), disk.reader().require_state().stored_bytes
    disk.change([(disk.chance.randrange(0, SIZE, 512), disk.chance.randbytes(256)) for _ in range(SIZE // 25600)])
    put = disk.bytes_put_by(disk.fold)
    assert disk.base() == base
    assert put < 0.1 * size, f"seed {seed}: {put} bytes against {size} of the base"
    disk.check()


def test_of_a_base_that_changed_here_only_the_stripes_here_are_rewritten(seed: int) -> None:
    """A third of the device written anew, in one place: its stripes go, the others keep their names and their bytes."""
    disk = Disk(seed).filled()
    before, begin = disk.base(), disk.chance.randrange(0, SIZE // 2, 1024)
    disk.change([(at, disk.chance.randbytes(1024)) for at in range(begin, begin + SIZE // 3, 1024)])
    disk.fold()
    stay = len(before & disk.base())
    assert stay >= 0.6 * len(before), f"seed {seed}: {stay} of {len(before)} stripes are as they were"
    assert not [ref for ref in disk.reader().refs() if ref.kind == SegmentKind.MERGED and ref.bytes > 2 * STRIPE]
    disk.check()
    disk.change([(0, bytes(SIZE))])  # discarded: nothing is left that a base would have to tell
    disk.fold()
    assert disk.reader().require_state().stored_bytes < 0.2 * SIZE, f"seed {seed}"
    disk.check()


def churn(disk: Disk) -> None:
    """Writes and zeroes of every size, everywhere."""
    changes = []
    for _ in range(disk.chance.randint(1, 12)):
        length = disk.chance.choice((100, 1000, 20_000))
        offset = disk.chance.randrange(len(disk.device) - length)
        changes.append((offset, bytes(length) if disk.chance.random() < 0.3 else disk.chance.randbytes(length)))
    disk.change(changes)


def test_cut_off_after_any_write_to_the_target_nothing_is_lost_and_the_next_life_goes_on(seed: int) -> None:
    """The process ends after each single put, create and delete of a fold of many stripes."""
    calls, done = 0, False
    while not done:
        disk = Disk(seed, SIZE // 4)
        disk.store = store = Interrupted()
        disk.open()
        disk.filled()
        for _ in range(3):
            churn(disk)
        disk.change([(at, disk.chance.randbytes(1024)) for at in range(0, SIZE // 8, 1024)])  # half of it: it is folded
        for _ in range(3):
            disk.change([(0, b"\1")])
        store.calls_left = calls
        try:
            disk.compact_all()
            done = True
        except Temporary:
            pass
        store.calls_left = None
        disk.check()
        disk.open()
        disk.compaction = Compaction(JOURNAL, AsyncLegSpec(target="t", retention=RetentionSpec(keep_good=1)))
        disk.fold()
        assert disk.sequence in disk.check(), f"seed {seed}, call {calls}"
        calls += 1 if calls < 4 else 3
    assert calls > 8


def test_a_fold_that_did_not_arrive_as_it_was_made_is_not_published(seed: int) -> None:
    """The target keeps other bytes than were put: what they should replace stays, and the leg says so."""
    disk = Disk(seed).filled()
    churn(disk)
    state, put = disk.writer.state, disk.store.put

    def put_wrong(key: str, data: bytes | memoryview) -> None:
        put(key, bytes([data[0] ^ 1]) + bytes(data[1:]))

    for _ in range(3):
        disk.change([(0, b"\1")])
    state = disk.writer.state
    disk.store.put = put_wrong  # type: ignore[method-assign]
    with pytest.raises(Temporary, match="other bytes back"):
        disk.compact_all()
    assert disk.writer.state == state
    disk.store.put = put  # type: ignore[method-assign]
    disk.fold()
    disk.check()


def test_damage_leaves_its_segment_and_all_else_is_folded_until_it_is_put_back(seed: int) -> None:
    """Every merge goes around it; who mends it gets its checkpoints back, and then it is merged like the others."""
    disk = Disk(seed).filled()
    for _ in range(12):
        churn(disk)
    broken = disk.reader().refs()[-6]
    inside = next(mark for mark in disk.reader().marks() if broken.lsn_from < mark.lsn < broken.lsn_to)
    sound = disk.store.objects[broken.name]
    disk.store.objects[broken.name] = sound[:-1] + bytes([sound[-1] ^ 1])
    for _ in range(4):
        churn(disk)
        disk.fold()
    assert list(disk.compaction.damaged) == [broken.name]
    logs = [ref.name for ref in disk.reader().refs() if ref.kind == SegmentKind.LOG]
    assert broken.name in logs
    assert len(logs) < 5, f"seed {seed}: what could be merged was not"
    disk.store.objects[broken.name] = sound
    assert inside.sequence in disk.check(), f"seed {seed}"
    disk.clock.now += LOOK_AGAIN_NS
    disk.fold()
    assert not disk.compaction.damaged
    assert broken.name not in {ref.name for ref in disk.reader().refs()}
    disk.check()


def test_somebody_holds_a_checkpoint_while_it_is_being_merged_away(seed: int) -> None:
    """The merge that is under way gives up, and the next one keeps it."""
    disk = Disk(seed).filled()
    for _ in range(6):
        churn(disk)
    wanted = next(mark for mark in disk.reader().marks() if mark.sequence == disk.sequence - 4)
    for _ in range(3):
        disk.change([(0, b"\1")])
    assert disk.compaction.step(disk.writer, disk.commit, disk.clock.now)
    disk.writer.hold(Hold(wanted.id, wanted.lsn, disk.clock.now))
    disk.compact_all()
    assert wanted.sequence in disk.check()


@pytest.mark.parametrize(("share", "written_max"), [(0.01, 8.0), (0.1, 6.0)])
def test_an_address_has_few_layers_and_a_byte_is_rewritten_seldom(share: float, written_max: float) -> None:
    """A thousand thinnings: never more than `LAYERS_MAX` layers, and the bytes written a byte of change are told."""
    base = SegmentRef("base", SegmentKind.MERGED, 1, 0, 100, 0, 0, 10_000, "")
    refs, written, changed = [base], 0, 0
    for number in range(1, 1001):
        lsn, size = 100 * number, int(share * 10_000)
        marks = MarkRange(number, number, 0, 0, 1)
        refs = [ref if ref.marks is None else SegmentRef(*args(ref)) for ref in refs]
        refs.append(SegmentRef(f"l{number}", SegmentKind.MERGED, 1, lsn, lsn + 101, 0, 0, size, "", marks=marks))
        changed, written = changed + size, written + size
        while fold := folding.plan(refs, (), lambda _: 0, lambda *_: False):
            size = min(sum(ref.bytes for ref in fold.layers), 10_000)
            newest = fold.layers[-1]
            written += 10_000 if fold.base else size
            refs = [ref for ref in refs if ref not in fold.layers and ref not in fold.base]
            lsns = (0 if fold.base else fold.layers[0].lsn_from, newest.lsn_to)
            total = 10_000 if fold.base else size
            refs.append(SegmentRef(f"f{written}", 3, 1, *lsns, 0, 0, total, "", marks=newest.marks))
            refs.sort(key=lambda ref: (ref.lsn_from, ref.lsn_to))
        assert len(refs) <= LAYERS_MAX
    print(f"{written / changed:.1f} bytes are written a byte of change")
    assert written / changed < written_max


def args(ref: SegmentRef) -> tuple[object, ...]:
    """The segment, whose checkpoint is kept no longer."""
    return (ref.name, ref.kind, ref.epoch, ref.lsn_from, ref.lsn_to, ref.stamp_from, ref.stamp_to, ref.bytes, "")
