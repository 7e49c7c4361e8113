"""A sync leg of a group on real files: what waits for the target, what becomes of it when the target fails, hangs or returns."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from dpac_api.errors import Conflict, Corruption, Temporary
from dpac_api.models import TargetSpec
from dpac_engine.control import group_state, marking
from dpac_engine.control import sync_leg as sync_leg_module
from dpac_engine.control.assignment import WorkerAssignment
from dpac_engine.control.group import Group
from dpac_engine.control.leg_orders import LegOrder, Verb
from dpac_engine.core.sync import Phase
from dpac_engine.io import tails as tails_module
from dpac_engine.io.verification import Verifier
from tests.unit import test_group as groups
from tests.unit.test_group import Target, protected, until, volume_of, write

pytestmark = pytest.mark.usefixtures("_fast")
_fast = groups._fast
SOON = "1s"
"""The timeout of a leg that shall be lost; every other has one that a busy machine does not reach."""


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

    def close(self) -> None:
        """Nothing was got ready."""


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
        spec = {"mode": "sync", "target": "copies", "rpo": "1s", "timeout": "60s", **leg}
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
    monkeypatch.setattr(marking, "MARK_SECONDS", 0.05)


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


def stored_pledge(group: Group) -> str | None:
    """What a next life would find of the leg."""
    state = group_state.load(group.folder / "state.json")
    assert state is not None
    return state.legs["copies"].sync


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
        group = site.group()
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


def test_a_hung_target_is_left_behind_after_the_timeout_and_its_late_answer_does_no_harm(tmp_path: Path) -> None:
    """on_loss=async: the loss is on record here before the FLUSH is answered; the worker goes on; the leg comes back."""

    async def story(site: Site) -> None:
        group = site.group(on_loss="async", timeout=SOON)
        await group.start()
        await protected(group)
        site.target.free.clear()
        write(group, 0, b"x" * 4096)
        recorded: list[str | None] = []
        volume_of(group).flush(
            lambda _: recorded.append(group_state.load(site.folder / "state.json").legs["copies"].sync)
        )
        await until(lambda: recorded)
        assert recorded == ["lost"]
        assert "SyncLost" in conditions(group)
        assert not group.status().protected
        write(group, 4096, b"y" * 4096)
        await flushed(group)
        site.target.free.set()
        await in_sync(group)
        assert site.target.late_writes
        assert "SyncLost" not in conditions(group)
        write(group, 8192, b"z" * 4096)
        await flushed(group)
        assert site.disk_at()[: 3 * 4096] == b"x" * 4096 + b"y" * 4096 + b"z" * 4096
        assert group.status().legs["copies"].sync.falls == 1

    run(tmp_path, story)


@pytest.mark.parametrize("state_disk", ["works", "fails too"])
def test_a_flush_past_a_broken_journal_is_answered_once_the_loss_is_on_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state_disk: str
) -> None:
    """Else a life that begins right then would promise that the target has it; where no record can be made, the application goes on."""

    async def story(site: Site) -> None:
        group = site.group(on_loss="async")
        await group.start()
        await in_sync(group)
        recording, recorded, store = asyncio.Event(), asyncio.Event(), group.record

        async def record() -> None:
            recording.set()
            await recorded.wait()
            if state_disk == "fails too":
                raise OSError(errno.EIO, "Input/output error")
            await store()

        with monkeypatch.context() as broken:
            broken.setattr(group, "record", record)
            groups._break(broken, "sync")
            write(group, 0, b"x" * 4096)
            flush = Flush(group)
            await asyncio.wait_for(recording.wait(), 60)
            await until(lambda: volume_of(group).bypass)
            assert not flush.answered
            recorded.set()
            await until(lambda: flush.answered)
        if state_disk == "works":
            assert stored_pledge(group) == "lost"

    run(tmp_path, story)


def test_a_loss_is_told_to_the_target_once_it_can_be(tmp_path: Path) -> None:
    """The manifest says since when its primary acknowledges alone, and that it does no more."""

    async def story(site: Site) -> None:
        group = site.group(on_loss="async", timeout=SOON)
        await group.start()
        await protected(group)
        site.target.free.clear()
        write(group, 0, b"x" * 4096)
        await flushed(group)
        await until(lambda: site.reader().state.last.sync_lost)
        site.target.free.set()
        await in_sync(group)
        await until(lambda: not site.reader().state.last.sync_lost)

    run(tmp_path, story)


def test_with_stop_a_flush_is_held_without_an_error_until_the_target_is_back(tmp_path: Path) -> None:
    """Far beyond the timeout; the condition says so."""

    async def story(site: Site) -> None:
        group = site.group(on_loss="stop", timeout=SOON)
        await group.start()
        await protected(group)
        site.target.away = True
        write(group, 0, b"x" * 4096)
        flush = Flush(group)
        await until(lambda: "SyncHeld" in conditions(group))
        assert not flush.answered
        site.target.away = False
        await until(lambda: flush.answered)
        assert flush.error is None
        assert site.disk_at()[:4096] == b"x" * 4096
        await in_sync(group)

    run(tmp_path, story)


async def order(group: Group, verb: Verb) -> None:
    """As a person gives it."""
    await group.order(LegOrder(verb=verb, by="ops", since_ns=group.stamp()))


def test_a_paused_leg_lets_the_application_go_on_once_that_is_on_record(tmp_path: Path) -> None:
    """With `on_loss=async`: a FLUSH is answered without the target, which is in sync again once the leg is resumed, by then in a new life."""

    async def story(site: Site) -> None:
        group = site.group(on_loss="async")
        await group.start()
        await in_sync(group)
        await order(group, "Pause")
        write(group, 0, b"x" * 4096)
        await flushed(group)
        stored = group_state.load(site.folder / "state.json")
        assert stored is not None
        assert stored.legs["copies"].sync == "lost"
        assert {"Paused", "SyncLost"} <= conditions(group)
        await site.kill(group)
        group = site.group(on_loss="async")
        await group.start()
        await flushed(group)
        assert "Paused" in conditions(group)
        await order(group, "Resume")
        await in_sync(group)
        assert site.disk_at()[:4096] == b"x" * 4096

    run(tmp_path, story)


def test_with_stop_a_paused_leg_holds_what_waits_until_it_is_resumed(tmp_path: Path) -> None:
    """At once, long before its timeout, without an error."""

    async def story(site: Site) -> None:
        group = site.group(on_loss="stop")
        await group.start()
        await in_sync(group)
        await order(group, "Pause")
        write(group, 0, b"x" * 4096)
        flush = Flush(group)
        await until(lambda: {"Paused", "SyncHeld"} <= conditions(group))
        assert not flush.answered
        await order(group, "Resume")
        await until(lambda: flush.answered)
        assert flush.error is None
        assert site.disk_at()[:4096] == b"x" * 4096

    run(tmp_path, story)


@pytest.mark.parametrize("leg", [{"mode": "sync", "on_loss": "async"}, {"mode": "async"}])
def test_a_changed_declaration_frees_what_is_held(tmp_path: Path, leg: dict[str, str]) -> None:
    """on_loss=async, or no sync leg any more."""

    async def story(site: Site) -> None:
        group = site.group(on_loss="stop", timeout=SOON)
        await group.start()
        await protected(group)
        site.target.free.clear()
        write(group, 0, b"x" * 4096)
        flush = Flush(group)
        await until(lambda: phase(group) is Phase.HELD)
        spec = {"replication": {"copies": {"target": "copies", "rpo": "1s", "timeout": SOON, **leg}}}
        if leg["mode"] == "async":
            del spec["replication"]["copies"]["timeout"]
        await group.apply(site.assignment(generation=2, spec=spec))
        await until(lambda: flush.answered)
        assert flush.error is None

    run(tmp_path, story)


@pytest.mark.parametrize("dead", [False, True], ids=["at work", "while it was dead"])
def test_a_pledge_that_was_withdrawn_is_on_record_no_more(tmp_path: Path, dead: bool) -> None:
    """A leg that was declared asynchronous meanwhile, and is a sync one again after a kill, joins: nothing waits for it, whatever on_loss says."""

    async def story(site: Site) -> None:
        group = site.group(on_loss="stop", timeout=SOON)
        await group.start()
        await protected(group)
        await in_sync(group)
        without = {"replication": {"copies": {"target": "copies", "rpo": "1s"}}}
        if dead:
            await site.kill(group)
            site.assignment(generation=2, spec=without)
            group = groups.Site.group(site)
            await group.start()
        else:
            await group.apply(site.assignment(generation=2, spec=without))
        assert stored_pledge(group) is None
        site.target.away = True
        write(group, 0, b"x" * 4096)
        await flushed(group)
        await site.kill(group)
        group = site.group(generation=3, on_loss="stop", timeout=SOON)
        await group.start()
        assert phase(group) is Phase.JOINING
        await flushed(group)
        site.target.away = False
        await in_sync(group)
        assert stored_pledge(group) == "in sync"

    run(tmp_path, story)


def test_a_leg_that_was_removed_leaves_no_pledge(tmp_path: Path) -> None:
    """Added again under its name, it joins, also if the backend died in between."""

    async def story(site: Site) -> None:
        group = site.group(on_loss="stop", timeout=SOON)
        await group.start()
        await protected(group)
        await in_sync(group)
        await group.apply(site.assignment(generation=2, spec={"replication": {}}))
        await site.kill(group)
        site.target.away = True
        group = site.group(generation=3, on_loss="stop", timeout=SOON)
        await group.start()
        assert phase(group) is Phase.JOINING

    run(tmp_path, story)


def test_with_stop_a_new_life_acknowledges_nothing_alone(tmp_path: Path) -> None:
    """The record says that it was in sync: with the target away after a restart, a FLUSH waits."""

    async def story(site: Site) -> None:
        group = site.group(on_loss="stop", timeout=SOON)
        await group.start()
        await protected(group)
        await site.kill(group)
        site.target.away = True
        group = site.group(on_loss="stop", timeout=SOON)
        await group.start()
        write(group, 0, b"x" * 4096)
        flush = Flush(group)
        await until(lambda: phase(group) is Phase.HELD)
        assert not flush.answered
        site.target.away = False
        await until(lambda: flush.answered)

    run(tmp_path, story)


def test_another_primary_fences_the_leg_and_nothing_more_is_acknowledged(tmp_path: Path) -> None:
    """A newer manifest of somebody else: whatever waits is held, also with on_loss=async."""

    async def story(site: Site) -> None:
        group = site.group(on_loss="async")
        await group.start()
        await protected(group)
        other = groups.RepositoryWriter(
            site.target, groups.UID, groups.KEY_ID, b"wrapped", lambda _: groups.KEY, groups.SystemClock()
        )
        state = other.open()
        assert state is not None
        last = state.last
        other.commit(
            epoch=2, epochs=[(1, 0), (2, last.cursor[groups.SHARD])], cursor=last.cursor, members=state.members,
            membership_version=1, spec=last.spec, log_from=last.log_from, incarnation=last.incarnation, tails=True,
        )  # fmt: skip
        for number in range(60):
            write(group, number * 4096, groups.os.urandom(4096))
            Flush(group)
        await until(lambda: phase(group) is Phase.FENCED)
        flush = Flush(group)
        assert "SyncHeld" in conditions(group)
        assert not flush.answered

    run(tmp_path, story)


def test_every_write_waits_with_acknowledge_write(tmp_path: Path) -> None:
    """The export asks for it as soon as the leg counts, and no more once it is lost."""

    async def story(site: Site) -> None:
        group = site.group(acknowledge="write", on_loss="async", timeout=SOON)
        await group.start()
        await in_sync(group)
        assert volume_of(group).durable_acks
        site.target.away = True
        write(group, 0, b"x" * 4096)
        await flushed(group)
        assert phase(group) is Phase.ALONE
        assert not volume_of(group).durable_acks

    run(tmp_path, story)


def test_many_flushes_share_one_append(tmp_path: Path) -> None:
    """Group commit: what comes while an append is under way goes with the next one."""

    async def story(site: Site) -> None:
        group = site.group()
        await group.start()
        await protected(group)
        site.target.free.clear()
        flushes = []
        for number in range(100):
            write(group, number * 4096, b"x" * 4096)
            flushes.append(Flush(group))
        before = site.target.tail_writes
        site.target.free.set()
        await until(lambda: all(flush.answered for flush in flushes))
        assert site.target.tail_writes - before < 20

    run(tmp_path, story)


def test_a_flush_is_not_answered_before_both_disks_have_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On real files: after the last write to the tail its fdatasync has returned, and so has the spool's, before the answer."""
    from dpac_engine.io import spool as spool_module
    from dpac_engine.io.stores import tails as tail_files
    from dpac_engine.io.stores.filesystem import FilesystemStore
    from dpac_engine.io.stores.prefixed import PrefixedStore

    events: list[str] = []
    real_sync, real_write = tail_files.os.fdatasync, tail_files.write_all

    class Os:
        """`os`, with its syncs told."""

        def __init__(self, name: str) -> None:
            self._name = name

        def __getattr__(self, name: str) -> Any:
            return getattr(groups.os, name)

        def fdatasync(self, descriptor: int) -> None:
            """Told once it has returned."""
            real_sync(descriptor)
            events.append(f"{self._name} synced")

    def write_all(*arguments: Any) -> None:
        real_write(*arguments)
        events.append("tail written")

    monkeypatch.setattr(tail_files, "os", Os("tail"))
    monkeypatch.setattr(spool_module, "os", Os("spool"))
    monkeypatch.setattr(tail_files, "write_all", write_all)

    async def story(site: Site) -> None:
        root = site.root / "copies"
        root.mkdir()
        site.targets["copies"] = PrefixedStore(FilesystemStore(root), "g/one/")  # type: ignore[assignment]
        group = site.group()
        store = tail_files.FilesystemTails(root, "g/one/")
        group._deps = group._deps._replace(open_tails=lambda *_: store)
        await group.start()
        await protected(group)
        for number in range(1, 30):
            events.clear()
            write(group, number * 4096, bytes([number]) * 4096)
            await flushed(group)
            seen = list(events)
            assert "spool synced" in seen
            assert "tail synced" in seen[seen.index("tail written") :]
            assert site.disk_at()[number * 4096 : (number + 1) * 4096] == bytes([number]) * 4096
        site.targets["copies"] = SyncTarget()  # for the story's end
        await group.stop()
        site.groups.remove(group)

    run(tmp_path, story)


def test_a_damaged_tail_is_found_and_latest_is_not_served_without_what_it_held(tmp_path: Path) -> None:
    """A flipped bit in the last frame: `latest` is refused, a checkpoint before it is given, and verification names the tail."""

    async def story(site: Site) -> None:
        group = site.group(rpo="60s")
        await group.start()
        await protected(group)
        sound = await groups.shipped(group, tag="sound")
        for number in range(8):
            write(group, number * 4096, groups.os.urandom(4096))
            await flushed(group)
        await site.kill(group)
        (name,) = [key for key in site.target.objects if key.startswith("tail/")]
        held = bytearray(site.target.objects[name])
        held[len(bytes(held).rstrip(b"\0")) - 100] ^= 1
        site.target.objects[name] = bytes(held)
        reader = site.reader()
        with pytest.raises(Corruption, match=name):
            reader.resolve("latest")
        assert reader.resolve("tag:sound").lsn == sound.lsn
        fresh = groups.RepositoryReader(site.target, groups.UID, lambda _: groups.KEY)
        found = Verifier(fresh, lambda *_: None, lambda *_: None).run()
        assert [finding.object for finding in found.findings] == [name]
        assert name not in [spare.object for spare in found.spares]

    run(tmp_path, story)
