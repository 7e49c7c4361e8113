"""Levels: the history stays whole while the number of its segments stays small."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import pairwise

from dpac_api.models import JournalSpec, RetentionSpec
from dpac_api.quantities import Duration
from dpac_engine.control.compaction import GRACE_NS
from dpac_engine.core import levels
from dpac_engine.core.levels import LEVEL_SECONDS
from dpac_engine.core.manifest import COMPLETE_EVERY, SegmentRef
from dpac_engine.core.sealing import SEGMENT_BYTES
from dpac_engine.core.segment import SegmentKind, decode_segment_header
from dpac_engine.io.stores.memory import MemoryStore
from tests.unit.test_compaction import Copy

SECOND = 10**9
DAY = JournalSpec(history=Duration.parse("1d"))


def ref(number: int, *, stored: int = 1000, seconds: int = 5, level: int = 0) -> SegmentRef:
    """The segment of one seal every few seconds."""
    at = number * seconds * SECOND
    return SegmentRef(f"s/{number}", SegmentKind.LOG, 1, number * 64, number * 64 + 64, at, at, stored, "", level=level)


def test_a_span_is_joined_once_it_is_over() -> None:
    """Segments of the last half minute wait for their neighbours."""
    refs = [ref(number) for number in range(6)]
    assert levels.plan(refs, 29 * SECOND) is None
    join = levels.plan(refs, 30 * SECOND)
    assert join is not None
    assert [each.name for each in join.segments] == [each.name for each in refs]
    assert join.level == 1


def test_large_segments_gaps_and_other_epochs_are_left() -> None:
    """Joining a segment of full size saves nothing; a joined segment's records lie in one piece of one epoch's log."""
    large = [ref(number, stored=SEGMENT_BYTES) for number in range(6)]
    assert levels.plan(large, 3600 * SECOND) is None
    assert levels.plan([ref(0), ref(2)], 3600 * SECOND) is None
    second = SegmentRef("s/x", SegmentKind.LOG, 2, 64, 128, SECOND, SECOND, 10, "")
    assert levels.plan([ref(0), second], 3600 * SECOND) is None


def test_a_joined_segment_is_of_bounded_size() -> None:
    """A run stops before it would become larger than two segments of full size."""
    join = levels.plan([ref(number, stored=SEGMENT_BYTES - 1) for number in range(6)], 3600 * SECOND)
    assert join is not None
    assert len(join.segments) == 2


def test_an_hour_of_seals_every_few_seconds_becomes_a_few_segments_and_no_checkpoint_is_lost(seed: int) -> None:
    """After each minute's compaction every checkpoint gives its content back; no byte is rewritten more than once a level."""
    copy, chance = Copy(), random.Random(seed)
    written = dict.fromkeys(range(len(LEVEL_SECONDS) + 1), 0)
    put = copy.writer.store.put

    def counting(key: str, data: bytes | memoryview) -> None:
        if key.startswith("s/"):
            written[decode_segment_header(bytes(data)).level] += len(data)
        put(key, data)

    copy.store.put = counting  # type: ignore[method-assign]
    for number in range(1, 1500):
        copy.write(chance.randbytes(20), later=5 * SECOND)
        if number % 12 == 0:
            copy.compact(DAY, RetentionSpec())
    copy.clock.now += 3600 * SECOND
    copy.compact(DAY, RetentionSpec())
    reader = copy.reader()
    assert copy.check() == list(range(1, 1500))
    assert len(reader.refs()) <= 1500 * 5 // LEVEL_SECONDS[2] + 2
    assert all(written[level] <= written[level - 1] for level in range(1, len(LEVEL_SECONDS) + 1))
    for _ in range(2):  # the first time what is left of the hours becomes a day's
        copy.clock.now += GRACE_NS + SECOND
        copy.compact(JournalSpec(history=Duration.parse("30d")), RetentionSpec())
    assert set(copy.store.list("s/")) == {each.name for each in copy.reader().refs()}


class Asked(MemoryStore):
    """A target that counts what it is asked."""

    requests = 0

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        self.requests += 1
        return super().get(key, offset, length)

    def list(self, prefix: str, start_after: str = "") -> Iterator[str]:
        self.requests += 1
        return super().list(prefix, start_after)


def test_what_a_restore_asks_grows_with_what_is_stored_and_not_with_how_often_it_was_shipped(seed: int) -> None:
    """After a thousand segments, and after ten thousand of the same volume: an open, a search and a whole read."""
    copy, chance = Copy(), random.Random(seed)
    copy.store = store = Asked()
    copy.open()
    asked, stored = {}, 0
    for number in range(1, 10_001):
        copy.write(chance.randbytes(20), later=5 * SECOND)
        if number % 60 == 0:
            copy.compact(DAY, RetentionSpec())
        if number in (1000, 10_000):
            copy.compact(DAY, RetentionSpec())
            store.requests = 0
            reader = copy.reader()
            image = reader.image(reader.resolve("latest")).volume(1)
            assert image.read(0, 1024) == copy.device
            asked[number], stored = store.requests, reader.require_state().stored_bytes
    levels_of_a_day = sum(
        longer // shorter for shorter, longer in pairwise((5, *LEVEL_SECONDS))
    )  # so many segments of each level wait to become one of the next
    allowed = COMPLETE_EVERY + 8 + 3 * (levels_of_a_day + stored // SEGMENT_BYTES)
    assert max(asked.values()) <= allowed, f"seed {seed}: {asked}"
    print(f"{asked} requests, {stored} bytes stored, at most {allowed}")


def test_damage_at_the_target_does_not_stop_the_leg() -> None:
    """A segment that cannot be read stays as it is, for `verify` to name; its neighbours are joined around it."""
    copy = Copy()
    for _ in range(12):
        copy.write(b"x" * 20, later=5 * SECOND)
    refs = copy.reader().refs()
    damaged = bytearray(copy.store.objects[refs[3].name])
    damaged[300] ^= 1
    copy.store.objects[refs[3].name] = bytes(damaged)
    copy.clock.now += 3600 * SECOND
    copy.compact(DAY, RetentionSpec())
    left = copy.reader().refs()
    assert refs[3].name in {each.name for each in left}
    assert len(left) < 6
