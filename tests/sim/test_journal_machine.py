"""The journal's core against a byte array and a dictionary.

Random records of several members are cut into log segments at random places, members are seeded anew between them (after a
change that no record tells), checkpoints are thinned out and merged, again and again. At every moment each checkpoint that the
repository lists must give exactly what the model was when it was made, read by a reader that knows nothing but the store.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from dpac_api.models import AsyncLegSpec, JournalSpec, RetentionSpec
from dpac_api.quantities import Duration
from dpac_engine.control import merging
from dpac_engine.control.compaction import Compaction
from dpac_engine.core import retention, stripes
from dpac_engine.core.checkpoints import CutBody, Mark, MarkBody
from dpac_engine.core.image import Image
from dpac_engine.core.manifest import MemberState, RepositoryState, SegmentRef
from dpac_engine.core.records import Flags, Keyspace, Kind, stored_bytes
from dpac_engine.core.segment import SegmentKind, SegmentWriter
from dpac_engine.io.repository import RepositoryReader, RepositoryWriter
from dpac_engine.io.stores.memory import MemoryStore

GROUP, SHARD, KEY_ID = "11" * 16, "22" * 16, "33" * 16
DATA_KEY = bytes(range(32))
VOLUMES, TREE = (1, 2), 3
NAMES = {1: "disk", 2: "log", 3: "files"}
KINDS = {1: "volume", 2: "volume", 3: "directory"}
SECOND = 10**9
BEGIN_NS = 1_760_000_000 * SECOND
HISTORY_SECONDS = 3600
TAGGED_SECONDS = 4 * 3600
RETENTION = RetentionSpec(hourly=3, daily=2, tagged=Duration.parse("4h"))
JOURNAL = JournalSpec(history=Duration.parse("1h"))

Snapshot = tuple[tuple[bytes, ...], dict[tuple[int, bytes], bytes]]


PIECE_BYTES = 40
Op = tuple[Any, ...]
_offset, _space = st.integers(0, 200), st.sampled_from(Keyspace)
_volume, _key = st.sampled_from(VOLUMES), st.sampled_from([b"a", b"b", b"c/d", b""])
_write = st.tuples(st.just("write"), _volume, _offset, st.binary(min_size=1, max_size=60))
op = st.one_of(
    _write,
    _write,
    st.tuples(st.just("clear"), _volume, _offset, st.integers(1, 120), st.sampled_from([Kind.ZERO, Kind.TRIM])),
    st.tuples(st.just("grow"), _volume, st.integers(1, 40)),
    st.tuples(st.just("begin_anew"), _volume, st.integers(16, 128)),
    st.tuples(st.just("put"), _space, _key, st.binary(max_size=40)),
    st.tuples(st.just("delete"), _space, _key),
)
ops = st.lists(op, max_size=6)
betweens = st.lists(st.lists(op, max_size=2), min_size=2, max_size=8)
tags = st.sampled_from(["", "", "", "release"])


class Clock:
    """A clock that the machine sets."""

    now = BEGIN_NS

    def now_ns(self) -> int:
        return self.now

    def monotonic_ns(self) -> int:
        return self.now


def data_keys(key_id: str) -> bytes:
    """The one data key."""
    assert key_id == KEY_ID
    return DATA_KEY


class Journal(RuleBasedStateMachine):
    """A group's journal and one target, without processes, disks and threads."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.store = MemoryStore()
        self.writer = RepositoryWriter(self.store, GROUP, KEY_ID, b"wrapped", data_keys, self.clock)
        self.writer.open()
        self.lsn = self.log_from = self.sequence = 0
        self.first_stamp = 0
        self.rows, self.marks = SegmentWriter(), list[Mark]()
        self.volumes = {1: bytearray(), 2: bytearray()}
        self.tree: dict[tuple[int, bytes], bytes] = {}
        self.members = {
            at: MemberState(f"{at:032x}", KINDS[at], NAMES[at], ready=[(0, None)], founding=True) for at in NAMES
        }
        self.content = dict.fromkeys(NAMES, 0)
        self.snapshots: dict[int, Snapshot] = {}
        self.made: dict[int, Mark] = {}
        self.shipped: set[int] = set()

    # ------------------------------------------------------------------ records

    def record(
        self,
        kind: int,
        member: int,
        offset: int = 0,
        length: int = 0,
        payload: bytes = b"",
        key: tuple[int, bytes] | None = None,
    ) -> int:
        lsn = self.lsn
        self.rows.add(kind, 0, member, lsn, self.clock.now, offset, length, payload, key)
        self.first_stamp = self.first_stamp or self.clock.now
        self.lsn += stored_bytes(len(payload) + (4 + len(key[1]) if key else 0))
        return lsn

    @initialize()
    def sizes(self) -> None:
        """Both volumes have a size from the first record on."""
        for at in VOLUMES:
            self.volumes[at] = bytearray(96)
            self.record(Kind.RESIZE, at, length=96)

    def write(self, at: int, offset: int, data: bytes) -> None:
        device = self.volumes[at]
        offset %= len(device)
        data = data[: len(device) - offset]
        device[offset : offset + len(data)] = data
        self.record(Kind.WRITE, at, offset, len(data), data)

    def clear(self, at: int, offset: int, length: int, kind: Kind) -> None:
        device = self.volumes[at]
        offset %= len(device)
        length = min(length, len(device) - offset)
        device[offset : offset + length] = bytes(length)
        self.record(kind, at, offset, length)

    def grow(self, at: int, more: int) -> None:
        self.volumes[at] += bytes(more)
        self.record(Kind.RESIZE, at, length=len(self.volumes[at]))

    def begin_anew(self, at: int, size: int) -> None:
        self.volumes[at] = bytearray(size)
        self.record(Kind.RESET, at)
        self.record(Kind.RESIZE, at, length=size)

    def put(self, space: Keyspace, key: bytes, value: bytes) -> None:
        self.tree[space, key] = value
        self.record(Kind.PUT, TREE, payload=value, key=(space, key))

    def delete(self, space: Keyspace, key: bytes) -> None:
        self.tree.pop((space, key), None)
        self.record(Kind.DELETE, TREE, key=(space, key))

    def do(self, changes: list[Op]) -> None:
        """Make changes."""
        for name, *arguments in changes:
            getattr(self, name)(*arguments)

    @rule(changes=ops, later=st.sampled_from([1, 1, 60, 900, 4000]), tag=tags, cut=st.booleans())
    def work(self, changes: list[Op], later: int, tag: str, cut: bool) -> None:
        """Changes, a checkpoint, and sometimes the end of a segment."""
        self.do(changes)
        self.mark(later, tag)
        if cut:
            self.cut()

    @rule(rounds=st.lists(st.tuples(ops, st.sampled_from([900, 4000]), tags), min_size=2, max_size=5))
    def work_for_hours(self, rounds: list[tuple[list[Op], int, str]]) -> None:
        """Checkpoints of several periods, each in a segment of its own."""
        for changes, later, tag in rounds:
            self.work(changes, later, tag, True)

    # ------------------------------------------------------------------ checkpoints and time

    def mark(self, later: int, tag: str) -> None:
        self.clock.now += later * SECOND
        self.sequence += 1
        cuts = {str(at): CutBody("exact") for at in NAMES}
        body = MarkBody(self.sequence, 1, cuts, tags=[tag] if tag else [])
        lsn = self.record(Kind.MARK, 0, payload=body.encode())
        mark = Mark(1, lsn, self.clock.now, body)
        self.marks.append(mark)
        self.made[self.sequence] = mark
        if not self.unsure:
            state = tuple(bytes(self.volumes[at]) for at in VOLUMES), dict(self.tree)
            self.snapshots[self.sequence] = state

    @property
    def unsure(self) -> bool:
        """A member is not whole at the target now: checkpoints are not recoverable."""
        return not all(member.is_ready for member in self.members.values())

    # ------------------------------------------------------------------ shipping

    def commit(self, add: Sequence[SegmentRef], drop: Sequence[str] = ()) -> RepositoryState:
        return self.writer.commit(
            epoch=1,
            epochs=[(1, 0)],
            cursor={SHARD: self.log_from},
            members=self.members,
            membership_version=1,
            spec=1,
            log_from=0,
            add=add,
            drop=drop,
        )

    def segment(self, rows: SegmentWriter, kind: SegmentKind, lsns: tuple[int, int], marks: list[Mark]) -> SegmentRef:
        return self.writer.put_segment(
            rows,
            marks,
            kind=kind,
            shard_uid=SHARD,
            epoch=1,
            lsn_from=lsns[0],
            lsn_to=lsns[1],
            stamps=(self.first_stamp, self.clock.now),
            membership_version=1,
            compression_level=1,
        )

    def cut(self) -> None:
        """Seal what there is into a log segment."""
        if not len(self.rows):
            return
        ref = self.segment(self.rows, SegmentKind.LOG, (self.log_from, self.lsn), self.marks)
        self.log_from = self.lsn
        self.shipped |= {mark.sequence for mark in self.marks}
        self.rows, self.marks, self.first_stamp = SegmentWriter(), [], 0
        self.commit([ref])

    # ------------------------------------------------------------------ seeds

    @rule(at=st.sampled_from(VOLUMES), data=st.binary(max_size=60), offset=st.integers(0, 60), between=betweens)
    def seed_volume(self, at: int, data: bytes, offset: int, between: list[list[Op]]) -> None:
        """A volume changes behind the journal's back and is seeded piece by piece, with changes in between.

        With fewer pieces than it takes it stays half seeded, and begins anew the next time.
        """
        self.members[at] = self.members[at].reseeding(self.lsn, self.content[at])
        self.content[at] += 1
        kept = self.volumes[at][offset : offset + len(data)]
        self.volumes[at][offset : offset + len(data)] = data[: len(kept)]
        self.cut()
        position = 0
        for changes in between:
            self.do(changes)
            if changes:
                self.mark(1, "")
            position = self.seed_piece(at, position)
            if position is None:
                break

    def seed_piece(self, at: int, position: int) -> int | None:
        rows, lsn, device = SegmentWriter(), self.lsn, self.volumes[at]
        member = self.members[at]
        if position == 0:
            member = member.reseeding(lsn, self.content[at])
            rows.add(Kind.RESET, Flags.SEED, at, lsn, self.clock.now, 0, 0, b"")
            rows.add(Kind.RESIZE, Flags.SEED, at, lsn, self.clock.now, 0, len(device), b"")
        data = bytes(device[position : position + PIECE_BYTES])
        if any(data):
            rows.add(Kind.FILL, Flags.SEED, at, lsn, self.clock.now, position, len(data), data)
        after = None if position + PIECE_BYTES >= len(device) else position + PIECE_BYTES
        self.members[at] = member.seeded(lsn) if after is None else member.at_seed_position(after)
        self.commit([self.segment(rows, SegmentKind.FILL, (lsn, lsn + 1), [])] if len(rows) else [])
        return after

    @rule(keys=st.sets(st.sampled_from([b"a", b"b", b"e"])))
    def seed_tree(self, keys: set[bytes]) -> None:
        """The tree changes behind the journal's back and is seeded in one piece."""
        self.members[TREE] = self.members[TREE].reseeding(self.lsn, self.content[TREE])
        self.content[TREE] += 1
        self.tree = {(Keyspace.ENTRY, key): key * 3 for key in keys}
        self.cut()
        rows, lsn = SegmentWriter(), self.lsn
        rows.add(Kind.RESET, Flags.SEED, TREE, lsn, self.clock.now, 0, 0, b"")
        for key, value in self.tree.items():
            rows.add(Kind.PUT, Flags.SEED, TREE, lsn, self.clock.now, 0, 0, value, key)
        self.members[TREE] = self.members[TREE].seeded(lsn)
        self.commit([self.segment(rows, SegmentKind.FILL, (lsn, lsn + 1), [])])

    # ------------------------------------------------------------------ thinning

    @rule(later=st.sampled_from([0, 1000, 5000, 100_000]))
    def compact(self, later: int) -> None:
        """Merge what is past the history; what is promised to stay stays."""
        self.clock.now += later * SECOND
        self.cut()
        before = self.listed()
        compaction = Compaction(JOURNAL, AsyncLegSpec(target="t", retention=RETENTION, compression_level=1))
        while compaction.step(self.writer, self.commit, self.clock.now):
            pass
        after = self.listed()
        assert set(after) <= set(before)
        promised = _promised(list(before.values()), self.clock.now)
        assert promised <= set(after), "a promised checkpoint is gone"
        for sequence in set(before) - set(after):
            del self.snapshots[sequence]
            self.shipped.discard(sequence)

    # ------------------------------------------------------------------ what must hold

    def reader(self) -> RepositoryReader:
        reader = RepositoryReader(self.store, GROUP, data_keys)
        reader.refresh()
        return reader

    def listed(self) -> dict[int, Mark]:
        return {mark.sequence: mark for mark in self.reader().marks()}

    @invariant()
    def every_listed_checkpoint_is_what_was(self) -> None:
        reader = self.reader()
        listed = list(reader.marks())
        assert [mark.sequence for mark in listed] == sorted((mark.sequence for mark in listed), reverse=True)
        committed = reader.state.members if reader.state else {}
        if all(self.members[at] == committed.get(at) for at in NAMES):  # else a commit will tell
            assert {mark.sequence for mark in listed} == self.shipped & set(self.snapshots)
        for mark in listed:
            if mark.sequence not in self.snapshots:
                continue
            assert mark == self.made[mark.sequence]
            assert _contents(reader.image(mark)) == self.snapshots[mark.sequence], f"checkpoint {mark.sequence}"


def _contents(image: Image) -> Snapshot:
    volumes = [image.volume(at) for at in VOLUMES]
    tree = image.tree(TREE)
    values = {key: tree._read(value) for key in tree._newest if (value := tree._value(*key)) is not None}
    assert dict(tree.entries()) == {key: value for (space, key), value in values.items() if space == Keyspace.ENTRY}
    return tuple(volume.read(0, volume.size_bytes) for volume in volumes), values


def _promised(marks: list[Mark], now_ns: int) -> set[int]:
    """Sequences of what `RETENTION` and `JOURNAL` promise, said another way than the code under test does."""
    history = {mark.sequence for mark in marks if mark.stamp_ns >= now_ns - HISTORY_SECONDS * SECOND}
    tagged = {mark.sequence for mark in marks if mark.body.tags and mark.stamp_ns >= now_ns - TAGGED_SECONDS * SECOND}
    promised = history | tagged | {mark.sequence for mark in marks[:1]}
    old = sorted((mark for mark in marks if mark.sequence not in history), key=lambda mark: -mark.lsn)
    for count, form in ((3, "%Y%m%d%H"), (2, "%Y%m%d")):
        periods: dict[str, int] = {}
        for mark in old:
            periods.setdefault(datetime.fromtimestamp(mark.stamp_ns // SECOND, UTC).strftime(form), mark.sequence)
        promised |= set(list(periods.values())[:count])
    return promised


EXAMPLES = 60
ROUNDS = int(os.environ.get("DPAC_SOAK_ROUNDS", "2000"))


@pytest.fixture(autouse=True)
def _merge_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Merge without waiting for much to merge, into small segments."""
    monkeypatch.setattr(retention, "MERGE_SEGMENTS_MIN", 1)
    monkeypatch.setattr(merging, "MERGED_BYTES", 150)
    monkeypatch.setattr(stripes, "STRIPE_BYTES", 2500)
    monkeypatch.setattr(stripes, "SMALL_BYTES", 0)


def _run(examples: int, steps: int) -> None:
    run_state_machine_as_test(
        Journal,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )


def test_every_checkpoint_is_what_the_members_were() -> None:
    """Random records, cuts, seeds, merges: each listed checkpoint's image is the model's state at its mark."""
    _run(EXAMPLES, 25)


@pytest.mark.soak
def test_every_checkpoint_is_what_the_members_were_in_a_long_campaign() -> None:
    """The same, DPAC_SOAK_ROUNDS times, with longer histories."""
    _run(ROUNDS, 100)
