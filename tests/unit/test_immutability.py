"""Locks that are renewed: nothing is ever locked for less than asked, and a big repository does not send all at once."""

from __future__ import annotations

import random

import pytest

from dpac_api.errors import Corruption, NotFound
from dpac_api.models import AsyncLegSpec, JournalSpec, RetentionSpec
from dpac_api.quantities import Duration
from dpac_engine.control.compaction import Compaction
from dpac_engine.control.lock_upkeep import LockUpkeep
from dpac_engine.core import immutability
from dpac_engine.core.manifest import COMPLETE_EVERY, manifest_key
from dpac_engine.core.ports import Store
from dpac_engine.io.repository import RepositoryReader, spec_key
from tests.unit.test_compaction import GROUP, Copy

MINUTE, HOUR, DAY = 60 * 10**9, 3600 * 10**9, 24 * 3600 * 10**9
FOR_NS = 14 * DAY


class Locks:
    """Locks of the objects of a store, in memory; what the store deletes stays listed there, as with versions."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.ends: dict[str, int] = {}
        self.asked: list[str] = []
        self.extended: list[str] = []
        self.proofs = 0
        self.hidden: set[str] = set()

    def prove(self) -> None:
        self.proofs += 1

    def end_ns(self, key: str) -> int:
        self.asked.append(key)
        self.store.size(key)
        return self.ends.get(key, 0)

    def extend(self, key: str, until_ns: int) -> None:
        self.store.size(key)
        assert until_ns >= self.ends.get(key, 0)
        self.extended.append(key)
        self.ends[key] = until_ns

    def visible(self, prefix: str) -> list[str]:  # type: ignore[override]
        return [key for key in self.store.list(prefix) if key not in self.hidden]


def locked_copy() -> tuple[Copy, Locks]:
    """A repository with locks, empty but for its founding objects."""
    copy = Copy()
    copy.store.put(spec_key(1), b"as declared")
    locks = Locks(copy.store)
    copy.writer.locks = locks  # type: ignore[assignment]
    return copy, locks


def settle(upkeep: LockUpkeep, copy: Copy, locks: Locks) -> None:
    """Steps until nothing is left for now."""
    for _ in range(100):
        if not upkeep.step(copy.writer, locks, copy.clock.now):  # type: ignore[arg-type]
            return
    raise AssertionError("it never ends")


# ------------------------------------------------------------------ pacing


@pytest.mark.parametrize("step_ns", [MINUTE * 10, 6 * HOUR])
def test_locks_of_one_first_copy_are_extended_one_after_another_and_in_time(step_ns: int, seed: int) -> None:
    """Five hundred objects that were locked together: over two months none is ever short, and no step sends many."""
    chance = random.Random(seed)
    now = 10**18
    count = 500
    ends = {f"s/{at}": now + immutability.locked_for_ns(FOR_NS) + chance.randrange(HOUR) for at in range(count)}
    sent: list[int] = []
    begin, last = now, now
    while now < begin + 60 * DAY:
        due = immutability.due(ends, FOR_NS, now, now - last)
        for name in due:
            ends[name] = now + immutability.locked_for_ns(FOR_NS)
        sent.append(len(due))
        assert not any(immutability.is_behind(end, FOR_NS, now) for end in ends.values()), (now - begin) / DAY
        last, now = now, now + step_ns
    share = count * step_ns / (FOR_NS * immutability.SPREAD_FRACTION / 2)
    assert max(sent) <= share + 1
    assert sum(sent) <= count * 60 / 3.5, "each lock is extended at most twice a week"


def test_what_is_behind_goes_first_and_at_once() -> None:
    """After a long absence those that end first are extended first, as many as one step may send."""
    now = 10**18
    ends = {f"s/{at}": now + at * HOUR for at in range(1000)}
    due = immutability.due(ends, FOR_NS, now, 0)
    assert due == [f"s/{at}" for at in range(immutability.BATCH_MAX)]


def test_the_earliest_end_is_told_only_when_all_are_known() -> None:
    """An object whose lock was not looked up yet could be the first to go."""
    assert immutability.earliest({"a": 5, "b": 3}, {"a", "b"}) == 3
    assert immutability.earliest({"a": 5}, {"a", "b"}) is None
    assert immutability.earliest({}, set()) is None


# ------------------------------------------------------------------ what is kept locked


def test_everything_that_recovery_needs_is_locked_and_stays_so() -> None:
    """Segments, manifests since the newest complete one, keys and the repository's name; over a month, by steps."""
    copy, locks = locked_copy()
    for _ in range(COMPLETE_EVERY + 3):
        copy.write(b"change", later=MINUTE)
    upkeep = LockUpkeep(FOR_NS)
    settle(upkeep, copy, locks)
    assert copy.writer.state is not None
    newest = copy.writer.state.last.seq
    needed = {*copy.writer.state.segments, "repository.json", f"keys/{'33' * 16}"}
    needed |= {manifest_key(seq) for seq in range(newest - newest % COMPLETE_EVERY, newest + 1)}
    assert needed <= set(locks.ends)
    assert manifest_key(1) not in locks.ends, "nobody needs what comes before a complete one"
    for _ in range(24 * 30):
        copy.clock.now += HOUR
        settle(upkeep, copy, locks)
        assert min(locks.ends[name] for name in needed) >= copy.clock.now + FOR_NS
        assert upkeep.earliest_ns is not None
        assert upkeep.earliest_ns >= copy.clock.now + FOR_NS


def test_an_object_that_is_missing_stops_nothing_and_is_not_called_locked() -> None:
    """Of the rest each lock is extended; what is told is that not all is locked."""
    copy, locks = locked_copy()
    copy.write(b"change")
    copy.store.delete(spec_key(1))
    upkeep = LockUpkeep(FOR_NS)
    settle(upkeep, copy, locks)
    assert upkeep.earliest_ns == 0
    assert len(locks.ends) == 4


def test_a_restart_reads_how_long_each_lock_is_and_extends_none_too_early() -> None:
    """What is known of locks was read from the target; until it is, nothing is claimed."""
    copy, locks = locked_copy()
    for _ in range(10):
        copy.write(b"change", later=MINUTE)
    settle(LockUpkeep(FOR_NS), copy, locks)
    before = len(locks.extended)
    again = LockUpkeep(FOR_NS)
    copy.clock.now += DAY
    assert again.step(copy.writer, locks, copy.clock.now)  # type: ignore[arg-type]
    assert again.earliest_ns is None
    settle(again, copy, locks)
    assert again.earliest_ns == min(locks.ends.values())
    assert len(locks.extended) == before


def test_the_leg_tells_when_the_first_lock_ends_and_dropped_objects_are_let_go() -> None:
    """Compaction extends what lives; what it dropped is deleted once, though the store lists it still."""
    copy, locks = locked_copy()
    deleted: list[str] = []
    for _ in range(80):
        copy.write(b"change", later=MINUTE)
    retention = RetentionSpec(immutable_for=Duration.parse("14d"))
    leg = AsyncLegSpec(target="t", retention=retention)
    compaction = Compaction(JournalSpec(history=Duration.parse("1h")), leg)

    def delete(key: str) -> None:
        deleted.append(key)
        locks.hidden.add(key)

    copy.store.delete = delete  # type: ignore[method-assign]
    for _ in range(4):
        copy.clock.now += 30 * HOUR
        copy.write(b"change", later=MINUTE)
        while compaction.step(copy.writer, copy.commit, copy.clock.now):
            pass
    assert compaction.immutable_until_ns is not None
    assert compaction.immutable_until_ns >= copy.clock.now + FOR_NS
    assert [key for key in deleted if key.startswith("s/")]
    assert len(deleted) == len(set(deleted)), "a second delete would be one more marker, and a request, every minute"


def test_opening_proves_that_locks_hold_and_the_key_is_put_once() -> None:
    """Every opening asks; a wrapped key that lies there is not put again, since each version would stay."""
    copy, locks = locked_copy()
    puts: list[str] = []
    put = copy.store.put
    copy.store.put = lambda key, data: (puts.append(key), put(key, data))[1]  # type: ignore[method-assign]
    copy.writer.open()
    copy.writer.open()
    assert locks.proofs == 2
    assert puts == []
    with pytest.raises(NotFound):
        locks.end_ns("nothing")


# ------------------------------------------------------------------ manifests that somebody else put there


def junk_at(copy: Copy, *numbers: int) -> RepositoryReader:
    """A reader of a locked repository to which manifests were added that are none."""
    for number in numbers:
        copy.store.put(manifest_key(number), b"junk")
    reader = RepositoryReader(copy.store, GROUP, lambda _: bytes(32), reads_what_it_can=True)
    reader.refresh()
    return reader


@pytest.mark.parametrize("ahead", [[1], [COMPLETE_EVERY * 1000], [1, COMPLETE_EVERY * 5, COMPLETE_EVERY * 6 + 1]])
@pytest.mark.parametrize("commits", [5, COMPLETE_EVERY + 5, COMPLETE_EVERY * 2])
def test_manifests_that_are_none_do_not_hide_what_was_committed(commits: int, ahead: list[int]) -> None:
    """Whoever has the keys of the bucket can add objects: every checkpoint is still there, and `latest` is not guessed."""
    copy, _ = locked_copy()
    for _ in range(commits):
        copy.write(b"change", later=MINUTE)
    assert copy.writer.state is not None
    newest = copy.writer.state.last.seq
    reader = junk_at(copy, *(newest + number for number in ahead))
    assert reader.state == copy.writer.state
    marks = list(reader.marks())
    assert len(marks) == commits
    assert reader.resolve(marks[0].id) == marks[0]
    with pytest.raises(Corruption, match="Choose a checkpoint before it"):
        reader.resolve("latest")
    reader.refresh()
    assert reader.state == copy.writer.state, "and it stays so when it looks again"


def test_only_a_reader_of_locked_objects_reads_past_a_manifest_that_is_none() -> None:
    """Anywhere else a manifest that is not authentic is damage, and nothing is read on."""
    copy, _ = locked_copy()
    copy.write(b"change")
    copy.store.put(manifest_key(2), b"junk")
    with pytest.raises(Corruption):
        RepositoryReader(copy.store, GROUP, lambda _: bytes(32)).refresh()
