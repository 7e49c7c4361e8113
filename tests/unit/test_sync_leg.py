"""A sync leg of a group on real files: what waits for the target, what becomes of it when the target fails, hangs or returns."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from dpac_api.errors import Conflict, Temporary
from dpac_api.models import TargetSpec
from dpac_engine.control import group as group_module
from dpac_engine.control import sync_leg as sync_leg_module
from dpac_engine.control.assignment import WorkerAssignment
from dpac_engine.control.group import Group
from dpac_engine.core.sync import Phase
from dpac_engine.io import tails as tails_module
from tests.unit import test_group as groups
from tests.unit.test_group import Target, protected, until, volume_of, write

pytestmark = pytest.mark.usefixtures("_fast")
_fast = groups._fast
TIMEOUT_SECONDS = 0.3


class SyncTarget(Target):
    """A target in memory that can be appended to; `away` refuses, `hung` blocks whoever writes to a tail until it is set again."""

    def __init__(self) -> None:
        super().__init__()
        self.free = threading.Event()
        self.free.set()
        self.tail_writes = 0
        self.late_writes = 0

    def open_tail(self, key: str, size_bytes: int) -> MemoryTail:
        self._meet()
        if key in self.objects:
            raise Conflict("It is there already.")
        self.objects[key] = bytes(size_bytes)
        return MemoryTail(self, key)

    def prepare(self, size_bytes: int) -> None:
        """Nothing is needed in memory."""


class MemoryTail:
    """A tail in a `SyncTarget`."""

    def __init__(self, target: SyncTarget, key: str) -> None:
        self._target, self._key = target, key

    def write(self, offset: int, data: bytes) -> None:
        target = self._target
        if not target.free.is_set():
            target.free.wait()
            target.late_writes += 1
        target._meet()
        if self._key not in target.objects:
            raise Temporary("It is gone.")
        held = bytearray(target.objects[self._key])
        held[offset : offset + len(data)] = data
        target.objects[self._key] = bytes(held)
        target.tail_writes += 1

    def close(self) -> None:
        """Nothing is held."""


class Site(groups.Site):
    """A group with a sync leg to a `SyncTarget`."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.targets = {"copies": SyncTarget()}

    @property
    def target(self) -> SyncTarget:
        """Where the leg goes."""
        target = self.targets["copies"]
        assert isinstance(target, SyncTarget)
        return target

    def sync(self, *, generation: int = 1, **leg: Any) -> WorkerAssignment:
        """The assignment, the leg's declaration changed."""
        spec = {"mode": "sync", "target": "copies", "rpo": "1s", "timeout": f"{TIMEOUT_SECONDS * 1000:.0f}ms", **leg}
        return self.assignment(generation=generation, spec={"replication": {"copies": spec}})

    def group(self, **leg: Any) -> Group:
        """The group, not started."""
        self.sync(**leg)

        def open_tails(assignment: WorkerAssignment, target: TargetSpec) -> SyncTarget:
            return self.target

        group = super().group()
        group._deps = group._deps._replace(open_tails=open_tails)
        return group


def run(tmp_path: Path, story: Callable[[Site], Coroutine[Any, Any, None]]) -> None:
    """Run a story at a fresh site, and stop whatever it started."""

    async def told() -> None:
        site = Site(tmp_path)
        try:
            await story(site)
        finally:
            site.target.away = False
            site.target.free.set()
            for group in site.groups:
                if hasattr(group, "spool"):
                    await group.stop()
            site.executor.shutdown()

    asyncio.run(told())


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries come at once, tails are small; marks come rarely, so that what is asked for is what travels."""
    monkeypatch.setattr(sync_leg_module, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(tails_module, "TAIL_BYTES", 64 * 1024)
    monkeypatch.setattr(group_module, "MARK_SECONDS", 0.05)


class Flush:
    """A FLUSH under way."""

    def __init__(self, group: Group) -> None:
        self.answered = False
        self.error: OSError | None = None
        volume_of(group).flush(self._done)

    def _done(self, error: OSError | None) -> None:
        self.answered, self.error = True, error


async def flushed(group: Group) -> None:
    """A FLUSH, answered without an error."""
    flush = Flush(group)
    await until(lambda: flush.answered)
    assert flush.error is None


async def in_sync(group: Group) -> None:
    """Wait until the leg is."""
    await until(lambda: group.sync_legs["copies"].in_sync)


def phase(group: Group) -> Phase:
    """Where the leg is."""
    return group.sync_legs["copies"].phase


def conditions(group: Group) -> set[str]:
    """What the group complains of."""
    return {condition.type for condition in group.status().conditions}


def test_a_flush_is_answered_when_the_target_has_it_and_latest_there_includes_it(tmp_path: Path) -> None:
    """Thrice around: write, FLUSH, and read the volume from the target alone at once."""

    async def story(site: Site) -> None:
        group = site.group()
        await group.start()
        await protected(group)
        assert group.status().legs["copies"].in_sync
        for number in range(1, 40):
            data = bytes([number]) * 4096
            write(group, number * 4096, data)
            await flushed(group)
            assert site.disk_at()[number * 4096 : (number + 1) * 4096] == data
        assert group.status().flush_wait.count >= 39

    run(tmp_path, story)


def test_a_flush_waits_while_the_target_does_not_answer(tmp_path: Path) -> None:
    """Nothing is acknowledged alone within the timeout; an answer in time lets it go and the leg stays in sync."""

    async def story(site: Site) -> None:
        group = site.group(timeout="10s")
        await group.start()
        await protected(group)
        site.target.free.clear()
        write(group, 0, b"x" * 4096)
        flush = Flush(group)
        await until(lambda: group.spool.durable_lsn == group.spool.head_lsn)
        assert not flush.answered
        site.target.free.set()
        await until(lambda: flush.answered)
        assert phase(group) is Phase.IN_SYNC
        assert site.disk_at()[:4096] == b"x" * 4096

    run(tmp_path, story)
