"""Compaction against everything else at once: histories, limits, retention, holds, mounts, restarts, by hypothesis.

Whatever comes together, the newest checkpoint and the held ones give their content back, a mount reads on, and nothing is
deleted that is live, mounted, or was dropped less than a day ago. Locks: tests/unit/test_immutability.py.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from dpac_api.errors import Unrecoverable
from dpac_api.models import AsyncLegSpec, RetentionSpec
from dpac_api.quantities import Duration
from dpac_engine.control import merging
from dpac_engine.control.compaction import GRACE_NS, Compaction
from dpac_engine.core import retention, stripes
from dpac_engine.core.manifest import Hold
from dpac_engine.io.stores.memory import MemoryStore
from tests.unit.test_compaction import HOUR, Copy
from tests.unit.test_retention_laws import KIB, journal_of

EXAMPLES = 25


class Watched(MemoryStore):
    """A target that tells of deletes."""

    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self.machine = machine

    def delete(self, key: str) -> None:
        self.machine.deleted(key)
        super().delete(key)


class Machine(RuleBasedStateMachine):
    """One repository, and what was promised of it."""

    def __init__(self) -> None:
        super().__init__()
        self.copy = Copy()
        self.copy.store = Watched(self)
        self.copy.open()
        self.held: dict[str, Hold] = {}
        self.mounted: list[tuple[Any, set[str], bytes]] = []
        self.dropped_ns: dict[str, int] = {}
        self.leg = AsyncLegSpec(target="t", retention=RetentionSpec())
        self.journal = journal_of("1h", 2**40)
        self.copy.write(b"first")

    @initialize()
    def start(self) -> None:
        """A leg that has just been declared."""
        self.restart()

    def names_mounted(self) -> set[str]:
        """What open mounts read."""
        return {name for _, names, _ in self.mounted for name in names}

    def deleted(self, key: str) -> None:
        """The collector deletes an object."""
        if key.startswith("s/"):
            assert key not in self.copy.writer.reader.require_state().segments, "it is live"
            assert key not in self.names_mounted(), "a mount reads it"
            assert self.copy.clock.now - self.dropped_ns[key] > GRACE_NS, "it was needed less than a day ago"

    @rule()
    def restart(self) -> None:
        """The worker ends wherever it is, and another one goes on."""
        self.copy.open()
        self.compaction = Compaction(self.journal, self.leg, self.names_mounted)

    @rule(number=st.integers(1, 20), later=st.sampled_from((10**9, HOUR // 7, HOUR, 30 * HOUR)), tag=st.booleans())
    def write(self, number: int, later: int, tag: bool) -> None:
        """Changes, each with its checkpoint."""
        for _ in range(number):
            self.copy.write(bytes([self.copy.sequence % 251 + 1]) * 20, later=later, tag="t" if tag else "")

    @rule(
        history=st.sampled_from(("1h", "2d", "30d")),
        size=st.sampled_from((1, 10 * KIB, 2**40)),
        counts=st.tuples(*[st.sampled_from((0, 1, 3))] * 5),
        good=st.integers(1, 3),
        tagged=st.sampled_from(("0s", "5d")),
    )
    def declare(self, history: str, size: int, counts: tuple[int, ...], good: int, tagged: str) -> None:
        """Another history, limit or retention."""
        names = ("hourly", "daily", "weekly", "monthly", "yearly")
        counted: dict[str, Any] = dict(zip(names, counts, strict=True))
        kept = RetentionSpec(**counted, keep_good=good, tagged=Duration.parse(tagged))
        self.journal, self.leg = journal_of(history, size), AsyncLegSpec(target="t", retention=kept)
        self.restart()

    @rule(data=st.data(), lasts=st.sampled_from((0, HOUR, 100 * HOUR)))
    def hold(self, data: st.DataObject, lasts: int) -> None:
        """Some checkpoint, for a while or until it is released."""
        mark = data.draw(st.sampled_from(list(self.copy.reader().marks())))
        now = self.copy.clock.now
        self.held[mark.id] = Hold(mark.id, mark.lsn, now, now + lasts if lasts else 0)
        self.copy.writer.hold(self.held[mark.id])

    @precondition(lambda self: self.held)
    @rule()
    def release(self) -> None:
        """The one that was held first."""
        checkpoint = next(iter(self.held))
        del self.held[checkpoint]
        self.copy.writer.release(checkpoint)

    @rule(data=st.data())
    def mount(self, data: st.DataObject) -> None:
        """Open some checkpoint, and keep it open."""
        reader = self.copy.reader()
        mark = data.draw(st.sampled_from(list(reader.marks())))
        names = {ref.name for ref in reader.refs_of(mark)}
        self.mounted.append((reader.image(mark).volume(1), names, self.copy.content[mark.id]))

    @precondition(lambda self: self.mounted)
    @rule()
    def unmount(self) -> None:
        """The one that was mounted first."""
        self.mounted.pop(0)

    @rule(parts=st.integers(1, 40))
    def compact(self, parts: int) -> None:
        """Some of what there is to do, or all."""
        for _ in range(parts):
            more = self.compaction.step(self.copy.writer, self.copy.commit, self.copy.clock.now)
            for name in self.copy.writer.reader.require_state().dropped:
                self.dropped_ns.setdefault(name, self.copy.clock.now)
            if not more:
                break

    @rule()
    def wait(self) -> None:
        """A day and more goes by."""
        self.copy.clock.now += GRACE_NS + HOUR

    @invariant()
    def newest_held_and_mounted_are_whole(self) -> None:
        """However they are asked for."""
        reader, now = self.copy.reader(), self.copy.clock.now
        newest = reader.resolve("latest")
        assert newest.sequence == self.copy.sequence, "the newest checkpoint is lost"
        for checkpoint in {newest.id, *(name for name, hold in self.held.items() if hold.is_active(now))}:
            try:
                mark = reader.resolve(checkpoint)
            except Unrecoverable:
                raise AssertionError(f"{checkpoint} is held and lost") from None
            assert reader.image(mark).volume(1).read(0, 1024) == self.copy.content[checkpoint]
        for image, _, content in self.mounted:
            assert image.read(0, 1024) == content


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Merge however little there is, into several stripes."""
    monkeypatch.setattr(retention, "MERGE_SEGMENTS_MIN", 1)
    monkeypatch.setattr(merging, "MERGED_BYTES", 100)
    monkeypatch.setattr(stripes, "STRIPE_BYTES", 2500)
    monkeypatch.setattr(stripes, "SMALL_BYTES", 0)


def test_nothing_that_is_needed_goes_whatever_comes_together() -> None:
    """The laws above, after every step."""
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
