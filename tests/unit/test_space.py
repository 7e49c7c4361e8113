"""Space: every byte at a target is accounted for, and what is said to be unique is."""

from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from dpac_api.errors import Temporary
from dpac_api.models import RetentionSpec
from dpac_engine.control import space
from dpac_engine.control.compaction import GRACE_NS
from dpac_engine.control.moments import moment
from dpac_engine.control.space import measure
from dpac_engine.control.space_ledger import MEASURED_FOR, SpaceLedger
from dpac_engine.core import retention
from dpac_engine.core.manifest import Hold
from dpac_engine.core.records import Kind
from dpac_engine.core.segment import SegmentKind, SegmentWriter
from tests.unit.test_compaction import Copy
from tests.unit.test_retention_laws import journal_of


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Merge however little there is."""
    monkeypatch.setattr(retention, "MERGE_SEGMENTS_MIN", 1)


def thinned(seed: int) -> tuple[Copy, list[int]]:
    """A repository with everything in it, and the sequences of the checkpoints beyond its history."""
    chance, copy = random.Random(seed), Copy()
    for _ in range(40):
        copy.write(chance.randbytes(20))
    marks = {mark.sequence: mark for mark in copy.reader().marks()}
    held = sorted(chance.sample(range(1, 30), 3))
    for sequence in held:
        copy.writer.hold(Hold(marks[sequence].id, marks[sequence].lsn, copy.clock.now))
    copy.compact(journal_of("5h", 2**30), RetentionSpec())
    return copy, sorted({*held, 34})


def test_every_byte_at_the_target_is_accounted_for(seed: int) -> None:
    """Live by kind, dropped with the moment when it goes, orphans, overhead: together they are what lies there."""
    copy, _ = thinned(seed)
    rows = SegmentWriter()
    rows.add(Kind.WRITE, 0, 1, 64, 1, 0, 4, b"lost")
    orphan = copy.put(rows, [], SegmentKind.LOG, (8192, 9216))
    found = measure("copies", copy.reader())
    assert found.stored_bytes == sum(map(len, copy.store.objects.values()))
    live = found.seed_bytes + sum(found.log_bytes.values()) + found.merged_bytes
    assert live == copy.reader().require_state().stored_bytes
    assert min(found.merged_bytes, found.dropped_bytes, found.overhead_bytes, *found.log_bytes.values()) > 0
    assert found.orphan_bytes == orphan.bytes
    assert found.reclaimable_bytes == found.dropped_bytes + found.orphan_bytes
    assert found.unique_bytes == sum(each.unique_bytes or 0 for each in found.kept)
    assert found.unique_bytes + found.shared_bytes == live
    assert not found.estimated
    assert found.dropped_until == moment(copy.clock.now + GRACE_NS)
    copy.compact(journal_of("5h", 2**30), RetentionSpec())
    for _ in range(2):  # the first time what is left of the hours becomes a day's
        copy.clock.now += GRACE_NS + 1
        copy.compact(journal_of("365d", 2**30), RetentionSpec())
    after = measure("copies", copy.reader())
    assert (after.reclaimable_bytes, after.dropped_until) == (0, None)
    assert after.stored_bytes == sum(map(len, copy.store.objects.values()))


def told(numbers: range) -> tuple[set[int], set[int]]:
    """Which bytes the writes of a range left, by what `Copy.write` does, and which they changed at all."""
    left, changed = set[int](), set[int]()
    for number in numbers:
        wrote = set(range(number * 8 % 512, number * 8 % 512 + 20))
        trimmed = set(range((number - 2) * 8 % 512, (number - 2) * 8 % 512 + 4))
        left, changed = (left | wrote) - trimmed, changed | wrote | trimmed
    return left, changed


def test_unique_bytes_of_a_checkpoint_are_those_that_the_next_one_overwrites(seed: int) -> None:
    """Against a model of which bytes were written between which checkpoints."""
    copy, kept = thinned(seed)
    found = measure("copies", copy.reader())
    assert [int(item.checkpoint.split("-")[2]) for item in found.kept] == kept
    ranges = [range(first + 1, last + 1) for first, last in zip([0, *kept], kept, strict=False)]
    for item, mine, after in zip(found.kept[:-1], ranges, ranges[1:], strict=False):
        left, gone = told(mine)[0], told(after)[1]
        assert item.unique_bytes == len(left & gone) * item.stored_bytes // len(left), f"seed {seed}"
    assert found.kept[-1].unique_bytes is None  # its neighbour is the log


def test_what_was_estimated_is_said_to_be(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A target with a million dropped objects is not asked a million times."""
    copy, _ = thinned(seed)
    exact = measure("copies", copy.reader())
    monkeypatch.setattr(space, "SIZED_MAX", 3)
    about = measure("copies", copy.reader())
    assert about.estimated
    assert about.dropped_bytes == pytest.approx(exact.dropped_bytes, rel=0.2)
    monkeypatch.setattr(space, "ROWS_MAX", 0)
    assert {item.unique_bytes for item in measure("copies", copy.reader()).kept} == {None}


def test_groups_are_measured_one_by_one_the_longest_ago_first() -> None:
    """Each about every hour; one that is away is no hindrance, one that is gone is forgotten."""
    now, asked = datetime(2026, 1, 1, tzinfo=UTC), list[str]()

    def measure_group(group: Any) -> list[Any]:
        asked.append(group.uid)
        if group.uid == "b":
            raise Temporary("The target is away.")
        return []

    ledger = SpaceLedger(measure_group, lambda: now)
    groups: list[Any] = [SimpleNamespace(uid=uid, name=uid) for uid in "abc"]
    for _ in range(5):
        asyncio.run(ledger.look(groups))
        now += timedelta(seconds=60)
    assert asked == ["a", "b", "c"]
    now += MEASURED_FOR
    asyncio.run(ledger.look(groups[1:]))
    asyncio.run(ledger.look(groups))
    assert asked == ["a", "b", "c", "b", "a"]
