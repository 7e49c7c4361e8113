"""A group at work on real files: checkpoints, legs, seeds, restarts, and what becomes of it when things fail."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import re
import threading
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dpac_api.errors import Conflict, Corruption, Denied, DpacError, NotFound, Temporary, Unsupported
from dpac_api.models import DataState, GroupStatus, LegSpec, S3TargetSpec, SlaState, TargetSpec
from dpac_api.quantities import Size
from dpac_engine.control import group as group_module
from dpac_engine.control import group_state, journal_return, marking
from dpac_engine.control import shipper as shipper_module
from dpac_engine.control import spool_quota as quota_module
from dpac_engine.control.assignment import MemberAssignment, WorkerAssignment
from dpac_engine.control.compaction import Compaction
from dpac_engine.control.group import Group, GroupDeps
from dpac_engine.control.merging import Commit
from dpac_engine.control.shipper import Shipper
from dpac_engine.control.worker_api import HoldChange, WorkerRewind
from dpac_engine.core import sealing
from dpac_engine.core.checkpoints import Mark
from dpac_engine.core.image import Image
from dpac_engine.core.ports import TailStore, TargetMissing
from dpac_engine.core.records import Kind
from dpac_engine.core.segment import SegmentKind
from dpac_engine.io import journal_failure_note, spare_files
from dpac_engine.io import spool as spool_module
from dpac_engine.io.clock import SystemClock
from dpac_engine.io.holes import punch_hole
from dpac_engine.io.members.directory import DirectoryMember
from dpac_engine.io.members.volume import Volume
from dpac_engine.io.nbd.export import Change, ChangeKind
from dpac_engine.io.repository import RepositoryReader, RepositoryWriter
from dpac_engine.io.stores.memory import MemoryStore

KEY, KEY_ID, UID, SHARD = bytes(32), "7" * 32, "1" * 32, "6" * 32
DISK_BYTES = 4 * 2**20
DEADLINE_SECONDS = 90


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds become hundredths; spool files become small."""
    monkeypatch.setattr(marking, "MARK_SECONDS", 0.02)
    monkeypatch.setattr(quota_module, "UPKEEP_SECONDS", 0.02)
    monkeypatch.setattr(quota_module, "SYNC_SECONDS", 0.02)
    monkeypatch.setattr(group_module, "ATTACH_RETRY_SECONDS", 0.05)
    monkeypatch.setattr(journal_return, "PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(journal_return, "PAUSE_SECONDS_MAX", 0.2)
    monkeypatch.setattr(journal_return, "LEGS_WAIT_SECONDS", 0.5)
    monkeypatch.setattr(shipper_module, "RETRY_SECONDS", (0.01,))
    monkeypatch.setattr(shipper_module, "REFUSED_RETRY_SECONDS", 0.02)
    monkeypatch.setattr(shipper_module, "WATCH_SECONDS", 0.02)
    for module in (spool_module, quota_module):
        monkeypatch.setattr(module, "FILE_BYTES", 2**20)


class Target(MemoryStore):
    """A target that can be away, and whose answers can be lost."""

    away = False
    fault: DpacError | None = None
    lax = False
    """Creates are done where the key is taken, too."""
    answers_lost = 0

    def _meet(self) -> None:
        if self.away:
            raise Temporary("The target is away. Wait.")
        if self.fault is not None:
            raise self.fault

    def put(self, key: str, data: bytes | memoryview) -> None:
        self._meet()
        super().put(key, data)

    def create(self, key: str, data: bytes | memoryview) -> None:
        self._meet()
        if self.lax:
            super().put(key, data)
        else:
            super().create(key, data)
        if key.startswith("m/") and self.answers_lost:
            self.answers_lost -= 1
            # As a store that tries again by itself after a time-out: the second try finds its own object.
            raise Conflict("It is there already.")

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        self._meet()
        return super().get(key, offset, length)


class Site:
    """A host with groups, and targets beside it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "group"
        (self.folder / "members").mkdir(parents=True)
        self.disk = root / "disk.raw"
        self.targets: dict[str, Target] = {"copies": Target()}
        self.buckets: set[str] = set()
        """Targets that are declared as buckets; the others are folders."""
        self.executor = ThreadPoolExecutor(4)
        self.groups: list[Group] = []
        self.changes: dict[str, Any] = {}

    def assignment(self, **changes: Any) -> WorkerAssignment:
        """A volume `disk`, a leg `copies`; `changes` stay for later ones."""
        self.changes |= changes
        spec: dict[str, Any] = {
            "members": {"disk": {"kind": "volume", "path": str(self.disk), "size": "4MiB"}},
            "replication": {"copies": {"target": "copies", "rpo": "1s"}},
            **self.changes.get("spec", {}),
        }
        names = list(spec["members"])
        made = WorkerAssignment.model_validate(
            {
                "group_uid": UID,
                "name": "shop",
                "site_uid": "5" * 32,
                "shard_uid": SHARD,
                "worker": 0,
                "generation": self.changes.get("generation", 1),
                "epoch": 1,
                "membership_version": len(names),
                "key_id": KEY_ID,
                "spec": spec,
                "members": {
                    name: MemberAssignment(ordinal=at + 1, uid=f"{at + 1:032x}") for at, name in enumerate(names)
                },
                "targets": {
                    name: {"kind": "s3", "bucket": name}
                    if name in self.buckets
                    else {"kind": "filesystem", "path": f"/{name}"}
                    for name in self.targets
                },
            }
        )
        limits = {"spool_max": Size("128MiB"), "size_max": Size("16GiB")}
        journal = made.spec.journal.model_copy(update={name: self.changes.get(name, limits[name]) for name in limits})
        return made.model_copy(update={"spec": made.spec.model_copy(update={"journal": journal})})

    def store(self, target: TargetSpec) -> Target:
        """What is behind a declared target."""
        return self.targets[target.bucket if isinstance(target, S3TargetSpec) else target.path[1:]]

    def group(self, **changes: Any) -> Group:
        """The group, not started."""

        def open_writer(assignment: WorkerAssignment, leg: LegSpec, target: TargetSpec) -> RepositoryWriter:
            return RepositoryWriter(self.store(target), UID, KEY_ID, b"wrapped", lambda _: KEY, SystemClock())

        def compactor(assignment: WorkerAssignment, leg: LegSpec) -> Compaction:
            return Compaction(assignment.spec.journal, leg)

        def directory(spec: Any, journal: Any, folder: Path) -> DirectoryMember:
            return DirectoryMember(Path(spec.path), journal, SystemClock(), folder, None)

        def open_tails(assignment: WorkerAssignment, target: TargetSpec) -> TailStore:
            raise AssertionError("no leg of these groups is sync")

        def open_reader(group_uid: str, target: TargetSpec) -> RepositoryReader:
            return RepositoryReader(self.store(target), UID, lambda _: KEY)

        deps = GroupDeps(SystemClock(), self.executor, open_writer, compactor, directory, open_tails, open_reader)
        self.groups.append(Group(self.assignment(**changes), self.folder, deps))
        return self.groups[-1]

    async def kill(self, group: Group) -> None:
        """End it as a kill would: nothing is drained, stored or told; only its threads end."""
        tasks = [*group._tasks, *(task for member in group.members.values() for task in member._tasks)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.to_thread(group._state_file.lock.acquire)  # a thread of it may still be at work
        for leg in group.legs.values():
            await leg.stop()
        for member in group.members.values():
            if member.volume is not None:
                async with member.volume._applying:
                    member.volume.close()
                    member.volume = None
        await asyncio.to_thread(group.spool.stop)
        self.groups.remove(group)

    def reader(self, target: str = "copies") -> RepositoryReader:
        """What the target holds."""
        reader = RepositoryReader(self.targets[target], UID, lambda _: KEY)
        reader.refresh()
        return reader

    def image(self, target: str = "copies", at: str = "latest") -> tuple[Mark, Image]:
        """A checkpoint at a target."""
        reader = self.reader(target)
        mark = reader.resolve(at)
        return mark, reader.image(mark)

    def disk_at(self, target: str = "copies", at: str = "latest") -> bytes:
        """The volume at a checkpoint."""
        volume = self.image(target, at)[1].volume(1)
        return volume.read(0, volume.size_bytes)


def run(tmp_path: Path, story: Callable[[Site], Coroutine[Any, Any, None]]) -> None:
    """Run a story at a fresh site, and stop whatever it started."""

    async def told() -> None:
        site = Site(tmp_path)
        try:
            await story(site)
        finally:
            for target in site.targets.values():
                target.away = False
            for group in site.groups:
                if hasattr(group, "spool"):
                    await group.stop()
            site.executor.shutdown()

    asyncio.run(told())


async def until(condition: Callable[[], object]) -> None:
    """Wait for a condition, with a deadline."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not condition():  # noqa: ASYNC110 - any condition, not an event
            await asyncio.sleep(0.005)


async def protected(group: Group) -> GroupStatus:
    """Wait until the group says so."""
    await until(lambda: group.status().protected)
    return group.status()


def volume_of(group: Group) -> Volume:
    """Its volume."""
    volume = group.members[1].volume
    assert volume is not None
    return volume


def write(group: Group, offset: int, data: bytes) -> None:
    """An application's write."""
    volume_of(group).submit([Change(ChangeKind.WRITE, offset, len(data), memoryview(data))])


async def shipped(group: Group, *, tag: str) -> Mark:
    """A tagged checkpoint that is at every target."""
    mark = group.mark(tags=(tag,))
    assert mark is not None
    await group.ship()
    return mark


def test_a_new_group_becomes_protected_and_every_checkpoint_is_what_was(tmp_path: Path) -> None:
    """Marks come by themselves; each tagged checkpoint gives the bytes of its moment back."""

    async def story(site: Site) -> None:
        group = site.group()
        await group.start()
        status = await protected(group)
        assert status.seeded
        assert status.legs["copies"].latest_checkpoint is not None
        states, device = {}, bytearray(DISK_BYTES)
        for number in range(5):
            data = bytes([number + 1]) * 8192
            write(group, number * 4096, data)
            device[number * 4096 : number * 4096 + 8192] = data
            await shipped(group, tag=f"t{number}")
            states[f"tag:t{number}"] = bytes(device)
        for selector, expected in states.items():
            assert site.disk_at(at=selector) == expected
        sequence = group.state.sequence
        await until(lambda: group.state.sequence > sequence + 3)

    run(tmp_path, story)


@pytest.mark.parametrize("kind", ["volume", "directory"])
def test_a_first_copy_waits_for_no_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """A new group becomes protected though the next periodic mark, and the legs' next look by themselves, are far away."""
    for module, name in ((marking, "MARK"), (quota_module, "UPKEEP"), (shipper_module, "WATCH")):
        monkeypatch.setattr(module, f"{name}_SECONDS", 100 * DEADLINE_SECONDS)
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(random.Random(5).randbytes(100_000))
    members = {
        "volume": {"disk": {"kind": "volume", "path": str(tmp_path / "disk.raw"), "size": "4MiB"}},
        "directory": {"tree": {"kind": "directory", "path": str(tree)}},
    }

    async def story(site: Site) -> None:
        group = site.group(spec={"members": members[kind]})
        await group.start()
        await protected(group)
        site.image()

    run(tmp_path, story)


def test_compaction_drops_nothing_once_its_target_was_opened_anew(tmp_path: Path) -> None:
    """What it decided by is older than what the target has by then: its commit is refused, and all of it stays."""

    class Overtaken:
        """Decides, and the target is opened anew before it commits."""

        immutable_until_ns = None
        damaged: Mapping[str, str] = {}
        refused: Temporary | None = None

        def step(self, writer: RepositoryWriter, commit: Commit, now_ns: int) -> bool:
            leg._writer, known = (
                RepositoryWriter(site_target, UID, KEY_ID, b"", lambda _: KEY, SystemClock()),
                leg._writer,
            )
            try:
                commit([], [ref.name for ref in writer.reader.refs()])
            except Temporary as error:
                self.refused = error
            finally:
                leg._writer = known
            return False

    async def story(site: Site) -> None:
        nonlocal leg, site_target
        site_target = site.targets["copies"]
        group = site.group()
        await group.start()
        await protected(group)
        leg = group.legs["copies"]
        leg.compactor = compactor = Overtaken()
        leg._compact_at = 0.0
        leg.hurry()
        await until(lambda: compactor.refused)
        assert site.disk_at() == bytes(DISK_BYTES)

    leg: Shipper
    site_target: Target
    run(tmp_path, story)


def test_a_restart_resumes_where_it_was(tmp_path: Path) -> None:
    """Sequences go on, the target is not seeded again, and the volume holds everything."""

    async def story(site: Site) -> None:
        group = site.group()
        await group.start()
        await protected(group)
        write(group, 0, b"a" * 4096)
        await group.stop()
        site.groups.clear()
        assert site.disk.read_bytes()[:4096] == b"a" * 4096
        fills = [ref.name for ref in site.reader().refs() if ref.kind == SegmentKind.FILL]
        again = site.group()
        await again.start()
        assert again.state.sequence > group.state.sequence
        await protected(again)
        write(again, 4096, b"b" * 4096)
        await shipped(again, tag="after")
        assert site.disk_at(at="tag:after")[:8192] == b"a" * 4096 + b"b" * 4096
        assert [ref.name for ref in site.reader().refs() if ref.kind == SegmentKind.FILL] == fills

    run(tmp_path, story)


def test_a_killed_group_loses_nothing_and_ships_on(tmp_path: Path, seed: int) -> None:
    """Kills at random moments under load: the next life has every acknowledged write, and so has the target then."""

    async def story(site: Site) -> None:
        chance, device = random.Random(seed), bytearray(DISK_BYTES)
        for life in range(6):
            group = site.group()
            await group.start()
            assert volume_of(group).read_blocking(0, DISK_BYTES) == device, f"seed {seed}, life {life}"
            for _ in range(chance.randrange(60)):
                offset = chance.randrange(DISK_BYTES // 512 - 64) * 512
                data = bytes([chance.randrange(256)]) * 512 * chance.randint(1, 64)
                write(group, offset, data)
                device[offset : offset + len(data)] = data
                await asyncio.sleep(0)
            if life == 5:
                await shipped(group, tag="end")
                await protected(group)
                assert site.disk_at() == device
            await site.kill(group)

    run(tmp_path, story)


def test_an_idle_group_ships_its_checkpoints_and_its_spool_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is written, and yet the newest checkpoint at the target is never old."""
    monkeypatch.setattr(sealing, "MARKS_SECONDS", 2)
    monkeypatch.setattr(marking, "IDLE_DURABLE_SECONDS", 0.05)

    async def story(site: Site) -> None:
        group = site.group()
        await group.start()
        await protected(group)
        leg = group.legs["copies"]
        for _ in range(2):
            assert leg.last_mark is not None
            known, begun, cursor = leg.last_mark.sequence, leg.last_mark.stamp_ns, leg.memory.cursor
            await until(lambda: leg.last_mark.sequence > known)  # type: ignore[union-attr]  # noqa: B023
            assert group.stamp() - begun >= 2 * 10**9  # together, and not one by one
            assert site.reader().resolve("latest").sequence == leg.last_mark.sequence
            assert leg.memory.cursor > cursor

    run(tmp_path, story)


def test_an_idle_group_leaves_its_disk_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once everything is stored, its checkpoints go on and nothing is synced; a change is made durable at once."""

    async def story(site: Site) -> None:
        group = site.group()
        await group.start()
        await protected(group)
        await until(lambda: not group._has_news())
        stored: list[object] = []
        monkeypatch.setattr(group._state_file, "replace", stored.append)
        for _ in range(5):  # what was under way when the group came to rest may end meanwhile, once
            durable_lsn, sequence = group.spool.durable_lsn, group.state.sequence
            stored.clear()
            await until(lambda after=sequence + 20: group.state.sequence > after)  # type: ignore[misc]
            if group.spool.durable_lsn == durable_lsn and not stored:
                break
        assert group.spool.durable_lsn == durable_lsn
        assert stored == []
        write(group, 0, b"x" * 4096)
        head_lsn = group.spool.head_lsn
        await until(lambda: group.spool.durable_lsn >= head_lsn)
        monkeypatch.undo()

    run(tmp_path, story)


def test_a_target_that_is_away_is_caught_up_with(tmp_path: Path) -> None:
    """The leg is disconnected, visibly, the application goes on, and everything is there once the target is back."""

    async def story(site: Site) -> None:
        group = site.group()
        await group.start()
        await protected(group)
        site.targets["copies"].away = True
        write(group, 0, b"x" * 4096)
        await group.ship()
        await until(lambda: group.status().legs["copies"].data_state == DataState.DISCONNECTED)
        assert [condition.type for condition in group.status().conditions] == ["TargetUnavailable"]
        site.targets["copies"].away = False
        await protected(group)
        await shipped(group, tag="back")
        assert site.disk_at(at="tag:back")[:4096] == b"x" * 4096

    run(tmp_path, story)


@pytest.mark.parametrize(
    ("fault", "condition"),
    [
        (Temporary("busy"), "TargetUnavailable"),
        (TargetMissing("no such bucket"), "TargetMissing"),
        (Denied("expired"), "TargetDenied"),
        (Corruption("flipped"), "TargetDamaged"),
        (Unsupported("too new"), "TargetUnfit"),
        (DpacError("what?"), "TargetUnavailable"),
    ],
)
def test_why_a_leg_does_not_ship_is_a_condition_of_its_own(tmp_path: Path, fault: DpacError, condition: str) -> None:
    """With the error's message; it goes, and the leg catches up, when the fault does."""

    async def story(site: Site) -> None:
        group = site.group()
        await group.start()
        await protected(group)
        site.targets["copies"].fault = fault
        write(group, 0, b"x" * 4096)
        await group.ship()
        await until(lambda: group.status().conditions)
        (said,) = group.status().conditions
        assert (said.type, said.subject, said.message) == (condition, "leg/copies", fault.message)
        assert group.status().legs["copies"].message == fault.message
        site.targets["copies"].fault = None
        await shipped(group, tag="back")
        await until(lambda: group.status().conditions == [])
        assert site.disk_at(at="tag:back")[:4096] == b"x" * 4096

    run(tmp_path, story)


def test_a_store_that_lets_a_second_create_through_gets_nothing(tmp_path: Path) -> None:
    """It could not keep a stale primary out: the leg says so, and not even a segment is put there."""

    async def story(site: Site) -> None:
        site.targets["copies"].lax = True
        group = site.group()
        await group.start()
        await until(lambda: group.status().conditions)
        (said,) = group.status().conditions
        assert said.type == "TargetUnfit"
        assert "stale primary" in said.message
        assert set(site.targets["copies"].objects) == {"repository.json"}
        site.targets["copies"].lax = False
        await shipped(group, tag="mended")
        await protected(group)

    run(tmp_path, story)


def test_a_target_reached_in_another_way_is_opened_anew_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Credentials that were corrected in the declaration are used without a restart, and without waiting for the retry."""
    monkeypatch.setattr(shipper_module, "REFUSED_RETRY_SECONDS", 3600.0)

    async def story(site: Site) -> None:
        group = site.group()
        opened: list[TargetSpec] = []
        deps = group._deps

        def open_writer(assignment: WorkerAssignment, leg: LegSpec, target: TargetSpec) -> RepositoryWriter:
            opened.append(target)
            if not target.offsite:
                raise Denied("These are not the right credentials.")
            return deps.open_writer(assignment, leg, target)

        group._deps = deps._replace(open_writer=open_writer)
        await group.start()
        await until(lambda: group.status().conditions)
        was = site.assignment()
        corrected = {name: spec.model_copy(update={"offsite": True}) for name, spec in was.targets.items()}
        await group.apply(was.model_copy(update={"targets": corrected}))
        await protected(group)
        assert [target.offsite for target in opened] == [False, True]

    run(tmp_path, story)


def test_a_leg_that_the_spool_cannot_wait_for_is_seeded_anew(tmp_path: Path) -> None:
    """The spool keeps its limit, the gap lists no checkpoint, older ones stay, and newer ones come by a new seed."""

    async def story(site: Site) -> None:
        group = site.group(spool_max=Size("8MiB"))
        await group.start()
        await protected(group)
        write(group, 0, b"old" + bytes(509))
        old = await shipped(group, tag="old")
        site.targets["copies"].away = True
        device = bytearray(DISK_BYTES)
        lost = [group.mark(tags=("lost",))]
        for number in range(200):
            await until(lambda: not volume_of(group).congested)
            data = bytes([number % 255 + 1]) * 65536
            write(group, number * 65536 % DISK_BYTES, data)
            device[number * 65536 % DISK_BYTES : number * 65536 % DISK_BYTES + 65536] = data
            volume_of(group).flush(lambda error: None)
            await asyncio.sleep(0.002)
        lost.append(group.mark(tags=("lost",)))
        await until(lambda: group.legs["copies"].memory.lost)
        await until(lambda: group.spool.stored_bytes <= 10 * 2**20)
        site.targets["copies"].away = False
        await protected(group)
        new = await shipped(group, tag="new")
        assert site.disk_at(at="tag:new") == bytes(device)
        assert site.disk_at(at="tag:old")[:3] == b"old"
        listed = [mark.lsn for mark in site.reader().marks()]
        assert old.lsn in listed
        assert new.lsn in listed
        assert all(mark is not None and mark.lsn not in listed for mark in lost)

    run(tmp_path, story)


def test_every_change_at_a_target_is_in_a_checkpoint_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A leg that has shipped a change has shipped a mark behind it, however long the next regular one takes."""

    async def story(site: Site) -> None:
        group = site.group()
        await group.start()
        await protected(group)
        await shipped(group, tag="before")
        monkeypatch.setattr(marking, "MARK_SECONDS", 3600.0)
        await asyncio.sleep(0.05)  # the regular mark that was due by then
        for number in range(3):
            write(group, number * 4096, bytes([number + 1]) * 4096)
            head_lsn = group.spool.head_lsn
            await until(lambda head_lsn=head_lsn: group.legs["copies"].memory.cursor >= head_lsn)
            assert site.disk_at()[number * 4096] == number + 1

    run(tmp_path, story)


def test_a_new_leg_of_a_group_at_work_is_seeded(tmp_path: Path) -> None:
    """Volume and directory, both written before and after the leg came, are whole at the new target."""

    async def story(site: Site) -> None:
        tree = site.root / "tree"
        tree.mkdir()
        (tree / "one").write_text("one")
        members = {
            "disk": {"kind": "volume", "path": str(site.disk), "size": "4MiB"},
            "tree": {"kind": "directory", "path": str(tree)},
        }
        first = {"copies": {"target": "copies", "rpo": "1s"}}
        group = site.group(spec={"members": members, "replication": first})
        await group.start()
        await protected(group)
        write(group, 8192, b"before" + bytes(506))
        site.targets["far"] = Target()
        both = first | {"far": {"target": "far", "rpo": "1s"}}
        await group.apply(site.assignment(spec={"members": members, "replication": both}, generation=2))
        write(group, 0, b"after!" + bytes(506))
        await protected(group)
        await shipped(group, tag="both")
        for target in ("copies", "far"):
            assert site.disk_at(target, "tag:both")[:6] == b"after!"
            assert site.disk_at(target, "tag:both")[8192:8198] == b"before"
            assert {key for key, _ in site.image(target, "tag:both")[1].tree(2).entries()} >= {b"one"}

    run(tmp_path, story)


def test_a_member_added_live_joins_without_stopping_the_others(tmp_path: Path) -> None:
    """The first volume stays recoverable throughout; checkpoints hold the new one once it is whole."""

    async def story(site: Site) -> None:
        group = site.group()
        await group.start()
        await protected(group)
        before = volume_of(group)
        members = {
            name: {"kind": "volume", "path": str(site.root / f"{name}.raw"), "size": "4MiB"}
            for name in ("disk", "logs")
        }
        (site.root / "logs.raw").write_bytes(b"L" * DISK_BYTES)
        await group.apply(site.assignment(spec={"members": members}, generation=2))
        assert volume_of(group) is before
        await protected(group)
        mark, image = site.image()
        assert set(site.reader().members_at(mark)) == {1, 2}
        assert image.volume(2).read(0, DISK_BYTES) == b"L" * DISK_BYTES
        oldest = list(site.reader().marks())[-1]
        assert set(site.reader().members_at(oldest)) == {1}

    run(tmp_path, story)


def test_a_volume_changed_while_detached_is_noticed_and_seeded_anew(tmp_path: Path) -> None:
    """No checkpoint between the unseen change and the new seed is listed, and those after it hold the change."""

    async def story(site: Site) -> None:
        group = site.group()
        await group.start()
        await protected(group)
        write(group, 0, b"seen" + bytes(508))
        await shipped(group, tag="seen")
        await group.stop()
        site.groups.clear()
        with site.disk.open("r+b") as file:
            file.seek(2**20)
            file.write(b"unseen")
        site.targets["copies"].away = True
        again = site.group()
        await again.start()
        between = [again.mark() for _ in range(5)]
        site.targets["copies"].away = False
        await protected(again)
        await shipped(again, tag="after")
        device = site.disk_at(at="tag:after")
        assert (device[:4], device[2**20 : 2**20 + 6]) == (b"seen", b"unseen")
        assert site.disk_at(at="tag:seen")[2**20 : 2**20 + 6] == bytes(6)
        for mark in site.reader().marks():
            volume = site.reader().image(mark).volume(1)
            if any(mark.lsn == other.lsn for other in between if other):
                assert volume.read(2**20, 6) == b"unseen"

    run(tmp_path, story)


def test_a_member_that_changed_unseen_and_left_is_in_no_checkpoint_since(tmp_path: Path) -> None:
    """Its target was away from before the change until after it had left, and its log goes on as if nothing had been."""

    async def story(site: Site) -> None:
        members = {
            name: {"kind": "volume", "path": str(site.root / f"{name}.raw"), "size": "4MiB"}
            for name in ("disk", "logs")
        }
        group = site.group(spec={"members": members})
        await group.start()
        await protected(group)
        await shipped(group, tag="before")
        await group.stop()
        site.groups.clear()
        with (site.root / "logs.raw").open("r+b") as file:
            file.write(b"unseen")
        site.targets["copies"].away = True
        again = site.group()
        await again.start()
        assert again.mark(tags=("both",)) is not None
        await again.apply(site.assignment(spec={"members": {"disk": members["disk"]}}, generation=2))
        await again.stop()  # and its host forgets nothing either
        site.groups.clear()
        site.targets["copies"].away = False
        third = site.group()
        await third.start()
        await protected(third)
        await shipped(third, tag="after")
        reader = site.reader()
        before, after = reader.resolve("tag:before"), reader.resolve("tag:after")
        assert (set(reader.members_at(before)), set(reader.members_at(after))) == ({1, 2}, {1})
        assert not any(2 in reader.members_at(mark) for mark in reader.marks() if mark.lsn >= again.opened_lsn)

    run(tmp_path, story)


def test_checkpoints_are_listed_though_every_first_member_left_before_it_was_whole(tmp_path: Path) -> None:
    """Who never came whole at a target holds up nobody: the members that joined later are recoverable."""

    async def story(site: Site) -> None:
        site.disk.mkdir()  # no volume can be attached there
        group = site.group()
        await group.start()
        await until(lambda: group.legs["copies"].repository is not None)
        members = {
            name: {"kind": "volume", "path": str(site.root / f"{name}.raw"), "size": "4MiB"}
            for name in ("gone", "logs")
        }
        both = site.assignment(spec={"members": members}, generation=2)
        only = both.model_copy(
            update={
                "spec": both.spec.model_copy(update={"members": {"logs": both.spec.members["logs"]}}),
                "members": {"logs": both.members["logs"]},
            }
        )
        await group.apply(only)
        await protected(group)
        mark = await shipped(group, tag="listed")
        assert site.reader().resolve("latest").lsn >= mark.lsn

    run(tmp_path, story)


def test_a_group_stops_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What its state would have told is found in the journal by the next start."""

    async def story(site: Site) -> None:
        group = site.group()
        await group.start()
        await protected(group)
        write(group, 0, b"kept" + bytes(508))
        with monkeypatch.context() as full:
            full.setattr(type(group._state_file), "replace", _full)
            await group.stop()
        site.groups.clear()
        again = site.group()
        await again.start()
        assert volume_of(again).read_blocking(0, 512)[:4] == b"kept"
        await protected(again)

    run(tmp_path, story)


def test_rot_at_a_target_does_not_end_its_leg(tmp_path: Path, seed: int) -> None:
    """The segment with the newest checkpoint is damaged when the leg opens the target: that is told, and what changes is shipped."""

    async def story(site: Site) -> None:
        group = site.group()
        await group.start()
        await protected(group)
        write(group, 0, b"before" + bytes(506))
        await shipped(group, tag="before")
        await group.stop()
        site.groups.clear()
        newest = next(ref for ref in reversed(site.reader().refs()) if ref.marks)
        objects = site.targets["copies"].objects
        objects[newest.name] = bytes(len(objects[newest.name]))
        again = site.group()
        await again.start()
        await until(lambda: "TargetDamaged" in condition_types(again))
        write(again, 512, b"after" + bytes(507))
        mark = await shipped(again, tag="after")
        await until(lambda: again.legs["copies"].last_mark and again.legs["copies"].last_mark.lsn >= mark.lsn)
        assert again.legs["copies"].data_state == DataState.CONTINUOUS

    run(tmp_path, story)


def test_a_volume_grows_though_the_journal_fails_at_that_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The declaration is taken: a full disk of the journal is the group's trouble."""

    async def story(site: Site) -> None:
        group = site.group()
        await group.start()
        await protected(group)
        members = {"disk": {"kind": "volume", "path": str(site.disk), "size": "8MiB"}}
        with monkeypatch.context() as broken:
            broken.setattr(spool_module, "write_all", _full)
            await group.apply(site.assignment(spec={"members": members}, generation=2))
            assert group.journal_error
            assert volume_of(group).size_bytes == 2 * DISK_BYTES
        await until(lambda: not group.journal_error)
        await protected(group)
        await shipped(group, tag="grown")
        assert len(site.disk_at(at="tag:grown")) == 2 * DISK_BYTES

    run(tmp_path, story)


def seeded_bytes(site: Site, before: set[str], target: str = "copies") -> int:
    """What seeds have brought in segments that were not there before."""
    reader, total = site.reader(target), 0
    for ref in reader.refs():
        if ref.name not in before:
            rows = reader.stored(ref).rows
            total += int(rows["payload_bytes"][rows["kind"] == Kind.FILL].sum())
    return total


def test_a_volume_changed_unseen_is_compared_with_the_target_and_only_what_differs_is_sent(
    tmp_path: Path, seed: int
) -> None:
    """Bytes, zeroes and holes that came while it was detached: the target is exact, and gets blocks, not the disk."""

    async def story(site: Site) -> None:
        chance = random.Random(seed)
        expected: dict[str, bytes] = {}
        for round_number in range(4):
            group = site.group()
            await group.start()
            await protected(group)
            for _ in range(20):
                write(group, chance.randrange(0, DISK_BYTES - 65536, 512), chance.randbytes(65536))
            await shipped(group, tag=f"round-{round_number}")
            expected[f"round-{round_number}"] = bytes(volume_of(group).read_blocking(0, DISK_BYTES))
            await group.stop()
            site.groups.clear()
            before = {ref.name for ref in site.reader().refs()}
            with site.disk.open("r+b") as file:
                for _ in range(5):
                    file.seek(chance.randrange(0, DISK_BYTES - 4096, 4096))
                    file.write(chance.choice([bytes(4096), chance.randbytes(4096)]))
                punch_hole(file.fileno(), chance.randrange(0, DISK_BYTES - 65536, 4096), 65536)
            again = site.group()
            await again.start()
            await protected(again)
            assert seeded_bytes(site, before) <= 5 * 4096, f"seed {seed}"
            await shipped(again, tag=f"unseen-{round_number}")
            expected[f"unseen-{round_number}"] = site.disk.read_bytes()
            await again.stop()
            site.groups.clear()
            for tag, content in expected.items():
                assert site.disk_at(at=f"tag:{tag}") == content, f"{tag}, seed {seed}"

    run(tmp_path, story)


def test_a_block_put_back_unseen_is_not_taken_for_what_the_log_makes_of_it(tmp_path: Path) -> None:
    """The target had A, the log that it does not have yet says B, and A was put back while it was detached: it is A."""

    async def story(site: Site) -> None:
        group = site.group()
        await group.start()
        await protected(group)
        write(group, 8192, b"A" * 4096)
        await shipped(group, tag="first")
        site.targets["copies"].away = True
        write(group, 8192, b"B" * 4096)
        await group.stop()
        site.groups.clear()
        with site.disk.open("r+b") as file:
            file.seek(8192)
            assert file.read(1) == b"B"
            file.seek(8192)
            file.write(b"A" * 4096)
        again = site.group()
        await again.start()
        site.targets["copies"].away = False
        await protected(again)
        await shipped(again, tag="after")
        assert site.disk_at(at="tag:after")[8192:12288] == b"A" * 4096

    run(tmp_path, story)


def test_a_leg_that_is_declared_again_starts_from_what_an_earlier_one_left(tmp_path: Path, seed: int) -> None:
    """Its target has the volume of weeks ago, and no log since: it is compared, and gets what differs."""

    async def story(site: Site) -> None:
        chance = random.Random(seed)
        site.targets["second"] = Target()
        both = {name: {"target": name, "rpo": "1s"} for name in ("copies", "second")}
        group = site.group(spec={"replication": both})
        await group.start()
        blocks = [chance.randbytes(65536) for _ in range(DISK_BYTES // 65536)]
        for number, block in enumerate(blocks):
            write(group, number * 65536, block)
        await protected(group)
        await shipped(group, tag="first")
        cursor = group.legs["copies"].memory.cursor
        await group.apply(site.assignment(spec={"replication": {"second": both["second"]}}, generation=2))
        before = {ref.name for ref in site.reader().refs()}
        for number, block in enumerate(blocks):
            write(group, number * 65536, block)  # as it was
        for number in range(8):
            write(group, number * 524288, chance.randbytes(4096))
        write(group, DISK_BYTES - 65536, bytes(65536))
        await shipped(group, tag="meanwhile")
        await until(lambda: group.spool.released_lsn > cursor)
        await group.apply(site.assignment(spec={"replication": both}, generation=3))
        await protected(group)
        await shipped(group, tag="again")
        assert seeded_bytes(site, before) == 8 * 4096, f"seed {seed}"
        assert site.disk_at(at="tag:again") == bytes(volume_of(group).read_blocking(0, DISK_BYTES))

    run(tmp_path, story)


def test_copies_that_were_carried_to_a_new_target_are_what_its_leg_starts_from(tmp_path: Path, seed: int) -> None:
    """A folder of the group's copies, brought there by other means, and older than what the spool holds: what differs is sent."""

    async def story(site: Site) -> None:
        chance = random.Random(seed)
        group = site.group()
        await group.start()
        blocks = [chance.randbytes(65536) for _ in range(DISK_BYTES // 65536)]
        for number, block in enumerate(blocks):
            write(group, number * 65536, block)
        await protected(group)
        await shipped(group, tag="first")
        carried = site.targets["second"] = Target()
        carried.objects.update(site.targets["copies"].objects)
        cursor, before = group.legs["copies"].memory.cursor, {ref.name for ref in site.reader("second").refs()}
        for number, block in enumerate(blocks):
            write(group, number * 65536, block)  # as it was
        write(group, 524288, chance.randbytes(4096))
        await shipped(group, tag="meanwhile")
        await until(lambda: group.spool.released_lsn > cursor)
        both = {name: {"target": name, "rpo": "1s"} for name in ("copies", "second")}
        await group.apply(site.assignment(spec={"replication": both}, generation=2))
        await protected(group)
        await shipped(group, tag="there")
        assert seeded_bytes(site, before, "second") == 4096, f"seed {seed}"
        assert site.disk_at("second", at="tag:there") == bytes(volume_of(group).read_blocking(0, DISK_BYTES))
        assert site.disk_at("second", at="tag:first") == b"".join(blocks)

    run(tmp_path, story)


def test_what_cannot_be_read_at_the_target_is_sent_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A volume changed unseen whose copy is damaged is whole again after its seed."""

    async def story(site: Site) -> None:
        group = site.group()
        await group.start()
        await protected(group)
        for number in range(16):
            write(group, number * 65536, random.Random(number).randbytes(65536))
        await shipped(group, tag="seen")
        await group.stop()
        site.groups.clear()
        with site.disk.open("r+b") as file:
            file.write(bytes(8192))

        def damaged(self: object, offset: int, length: int) -> bytes:
            raise Corruption("Block 0 fails its authentication.")

        again = site.group()
        with monkeypatch.context() as patched:
            patched.setattr("dpac_engine.core.image.VolumeImage.read", damaged)
            await again.start()
            await protected(again)
        await shipped(again, tag="after")
        assert site.disk_at(at="tag:after") == site.disk.read_bytes()

    run(tmp_path, story)


def test_a_primary_that_was_overtaken_stops(tmp_path: Path) -> None:
    """Another writer's manifest stalls the leg, and it stays so: it never writes over the other's history."""

    async def story(site: Site) -> None:
        group = site.group()
        await group.start()
        await protected(group)
        other = RepositoryWriter(site.targets["copies"], UID, KEY_ID, b"wrapped", lambda _: KEY, SystemClock())
        state = other.open()
        assert state is not None
        theirs = other.commit(
            epoch=1,
            epochs=[(1, 0)],
            cursor=state.cursor,
            members=state.members,
            membership_version=1,
            spec=1,
            log_from=0,
        )
        write(group, 0, b"stale" + bytes(507))
        await group.ship()
        await until(lambda: group.status().legs["copies"].data_state == DataState.STALLED)
        for _ in range(3):
            group.legs["copies"].nudge()
            await group.ship()
        assert "another primary" in group.status().legs["copies"].message
        reader = site.reader()
        assert reader.state is not None
        assert reader.state.last.seq == theirs.last.seq

    run(tmp_path, story)


def test_a_create_that_succeeded_though_its_answer_was_lost_is_taken_for_done(tmp_path: Path) -> None:
    """The leg finds its own manifest under the number and goes on."""

    async def story(site: Site) -> None:
        group = site.group()
        await group.start()
        await protected(group)
        site.targets["copies"].answers_lost = 3
        for number in range(4):
            write(group, 0, bytes([number + 1]) * 512)
            await shipped(group, tag=f"t{number}")
        assert site.targets["copies"].answers_lost == 0
        assert group.status().legs["copies"].message == ""
        assert site.disk_at(at="tag:t3")[:1] == b"\4"

    run(tmp_path, story)


@pytest.mark.parametrize("failure", ["sync", "append"])
def test_a_broken_journal_leaves_the_application_unharmed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    """Writes go straight to the file, the group says so, and a restart neither replays old records nor trusts the copy."""

    async def story(site: Site) -> None:
        group = site.group()
        await group.start()
        await protected(group)
        write(group, 0, b"journalled" + bytes(502))
        with monkeypatch.context() as broken:
            _break(broken, failure)
            write(group, 512, b"at the time" + bytes(501))
            answers: list[OSError | None] = []
            volume_of(group).flush(answers.append)
            await until(lambda: answers)
            assert answers == [None]
            assert volume_of(group).bypass
            write(group, 0, b"straight" + bytes(504))
            assert "JournalFailed" in [condition.type for condition in group.status().conditions]
            assert not group.status().protected
            assert group.mark() is None
            volume_of(group).flush(answers.append)
            await until(lambda: len(answers) == 2)
            assert site.disk.read_bytes()[:1024] == b"straight".ljust(512, b"\0") + b"at the time".ljust(512, b"\0")
            await site.kill(group)
        again = site.group()
        await again.start()
        assert volume_of(again).read_blocking(0, 512)[:8] == b"straight"
        await protected(again)
        await shipped(again, tag="again")
        assert site.disk_at(at="tag:again")[:523] == b"straight".ljust(512, b"\0") + b"at the time"

    run(tmp_path, story)


def _read_only_journal(patches: pytest.MonkeyPatch, site: Site, *also: Path) -> None:
    """The disk of the group's folder, and those of `also`, turn read-only as a kernel remounts them: nothing there can be written."""
    folders = tuple(str(folder) for folder in (site.folder, *also))
    real = {name: getattr(os, name) for name in ("open", "pwritev", "pwrite", "fdatasync")}

    def refuse(path: str) -> None:
        if path.startswith(folders):
            raise OSError(errno.EROFS, "Read-only file system", path)

    def at_descriptor(name: str) -> Callable[..., Any]:
        def call(descriptor: int, *rest: Any) -> Any:
            refuse(os.readlink(f"/proc/self/fd/{int(descriptor)}"))
            return real[name](descriptor, *rest)

        return call

    def open_(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            refuse(os.fspath(path))
        return int(real["open"](path, flags, *rest, **more))

    patches.setattr(os, "open", open_)
    for name in ("pwritev", "pwrite", "fdatasync"):
        patches.setattr(os, name, at_descriptor(name))


def test_a_journal_on_a_disk_that_turned_read_only_is_never_replayed_over_newer_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That it failed cannot be stored beside it, so it is noted beside the volume; the next life acts on that, and forgets it."""

    async def story(site: Site) -> None:
        volumes = site.root / "volumes"
        volumes.mkdir()
        site.disk = volumes / "disk.raw"
        group = site.group()
        await group.start()
        await protected(group)
        write(group, 0, b"journalled" + bytes(502))
        volume_of(group).flush(lambda _: None)
        with monkeypatch.context() as broken:
            _read_only_journal(broken, site)
            write(group, 0, b"straight" + bytes(504))
            await until(lambda: group.journal_error)
            write(group, 512, b"and more" + bytes(504))
            await site.kill(group)
        assert journal_failure_note.note_path(site.disk).exists()
        again = site.group()
        await again.start()
        assert volume_of(again).read_blocking(0, 520) == b"straight".ljust(512, b"\0") + b"and more"
        assert not journal_failure_note.note_path(site.disk).exists()
        await protected(again)
        await shipped(again, tag="again")
        assert site.disk_at(at="tag:again")[:520] == b"straight".ljust(512, b"\0") + b"and more"

    run(tmp_path, story)


def test_a_journal_whose_failure_can_be_noted_nowhere_lets_no_write_past_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the volume's folder read-only too, its file is let go of instead of getting what a replay would destroy; it comes back by itself."""

    async def story(site: Site) -> None:
        volumes = site.root / "volumes"
        volumes.mkdir()
        site.disk = volumes / "disk.raw"
        group = site.group()
        await group.start()
        await protected(group)
        write(group, 0, b"journalled" + bytes(502))
        with monkeypatch.context() as broken:
            _read_only_journal(broken, site, volumes / ".disk.raw.dpac-journal-failed")
            with pytest.raises(OSError, match="noted neither"):
                write(group, 0, b"straight" + bytes(504))
            await until(lambda: group.members[1].volume is None)
            assert site.disk.read_bytes()[:10] == b"journalled"
        await until(lambda: group.members[1].volume is not None and not group.journal_error)
        write(group, 0, b"recorded" + bytes(504))
        await protected(group)
        await shipped(group, tag="again")
        assert site.disk_at(at="tag:again")[:10] == b"recorded".ljust(10, b"\0")

    run(tmp_path, story)


def test_a_leg_that_got_another_target_while_its_worker_was_dead_begins_there_anew(tmp_path: Path) -> None:
    """What it remembers is of the target that it led to: the worker died after its new declaration was written and before it was applied."""

    async def story(site: Site) -> None:
        group = site.group()
        await group.start()
        await protected(group)
        write(group, 0, b"before" + bytes(506))
        await shipped(group, tag="before")
        await group._store()
        await site.kill(group)
        site.targets["other"] = Target()
        again = site.group(spec={"replication": {"copies": {"target": "other", "rpo": "1s"}}})
        await again.start()
        await protected(again)
        await shipped(again, tag="there")
        assert site.disk_at("other", "tag:there")[:6] == b"before"

    run(tmp_path, story)


def condition_types(group: Group) -> set[str]:
    """Of the group now."""
    return {condition.type for condition in group.status().conditions}


@pytest.mark.parametrize("failure", ["sync", "append"])
def test_a_journal_that_works_again_is_used_again_without_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    """Once its disk takes files, changes are recorded, targets are copied anew, and a kill then replays what it must."""
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "one").write_text("before")

    async def story(site: Site) -> None:
        group = site.group(
            spec={
                "members": {
                    "disk": {"kind": "volume", "path": str(site.disk), "size": "4MiB"},
                    "tree": {"kind": "directory", "path": str(tree)},
                }
            }
        )
        await group.start()
        await protected(group)
        write(group, 0, b"journalled" + bytes(502))
        await shipped(group, tag="good")
        with monkeypatch.context() as broken:
            _break(broken, failure)
            write(group, 512, b"at the time" + bytes(501))
            await until(lambda: volume_of(group).bypass and group.journal_error)
            write(group, 1024, b"straight" + bytes(504))
            (tree / "two").write_text("meanwhile")
            status = group.status()
            assert (status.data_state, status.sla_state) == (DataState.STALLED, SlaState.RPO_NOT_MET)
            # Whatever is tried meanwhile fails, and harms nothing.
            broken.setattr(spare_files, "allocate", _full_disk)
            await asyncio.sleep(0)
            await until(lambda: not any(leg._task for leg in group.legs.values()))
            write(group, 1536, b"straight" + bytes(504))
        await until(lambda: not group.journal_error)
        assert not volume_of(group).bypass
        write(group, 2048, b"recorded" + bytes(504))
        await protected(group)
        await until(lambda: not condition_types(group) & {"JournalFailed", "FullResync"})
        await shipped(group, tag="again")
        expected = b"".join(
            part.ljust(512, b"\0") for part in (b"journalled", b"at the time", b"straight", b"straight", b"recorded")
        )
        assert site.disk_at(at="tag:again")[:2560] == expected
        assert site.disk_at(at="tag:good")[:512] == expected[:512]
        assert {b"one", b"two"} <= {key for key, _ in site.image(at="tag:again")[1].tree(2).entries()}
        write(group, 0, b"after" + bytes(507))
        await site.kill(group)
        again = site.group()
        await again.start()
        assert volume_of(again).read_blocking(0, 2560) == b"after".ljust(512, b"\0") + expected[512:]

    run(tmp_path, story)


def test_acknowledged_changes_never_go_to_another_file_than_they_were_meant_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file put in a volume's place before a restart is refused while the journal holds changes for the right one."""

    async def story(site: Site) -> None:
        group = site.group()
        await group.start()
        await protected(group)
        with monkeypatch.context() as slow:
            slow.setattr(Volume, "_apply_blocking", lambda *_: None)
            write(group, 0, b"mine" + bytes(508))
            await site.kill(group)
        site.disk.rename(site.root / "right.raw")
        site.disk.write_bytes(b"other" + bytes(DISK_BYTES - 5))
        again = site.group()
        await again.start()
        assert "MemberReplaced" in condition_types(again)
        assert site.disk.read_bytes()[:5] == b"other"
        (site.root / "right.raw").rename(site.disk)
        await until(lambda: again.members[1].volume is not None)
        assert volume_of(again).read_blocking(0, 512)[:4] == b"mine"
        assert "MemberReplaced" not in condition_types(again)

    run(tmp_path, story)


def test_a_clock_that_is_set_is_told_and_checkpoints_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hours forwards and back: marks come as before, in order, at the target too, and nothing of the history goes."""

    async def story(site: Site) -> None:
        offset_ns = 0
        real = SystemClock.now_ns
        monkeypatch.setattr(SystemClock, "now_ns", lambda self: real(self) + offset_ns)
        group = site.group()
        await group.start()
        await protected(group)
        assert "ClockStepped" not in condition_types(group)
        first = await shipped(group, tag="first")
        marks = [first]
        for hours in (30, -30, -30):
            offset_ns += hours * 3600 * 10**9
            before = group.state.sequence
            await until(lambda before=before: group.state.sequence >= before + 3)
            assert "ClockStepped" in condition_types(group)
            write(group, 0, bytes([len(marks)]) * 512)
            marks.append(await shipped(group, tag=f"t{len(marks)}"))
        assert [mark.stamp_ns for mark in marks] == sorted({mark.stamp_ns for mark in marks})
        for leg in group.legs.values():
            leg._compact_at = 0.0
            leg.nudge()
        await group.ship()
        assert site.image(at="tag:first")[0].id == first.id
        assert site.disk_at(at="tag:t3")[:1] == b"\3"

    run(tmp_path, story)


def test_a_full_spool_slows_clients_says_so_and_lets_them_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A volume that takes changes too slowly holds its clients back at the quota, until it has taken them."""
    gate = threading.Event()
    real = Volume._apply_blocking

    def slow(self: Volume, batch: Any) -> None:
        gate.wait(DEADLINE_SECONDS)
        real(self, batch)

    async def story(site: Site) -> None:
        group = site.group(spool_max=Size("8MiB"))
        await group.start()
        await protected(group)
        with monkeypatch.context() as held:
            held.setattr(Volume, "_apply_blocking", slow)
            for number in range(28):
                write(group, 0, bytes([number]) * 2**18)
            await until(lambda: "SpoolFull" in condition_types(group))
            assert volume_of(group).congested
            relieved: list[bool] = []
            volume_of(group).when_relieved(lambda: relieved.append(True))
            gate.set()
            await until(lambda: relieved)
            await until(lambda: "SpoolFull" not in condition_types(group))
        await protected(group)

    run(tmp_path, story)


def _full_disk(path: Path, size_bytes: int, written_bytes: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", str(path))


def test_a_volume_that_is_away_does_not_hold_up_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the spool has for it is set aside once others need the room, survives a restart, and is in its file before it is served."""

    async def story(site: Site) -> None:
        both = {
            name: {"kind": "volume", "path": str(site.root / f"{name}.raw"), "size": "4MiB"}
            for name in ("disk", "more")
        }
        group = site.group(spec={"members": both}, spool_max=Size("8MiB"))
        await group.start()
        await protected(group)
        more = group.members[2].volume
        assert more is not None
        with monkeypatch.context() as full:
            full.setattr(Volume, "_apply_blocking", _no_space)
            more.submit([Change(ChangeKind.WRITE, 4096, 512, memoryview(b"kept" + bytes(508)))])
            more.hurry()
            await until(lambda: group.members[2].volume is None)
            (site.root / "more.raw").rename(site.root / "elsewhere.raw")
        assert "MemberFailed" in condition_types(group) or "MemberMissing" in condition_types(group)
        for number in range(96):
            write(group, 0, bytes([number]) * 2**18)
            await until(lambda: not volume_of(group).congested)
        await until(lambda: "WritesSetAside" in condition_types(group))
        await until(lambda: group.spool.head_lsn - group.spool.released_lsn < 8 * 2**20)
        await site.kill(group)
        again = site.group()
        await again.start()
        assert {"MemberMissing", "WritesSetAside"} <= condition_types(again)
        (site.root / "elsewhere.raw").rename(site.root / "more.raw")
        await until(lambda: again.members[2].volume is not None)
        back = again.members[2].volume
        assert back is not None
        assert back.read_blocking(4096, 512)[:4] == b"kept"
        assert (site.root / "more.raw").read_bytes()[4096:4100] == b"kept"
        await protected(again)
        assert "WritesSetAside" not in condition_types(again)

    run(tmp_path, story)


def test_that_the_journal_failed_is_on_record_before_the_file_gets_ahead_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss of power may come between: the file then has what no journal tells, and targets must be seeded anew."""

    async def story(site: Site) -> None:
        group = site.group()
        await group.start()
        await protected(group)
        content, seen = group.state.members[1].content, list[int]()
        apply = Volume._apply_blocking

        def looking(self: Volume, batch: Any) -> None:
            stored = group_state.load(site.folder / "state.json")
            assert stored is not None
            seen.append(stored.members[1].content)
            apply(self, batch)

        with monkeypatch.context() as broken:
            _break(broken, "sync")
            broken.setattr(Volume, "_apply_blocking", looking)
            write(group, 512, b"not durable" + bytes(501))
            answers: list[OSError | None] = []
            volume_of(group).flush(answers.append)
            await until(lambda: answers)
            assert volume_of(group).bypass
        assert seen == [content + 1]

    run(tmp_path, story)


def _full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def _break(patches: pytest.MonkeyPatch, failure: str) -> None:
    """Break the spool's disk: its syncs fail, or its appends of data do."""
    real_sync, real_write = os.fdatasync, os.pwritev

    def is_spool(descriptor: int) -> bool:
        return os.readlink(f"/proc/self/fd/{descriptor}").endswith(".spool")

    def fdatasync(descriptor: int) -> None:
        if failure == "sync" and is_spool(descriptor):
            raise OSError(errno.EIO, "Input/output error")
        real_sync(descriptor)

    def pwritev(descriptor: int, parts: Any, at: int) -> int:
        if failure == "append" and is_spool(descriptor):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real_write(descriptor, parts, at)

    patches.setattr(os, "fdatasync", fdatasync)
    patches.setattr(os, "pwritev", pwritev)


def test_a_history_that_does_not_fit_is_shown(tmp_path: Path, seed: int) -> None:
    """While a target keeps less than the history that was asked for, the group's SLA is not met."""

    async def story(site: Site) -> None:
        group = site.group(size_max=Size("64KiB"))
        await group.start()
        assert (await protected(group)).sla_state == SlaState.MEETING
        for number in range(4):
            write(group, 0, random.Random(seed + number).randbytes(32768))
            await shipped(group, tag=f"t{number}")
        await until(lambda: group.status().sla_state == SlaState.HISTORY_NOT_MET)
        assert group.status().protected
        (told,) = group.status().conditions
        assert (told.type, told.subject, told.severity) == ("HistoryNotMet", "leg/copies", "warning")
        assert re.match(
            r"Target copies keeps every checkpoint of the last \d+m?s only, and 1d were asked for; .* takes \d+[MGT]iB there\. "
            r"size_max \(64KiB\) is too small for that: raise it to \d+[MGT]iB, or ask for less `history`\.",
            told.message,
        )
        newest = group.status().legs["copies"].latest_checkpoint
        assert newest is not None
        assert site.reader().resolve(newest)

    run(tmp_path, story)


def test_a_held_checkpoint_stays_at_the_target_whatever_the_limits_say(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under steady writes and the smallest limit, over a restart; without the hold it goes. An absent one is lacking."""
    monkeypatch.setattr(shipper_module, "COMPACT_EVERY_SECONDS", 0.0)

    async def story(site: Site) -> None:
        leg = {"target": "copies", "rpo": "1s", "retention": {"tagged": "0s"}}
        chance, group = random.Random(seed), site.group(size_max=Size("64KiB"), spec={"replication": {"copies": leg}})
        await group.start()
        await protected(group)
        write(group, 0, chance.randbytes(32768))
        mark = await shipped(group, tag="held")
        expected = site.disk_at(at=mark.id)
        change = HoldChange(checkpoint=mark.id, held=True, lsn=mark.lsn, since_ns=group.stamp(), reason="audit")
        assert (await group.change_hold(change)).done == ["copies"]
        absent = HoldChange(checkpoint="ck-1-9999", held=True, lsn=64, since_ns=group.stamp())
        assert (await group.change_hold(absent)).lacking == ["copies"]
        for _ in range(2):
            for number in range(4):
                write(group, 65536, chance.randbytes(32768))
                await shipped(group, tag=f"t{number}")
            await until(lambda: any(ref.kind == SegmentKind.MERGED for ref in site.reader().refs()))
            await protected(group)
            assert site.disk_at(at=mark.id) == expected
            await group.stop()
            site.groups.remove(group)
            group = site.group()
            await group.start()
            await protected(group)
        (hold,) = site.reader().require_state().last.holds
        assert (hold.checkpoint, hold.reason) == (mark.id, "audit")
        site.targets["copies"].away = True
        write(group, 0, b"x" * 512)
        await group.ship()
        assert "away" in (await group.change_hold(change.model_copy(update={"held": False}))).failed["copies"]
        site.targets["copies"].away = False
        await protected(group)
        assert (await group.change_hold(change.model_copy(update={"held": False}))).done == ["copies"]
        assert site.reader().require_state().last.holds == []
        for number in range(4):
            write(group, 65536, chance.randbytes(32768))
            await shipped(group, tag=f"after{number}")
        await until(lambda: mark.id not in {found.id for found in site.reader().marks()})

    run(tmp_path, story)


def test_what_a_failed_file_lacks_stays_in_the_spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A volume whose file could not take its changes gets them at the next start, when there is room again."""

    async def story(site: Site) -> None:
        group = site.group()
        await group.start()
        await protected(group)
        with monkeypatch.context() as full:
            full.setattr(Volume, "_apply_blocking", _no_space)
            write(group, 4096, b"kept" + bytes(508))
            volume_of(group).hurry()
            await until(lambda: group.members[1].volume is None)
            assert "MemberFailed" in condition_types(group)
            await group.stop()
            site.groups.clear()
        again = site.group()
        await again.start()
        assert volume_of(again).read_blocking(4096, 512)[:4] == b"kept"

    run(tmp_path, story)


def _no_space(self: Volume, batch: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


# ------------------------------------------------------------------ going back in place


def rewind_of(number: int, **changes: Any) -> WorkerRewind:
    """Of the volume, by operation `number`."""
    fields = {"operation_id": f"op-{number}", "group_uid": UID, "ordinal": 1, "member": "disk", "target": "copies"}
    return WorkerRewind.model_validate({**fields, "checkpoint": "ck-1-1", **changes})


def test_a_reserved_volume_answers_nobody_until_it_is_back(tmp_path: Path) -> None:
    """Its clients go, its export is not offered, another operation is refused; then it has the checkpoint's content."""

    async def story(site: Site) -> None:
        group = site.group()
        await group.start()
        await protected(group)
        write(group, 0, b"good" * 1024)
        good = await shipped(group, tag="good")
        write(group, 0, b"bad!" * 1024)
        dropped: list[str] = []
        volume_of(group).opened(lambda: dropped.append("client"))
        with pytest.raises(Conflict, match="1 client is connected"):
            await group.rewinds.reserve(rewind_of(1))
        assert (dropped, list(group.exports())) == ([], ["shop/disk"])
        await group.rewinds.reserve(rewind_of(1, force_disconnect=True))
        assert (dropped, list(group.exports())) == (["client"], [])
        with pytest.raises(Conflict, match="Operation op-1 is at work"):
            await group.rewinds.reserve(rewind_of(2, force_disconnect=True))
        with pytest.raises(Conflict, match="declared anew"):
            await group.rewinds.reserve(rewind_of(3, ordinal=9))
        safety = await shipped(group, tag="safety")
        group.rewinds.begin(rewind_of(1, checkpoint=good.id, safety_checkpoint=safety.id))
        await until(lambda: group.rewinds.progress("op-1").state == "done")
        assert group.rewinds.progress("op-1").bytes_written == 4096
        assert list(group.exports()) == []
        await group.rewinds.release("op-1")
        assert list(group.exports()) == ["shop/disk"]
        await shipped(group, tag="after")
        assert site.disk_at(at="tag:after") == site.disk_at(at="tag:good") != site.disk_at(at="tag:safety")
        with pytest.raises(NotFound, match="restarted"):
            group.rewinds.progress("op-1")

    run(tmp_path, story)


def test_a_way_back_that_is_not_there_is_told(tmp_path: Path) -> None:
    """Progress has the reason; the volume stays reserved until whoever asked lets it go."""

    async def story(site: Site) -> None:
        group = site.group()
        await group.start()
        await protected(group)
        safety = await shipped(group, tag="safety")
        await group.rewinds.reserve(rewind_of(1))
        group.rewinds.begin(rewind_of(1, checkpoint="tag:never", safety_checkpoint=safety.id))
        await until(lambda: group.rewinds.progress("op-1").state == "failed")
        assert "never" in group.rewinds.progress("op-1").error

    run(tmp_path, story)
