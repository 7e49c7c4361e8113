"""One random history of a group: clients, faults, ends of the process and of the host, and what must be true throughout.

Fault model.
Process: ends at any call that changes a file, which is then done in part, or at any moment of waiting.
Host: loses power; of what was not synced each sector is there or not, of names a prefix (`tests/powercut/disk.py`).
Disk of the journal and of the group's state: full for a while, to the last page; a sync of the spool fails; a bit flips or a page lands elsewhere
while the process is dead.
Target: slow, away, requests and answers lost, requests done late or twice, objects rot, are cut short, gone, or another's; another primary writes.
Person: adds and removes volumes and legs, makes volumes larger, makes legs sync ones and back.

What must be true.
After a kill every acknowledged change is there. After a loss of power the device is as the journal before some place left it, and
that place is not before the newest answered FLUSH. Every checkpoint that a target lists gives exactly what the devices held at its
mark, or, where something rotted, an error of the tree. A sync leg's target has what a FLUSH was answered for unless its loss is on record. Checkpoints are in order. No target is ahead of the journal. The
spool keeps to its quota. Once the faults end, every leg gets there: its `latest` is the device. A stale primary adds nothing.
Nothing is logged as a defect, no task fails.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from random import Random
from typing import Any

import msgspec

from dpac_api.errors import Conflict, DpacError
from dpac_api.models import CheckpointRequest, DataState, LegSpec
from dpac_api.quantities import Duration, Size
from dpac_engine.control import group_state
from dpac_engine.control.assignment import MemberAssignment, WorkerAssignment
from dpac_engine.control.compaction import Compaction
from dpac_engine.control.group import Group, GroupDeps
from dpac_engine.control.shipper import Shipper
from dpac_engine.core.checkpoints import Mark
from dpac_engine.core.image import Image
from dpac_engine.io import durable_note
from dpac_engine.io.members.volume import Volume
from dpac_engine.io.nbd.export import Change, ChangeKind
from dpac_engine.io.repository import RepositoryReader, RepositoryWriter
from tests.powercut.disk import PAGE_BYTES
from tests.simulation import host, stage, world
from tests.simulation.oracle import SECTOR, Device, Written, Wrong, data_of, difference
from tests.simulation.tails import Tails
from tests.simulation.target import Target

KEY, KEY_ID, UID, SHARD = bytes(32), "7" * 32, "1" * 32, "6" * 32
FOLDER = "/host/group"
SPOOL_BYTES = 12 * stage.SPOOL_FILE_BYTES
SPOOL_SLACK_FILES = 4
LOOK_NS = 3 * 10**9
"""What was written since so long may lie above the spool's quota: upkeep looks every second, and then syncs and stores."""
SETTLE_SECONDS = 900.0
MARKS_CHECKED = 12


class ProbedGroup(Group):
    """A group that tells what it took back from its journal."""

    def __init__(
        self, assignment: WorkerAssignment, deps: GroupDeps, recovered: Callable[[list[Any], int], None]
    ) -> None:
        super().__init__(assignment, host.HostPath(FOLDER), deps)  # type: ignore[arg-type]
        self._recovered = recovered

    def _recover(self) -> list[Any]:
        found = super()._recover()
        self._recovered(found, self.spool.head_lsn)
        return found


class History:
    """What happens to one group, from one seed."""

    def __init__(self, seed: int, defects: stage.Defects, *, steps: int = 40) -> None:
        self.chance = Random(seed)
        self.world = world.World(seed + 1)
        self.host = host.Host(self.world)
        world.enter(self.world)
        host.enter(self.host)
        stage.SECRETS.chance = Random(seed + 2)
        for folder in ("/host", FOLDER, f"{FOLDER}/members"):
            self.host.mkdir(folder)
        self.host.disk.sync_all()
        self.targets = {name: Target(self.world) for name in ("near", "far")}
        self.devices: dict[int, Device] = {}
        self.members: dict[str, int] = {}
        self.legs = ["near"]
        self.sync: dict[str, dict[str, Any]] = {}
        """Leg -> what makes it a sync one."""
        self.generation = 1
        self.fenced: dict[str, int] = {}
        """Leg -> the manifest with which another primary took its target over."""
        self.acknowledged_lsn = self.flushed_lsn = self.recovered_lsn = 0
        self.cut = self.direct = False
        """Since the last whole start: the host lost power; the process ended while the journal was broken."""
        self._append_failed = self._power_goes = False
        self._last = False
        self._heads: deque[tuple[int, int]] = deque()
        self._defects = defects
        self._steps = steps
        self.pledges_checked = 0
        self._failed: list[str] = []
        self._tags = 0
        self.group: ProbedGroup
        for _ in range(self.chance.choice([1, 1, 2])):
            self._add_member()
        if self.chance.random() < 0.3:
            self._make_sync()

    # ------------------------------------------------------------------ lives

    def run(self) -> None:
        """All of it. Wrong, or another AssertionError, if a promise was broken."""
        lives = self.chance.choice([1, 2, 2, 3, 4])
        for number in range(lives):
            if not self._live(last=number == lives - 1):
                self._check_targets()
        self._check_targets()

    def run_into_rot(self) -> bool:
        """Some lives, then the journal's disk damages a spool file while the process is dead, then one more; False if none died.

        Who only was killed gets all that was acknowledged but for what the damage hit; after a loss of power that holds if the
        damage lies before what is on record as durable. In any case nothing that was never written is served or shipped.
        """
        if all(self._live(last=False) for _ in range(6)):
            return False
        hurt = self._damage_spool()
        self.world.revive()
        loop = world.Loop(self.world, lambda context: self._failed.append(str(context)))
        asyncio.set_event_loop(loop)
        try:
            healed = loop.run_until_complete(self._life_after_damage(hurt))
        finally:
            self.world.end()
            loop.abandon()
        if self._failed or self._defects.found:
            raise Wrong("; ".join(self._failed + self._defects.found))
        if healed:
            self._check_targets()
        return True

    def _damage_spool(self) -> list[tuple[int, int]]:
        """A bit of a record is another one, or a page was written to another page's place; from where to where bytes are others now."""
        disk, sound = self.host.disk, dict[int, tuple[Any, int, bytes]]()
        folder = disk.find(FOLDER).names.get("spool")  # the first life may have ended before there was one
        names = folder.names if folder else {}
        nodes = [(int(name[:16], 16), node) for name, node in sorted(names.items()) if name.endswith(".spool")]

        def keep(index: int, node: Any, page: int) -> None:
            begin = index * stage.SPOOL_FILE_BYTES + page * PAGE_BYTES
            sound.setdefault(begin, (node, page, bytes(node.pages[page])))

        for _ in range(self.chance.randint(1, 4)):
            if not nodes:
                break
            index, node = self.chance.choice(nodes)
            written = sorted(page for page, content in node.pages.items() if any(content))
            if not written:
                continue
            page = self.chance.choice(written)
            if self.chance.random() < 0.5:
                keep(index, node, page)
                self.host.rot(node, page * PAGE_BYTES + self.chance.randrange(PAGE_BYTES), self.chance)
            else:
                source, page = page, self.chance.choice(written)
                keep(index, node, page)
                disk.write(node, page * PAGE_BYTES, node.pages[source], self.world.now_ns)
            begin = index * stage.SPOOL_FILE_BYTES + page * PAGE_BYTES
            self.world.note(f"damage in page {page} of file {node.number}: LSN {begin} to {begin + PAGE_BYTES}")
        self.host.restart(None, forget_maps=True)
        hurt = list[tuple[int, int]]()
        for begin, (node, page, before) in sound.items():
            if others := [at for at, byte in enumerate(node.pages[page]) if byte != before[at]]:
                hurt.append((begin + others[0], begin + others[-1] + 1))
        return hurt

    async def _life_after_damage(self, hurt: list[tuple[int, int]]) -> bool:
        """True if the damage did not look like the end that a loss of power leaves: then every target gets there again."""

        def recovered(_: list[Any], head_lsn: int) -> None:
            self.recovered_lsn = head_lsn
            self.world.note(f"took back the journal up to {head_lsn}")

        before = self._stored_state()
        known_lsn = max(before.durable_lsn, durable_note.read(host.HostPath(f"{FOLDER}/spool")))  # type: ignore[arg-type]
        self.group = group = ProbedGroup(self._assignment(), self._deps(), recovered)
        await group.start()
        await self._until(lambda: all(member.attached for member in group.members.values()), "members are attached")
        # What is durable for sure: all there was, or, after a loss of power, what is on record.
        damage = [begin for begin, end in hurt if end > before.scan_lsn]
        noticed = not self.cut or bool(group.journal_damage) or not damage
        entries = [entry for device in self.devices.values() for entry in device.log]
        hit = [entry.lsn for entry in entries if before.scan_lsn <= entry.lsn < known_lsn and entry.is_hit(*damage)]
        if hit and not group.journal_damage and not self.direct:
            raise Wrong(f"damage to the record at LSN {min(hit)} went unnoticed, and {known_lsn} had been durable")
        durable_lsn = self.flushed_lsn if self.cut else self.acknowledged_lsn
        for ordinal in self.members.values():
            device, volume = self.devices[ordinal], self._volume(ordinal)
            found, what = volume.read_blocking(0, device.size_bytes), f"volume {ordinal} after damage to the journal"
            if noticed and not self.direct:
                device.check_salvaged(found, hurt, durable_lsn, what)
            device.forget_flushes()
            device.adopt(found, self.recovered_lsn, what)
        await self._until(lambda: all(leg.repository or leg.error for leg in group.legs.values()), "targets are opened")
        ahead = [leg for leg in group.legs.values() if isinstance(leg.error, Conflict)]
        for leg in ahead:
            if not (self.cut or self.direct or leg.name in self.fenced or self.targets[leg.name].rotten):
                raise Wrong(f"after a kill a damaged journal was begun before what {leg.name} has: {leg.error}")
        healed = not ahead and noticed and not self.direct
        await (self._settle() if healed else asyncio.sleep(20.0))
        await group.stop()
        return healed

    @property
    def digest(self) -> str:
        """Of everything that happened, and of what lies at the targets."""
        told = hashlib.blake2b("\n".join(self.world.trace).encode())
        for target in self.targets.values():
            for key, data in sorted(target.content.objects.items()):
                told.update(key.encode() + data)
        return told.hexdigest()

    def _live(self, *, last: bool) -> bool:
        """One life of the process; False if it ended before its time."""
        self.world.revive()
        loop = world.Loop(self.world, lambda context: self._failed.append(str(context)))
        asyncio.set_event_loop(loop)
        self._arm_life(last)
        try:
            loop.run_until_complete(self._life(last))
            ended = False
        except world.Ended:
            ended = True
            self.direct = self.direct or self._is_direct()
        finally:
            self.world.end()
            loop.abandon()
        if self._failed or self._defects.found:
            raise Wrong("; ".join(self._failed + self._defects.found))
        power = self._power_cut_seed() if ended else None
        self.world.note(f"life over, {'power cut' if power is not None else 'killed' if ended else 'stopped'}")
        self.cut = self.cut or power is not None
        self.host.restart(power)
        return not ended

    def _arm_life(self, last: bool) -> None:
        """Whether the process is to end somewhere in the middle, from its first call on."""
        if not last and self.chance.random() < 0.4:
            self.host.crash_in = self.chance.randint(1, 400)

    def _power_cut_seed(self) -> int | None:
        """What a loss of power leaves, now that the process has ended; None: it was only killed."""
        power = self._power_goes or self.chance.random() < 0.5
        return self.chance.getrandbits(30) | 1 if power else None

    def _is_direct(self) -> bool:
        """Some volume goes past the journal, or is about to."""
        group = getattr(self, "group", None)
        if group is None or not hasattr(group, "spool"):
            return False
        volumes = [member.volume for member in group.members.values() if member.volume is not None]
        broken = bool(group.journal_error) or group.spool._error is not None or self._append_failed
        return broken or any(volume.bypass for volume in volumes)

    async def _life(self, last: bool) -> None:
        self._last = last
        self._append_failed = self._power_goes = False
        self._heads.clear()
        self.group = group = ProbedGroup(self._assignment(), self._deps(), self._recovered)
        await group.start()
        await self._until(lambda: all(member.attached for member in group.members.values()), "members are attached")
        self._started()
        await self._begun()
        await self._happen()
        self.host.crash_in *= not last
        if last:
            await self._settle()
        elif self.chance.random() < 0.6:
            raise world.Ended
        await group.stop()
        for ordinal in self.members.values():
            node = self.host.disk.find(path_of(ordinal))
            content = self._found(ordinal, self.host.disk.read(node, 0, node.size))
            self.devices[ordinal].check(content, f"the file of volume {ordinal} after a stop")
        if not group.journal_error:
            self.flushed_lsn = group.spool.head_lsn

    # ------------------------------------------------------------------ begin of a life

    def _recovered(self, found: list[Any], head_lsn: int) -> None:
        self.world.note(f"took back {len(found)} records, head {head_lsn}")
        if not self.direct:
            known = self.flushed_lsn if self.cut else self.acknowledged_lsn
            if head_lsn < known:
                raise Wrong(
                    f"the journal ends at {head_lsn}, and {known} was {'flushed' if self.cut else 'acknowledged'}"
                )
            for ordinal, device in self.devices.items():
                device.took_back(found, ordinal, self.acknowledged_lsn, head_lsn)
        else:
            # A journal that failed may end before what it was said to hold: the volumes' files have it.
            self.flushed_lsn = min(self.flushed_lsn, head_lsn)
        self.acknowledged_lsn = self.recovered_lsn = head_lsn
        for name, target in self.targets.items():
            state = None if target.rotten else self._reader(target).state
            if state is not None and name not in self.fenced and state.cursor.get(SHARD, 0) > head_lsn:
                raise Wrong(
                    f"target {name} has the journal up to {state.cursor[SHARD]}, which itself ends at {head_lsn}"
                )

    def _started(self) -> None:
        for ordinal in self.members.values():
            device, volume = self.devices[ordinal], self._volume(ordinal)
            found = self._found(ordinal, volume.read_blocking(0, device.size_bytes))
            if self.direct:
                device.flushed = device.flushed if self.cut else len(device.log)
                device.adopt(found, self.recovered_lsn, f"volume {ordinal} after an end without a journal")
            device.check(found, f"volume {ordinal} at the start")
            device.began()
        self.cut = self.direct = False
        self.acknowledged_lsn = self.group.spool.head_lsn

    async def _begun(self) -> None:
        """A life begins, and what it took back is right."""

    def _found(self, ordinal: int, content: bytes, at: int = 0) -> bytes:
        """What was read of a volume's place here from `at` on, for whoever compares it with what was written."""
        return content

    def _watch(self) -> None:
        now_ns, heads = self.world.now_ns, self._heads
        heads.append((now_ns, self.group.spool.head_lsn))
        while len(heads) > 1 and heads[1][0] <= now_ns - LOOK_NS:
            heads.popleft()
        written = heads[-1][1] - heads[0][1]
        stored = self.group.spool.stored_bytes
        limit = SPOOL_BYTES + SPOOL_SLACK_FILES * stage.SPOOL_FILE_BYTES + written
        if stored > limit:
            raise Wrong(f"the spool has {stored} bytes, more than {limit}")
        if self._failed or self._defects.found:
            raise Wrong("; ".join(self._failed + self._defects.found))

    # ------------------------------------------------------------------ what may happen

    async def _happen(self) -> None:
        """In one life, once it has begun."""
        for _ in range(self.chance.randint(1, self._steps)):
            await self._step()
            self._watch()

    async def _step(self) -> None:
        steps: list[tuple[Callable[[], Any], int]] = [
            (self._write, 34), (self._burst, 3), (self._flush, 8), (self._wait_for_flush, 5), (self._pause, 16), (self._read, 6),
            (self._checkpoint, 7), (self._change_target, 8), (self._break_disk, 2), (self._change_spec, 3), (self._rot, 1),
            (self._take_over, 1), (self._arm, 1), (self._lose_power, 0 if self._last else 1),
        ]  # fmt: skip
        steps += self._more_steps()
        step = self.chance.choices([step for step, _ in steps], [weight for _, weight in steps])[0]
        self.world.note(step.__name__)
        done = step()
        if done is not None:
            await done

    def _more_steps(self) -> list[tuple[Callable[[], Any], int]]:
        """What else may happen in a history of another kind, and how often."""
        return []

    def _any(self) -> tuple[int, Device, Volume]:
        ordinal = self.chance.choice(sorted(self.members.values()))
        return ordinal, self.devices[ordinal], self._volume(ordinal)

    def _volume(self, ordinal: int) -> Volume:
        volume = self.group.members[ordinal].volume
        if volume is None:
            raise Wrong(f"volume {ordinal} is gone: {self.group.members[ordinal].error}")
        return volume

    async def _write(self) -> None:
        ordinal, device, volume = self._any()
        await self._until(lambda: not volume.congested, "clients are let on")
        changes = [self._change(device) for _ in range(self.chance.choice([1, 1, 2, 4]))]
        self._submit(ordinal, device, volume, changes)

    def _change(self, device: Device) -> Change:
        kind = self.chance.choice([ChangeKind.WRITE] * 5 + [ChangeKind.ZERO, ChangeKind.TRIM])
        sectors = self.chance.choice([1, 3, 8, 8, 8, 24])
        offset = self.chance.randrange(device.size_bytes // SECTOR) * SECTOR
        offset = offset & ~4095 if sectors == 8 else offset
        length = min(sectors * SECTOR, device.size_bytes - offset)
        data = self.chance.randbytes(SECTOR) * (length // SECTOR) if kind == ChangeKind.WRITE else None
        return Change(kind, offset, length, None if data is None else memoryview(data))

    def _submit(self, ordinal: int, device: Device, volume: Volume, changes: list[Change]) -> None:
        spool = self.group.spool
        device.tried = changes
        head_lsn, lsns = spool.head_lsn, list[int]()
        with self._noted(lsns):
            volume.submit(changes)
        device.tried = []
        if volume.bypass:
            lsns = [head_lsn] * len(changes)
        for lsn, change in zip(lsns, changes, strict=True):
            device.add(Written(lsn, change.offset, data_of(change), volume.bypass))
        self.acknowledged_lsn = spool.head_lsn
        self.world.note(f"volume {ordinal} wrote {[(change.offset, change.length) for change in changes]} at {lsns}")

    @contextmanager
    def _noted(self, lsns: list[int]) -> Iterator[None]:
        """Within it the LSNs that the spool gives are noted, and whether it fails."""
        spool: Any = self.group.spool
        real = spool.append
        self._append_failed = False

        def append(entries: Any) -> list[int]:
            try:
                lsns.extend(given := real(entries))
            except OSError:
                self._append_failed = True
                raise
            return given  # type: ignore[no-any-return]

        spool.append = append
        yield
        del spool.append
        self._append_failed = False

    async def _burst(self) -> None:
        for _ in range(self.chance.randint(5, 30)):
            await self._write()

    def _flush(self) -> asyncio.Future[None]:
        answered = self._flush_volume(*self._any())
        return answered if self.chance.random() < 0.5 and not self.sync else None  # type: ignore[return-value]

    def _flush_volume(self, ordinal: int, device: Device, volume: Volume) -> asyncio.Future[None]:
        count, lsn, group, answered = (
            len(device.log),
            self.group.spool.head_lsn,
            self.group,
            asyncio.get_running_loop().create_future(),
        )

        def done(error: OSError | None) -> None:
            if self.world.dead:
                return
            if error is not None:
                if not volume._stopped:  # else its client was cut off before
                    self._failed.append(f"a FLUSH of volume {ordinal} failed: {error}")
                answered.cancel()
                return
            if not group.journal_error:
                self.flushed_lsn = max(self.flushed_lsn, lsn)
            device.flush_answered(count)
            self.world.note(f"flushed before {lsn}")
            if not answered.done():
                answered.set_result(None)

        volume.flush(done)
        return answered

    async def _wait_for_flush(self) -> None:
        with suppress(
            TimeoutError, asyncio.CancelledError
        ):  # a leg that is lost may hold it for as long as it is declared to
            await asyncio.wait_for(self._flush() or asyncio.sleep(0.01), 10.0)

    async def _pause(self) -> None:
        await asyncio.sleep(self.chance.choice([0.0, 0.001, 0.05, 0.3, 1.0, 3.0, 12.0]))

    def _read(self) -> None:
        ordinal, device, volume = self._any()
        sectors = self.chance.choice([1, 8, 8, 64])
        offset = self.chance.randrange(device.size_bytes // SECTOR - sectors + 1) * SECTOR
        offset = offset & ~4095 if sectors == 8 else offset
        expected = device.content[offset : offset + sectors * SECTOR]
        now = volume.read_now(offset, sectors * SECTOR)
        if now is not None:
            found = self._found(ordinal, bytes(now), offset)
            difference(expected, found, f"volume {ordinal} from {offset} on, read at once")
        found = self._found(ordinal, volume.read_blocking(offset, len(expected)), offset)
        difference(expected, found, f"volume {ordinal} from {offset} on")

    async def _checkpoint(self) -> None:
        if not self.group.journal_error:
            self._tags += 1
            try:
                made = await self.group.checkpoint(
                    CheckpointRequest(tag=f"t{self._tags}", request_id=f"request-{self._tags}")
                )
            except DpacError as error:
                if not self.group.journal_error:
                    raise Wrong(f"a checkpoint failed: {error.message}") from error
                return
            self.world.note(f"checkpoint {made.id}")

    def _change_target(self) -> None:
        target = self.targets[self.chance.choice(sorted(self.targets))]
        target.away = self.chance.random() < 0.4
        target.slow = self.chance.choice([1, 1, 1, 10, 100])
        target.loss = self.chance.choice([0.0, 0.0, 0.05, 0.3])

    def _break_disk(self) -> None:
        if self.chance.random() < 0.5:
            self.host.failing_syncs = 1
        else:
            self.host.fill(None if self.host.full else self.chance.choice([0, 0, 1, 5, 20, 40]))

    async def _change_spec(self) -> None:
        what = self.chance.choice(["add leg", "remove leg", "add member", "remove member", "grow", "sync", "async"])
        self.world.note(what)
        if what == "add leg" and len(self.legs) == 1:
            self.legs = ["near", "far"]
        elif what == "remove leg" and len(self.legs) == 2 and "near" not in self.fenced:
            self.legs = ["near"]
            self.sync.pop("far", None)
        elif what == "sync":
            self._make_sync()
        elif what == "async":
            self.sync.clear()
        elif what == "add member" and len(self.members) < 3:
            self._add_member()
        elif what == "remove member" and len(self.members) > 1:
            del self.members[self.chance.choice(sorted(self.members))]
        elif what == "grow":
            ordinal = self.chance.choice(sorted(self.members.values()))
            self.devices[ordinal].grow(self.devices[ordinal].size_bytes + 16 * 1024)
        self.generation += 1
        self.host.fill(None)  # else a new volume waits for room
        await self.group.apply(self._assignment())
        await self._until(
            lambda: all(member.attached for member in self.group.members.values()), "members are attached"
        )

    def _make_sync(self) -> None:
        on_loss, timeout = self.chance.choice(["async", "stop"]), self.chance.choice(["500ms", "5s"])
        self.sync[self.chance.choice(self.legs)] = {"mode": "sync", "on_loss": on_loss, "timeout": timeout}

    def _add_member(self) -> None:
        ordinal = len(self.devices) + 1
        self.members[f"disk{ordinal}"] = ordinal
        self.devices[ordinal] = Device(self.chance.choice([48, 64, 96]) * 1024)

    def _rot(self) -> None:
        self.targets[self.chance.choice(sorted(self.targets))].rot()

    def _take_over(self) -> None:
        """Another primary, of a later epoch, commits to a target."""
        name = self.chance.choice(self.legs)
        if self.targets[name].rotten:
            return
        writer = RepositoryWriter(self.targets[name].content, UID, KEY_ID, b"wrapped", lambda _: KEY, world.Clock())
        state = writer.open()
        if state is not None and self.chance.random() < 0.3:
            if name in self.fenced:
                self._check_fence(name, writer.reader)  # it comes back: nothing of the old primary's may lie between
            taken = writer.commit(
                epoch=2, epochs=[*state.last.epochs, (2, self.group.spool.head_lsn)], cursor=state.cursor, members=state.members,
                membership_version=state.last.membership_version, spec=state.last.spec, log_from=state.last.log_from,
            )  # fmt: skip
            self.fenced[name] = taken.last.seq  # it may come back and write more
            self.world.note(f"another primary has {name}")

    def _arm(self) -> None:
        self.host.crash_in = self.chance.randint(1, 40)

    async def _lose_power(self) -> None:
        """While volumes write behind what was written last."""
        await self._write()
        await asyncio.sleep(self.chance.choice([0.0, 0.25, 0.3, 0.5]))
        self._power_goes = True
        raise world.Ended

    # ------------------------------------------------------------------ what must come

    async def _settle(self) -> None:
        """The faults end: the journal and every leg come back, and what is at the targets is what the devices hold."""
        self.host.fill(None)
        self.host.failing_syncs = 0
        for target in self.targets.values():
            target.away, target.slow, target.loss = False, 1, 0.0
            target.deliver()
        group = self.group
        counted = self._counted()
        mark: Mark | None = None

        def is_whole() -> bool:
            nonlocal mark
            if group.journal_error or not all(self._has_all(leg) for leg in counted):
                # An error of before came to light, and what was written meanwhile is in no log; or the spool could not wait.
                mark = None
                return False
            mark = mark or group.mark(tags=("end",))
            if mark is None:
                return False
            for leg in counted:
                leg.hurry()
            return all(leg.last_mark is not None and leg.last_mark.lsn >= mark.lsn for leg in counted)

        await self._until(is_whole, "every leg is Continuous and has the newest checkpoint")
        assert mark is not None
        for leg in counted:
            self._check_latest(leg.name, mark)
        for name in self.fenced:
            if name in group.legs and not self.targets[name].rotten:
                await self._until(lambda name=name: group.legs[name].fenced, f"{name} is fenced")  # type: ignore[misc]

    def _counted(self) -> list[Shipper]:
        """Legs that get there by themselves: where something rotted, one may have to wait for a person."""
        legs = self.group.legs.items()
        return [leg for name, leg in legs if name not in self.fenced and not self.targets[name].rotten]

    def _ordinals(self) -> set[int]:
        """Of all members."""
        return set(self.members.values())

    def _has_all(self, leg: Shipper) -> bool:
        members = leg.members
        whole = all(ordinal in members and members[ordinal].is_ready for ordinal in self._ordinals())
        return whole and leg.data_state == DataState.CONTINUOUS and leg.error is None

    async def _until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = self.world.now_ns + int(SETTLE_SECONDS * 1e9)
        while not condition():
            if self.world.now_ns > deadline:
                states = {
                    leg.name: (leg.data_state.value, leg.error and leg.error.message)
                    for leg in self.group.legs.values()
                }
                raise Wrong(
                    f"in {SETTLE_SECONDS} s it did not happen that {what}: {states}, journal {self.group.journal_error!r}"
                )
            await asyncio.sleep(0.05)
            self._watch()

    def _check_latest(self, leg: str, mark: Mark) -> None:
        reader = self._reader(self.targets[leg])
        found = reader.resolve("latest")
        if found.lsn < mark.lsn:
            raise Wrong(f"latest at {leg} is {found.id}, not {mark.id}")
        if missing := set(self.members.values()) - set(reader.members_at(found)):
            raise Wrong(f"latest at {leg} lacks the members {missing}")

    def _check_targets(self) -> None:
        for name, target in self.targets.items():
            target.deliver()
            try:
                reader = self._reader(target)
                if name in self.fenced and not target.rotten:
                    self._check_fence(name, reader)
                marks = list(reader.marks())
            except DpacError as error:
                if not target.rotten:
                    raise Wrong(f"target {name}: {error.message}") from error
                continue
            order = [(mark.lsn, mark.sequence, mark.stamp_ns) for mark in marks]
            if any(not all(a > b for a, b in zip(newer, older, strict=True)) for newer, older in pairwise(order)):
                raise Wrong(f"checkpoints at {name} are not in order: {order}")
            chosen = self.chance.sample(marks, min(MARKS_CHECKED, len(marks)))
            for mark in chosen:
                self._check_mark(name, target, reader, mark)
            self._check_pledge(name, target, reader)
            self.world.note(f"{name}: {len(marks)} checkpoints, {len(target.content.objects)} objects")

    def _stored_state(self) -> group_state.GroupState:
        """As it lies on the host."""
        node = self.host.disk.find(FOLDER).names.get("state.json")
        if node is None:
            return group_state.GroupState()
        return msgspec.json.decode(self.host.disk.read(node, 0, node.size), type=group_state.GroupState)

    def _check_pledge(self, name: str, target: Target, reader: RepositoryReader) -> None:
        """A sync leg whose loss is not on record has everything that a FLUSH was answered for."""
        leg = self._stored_state().legs.get(name)
        if (
            leg is None
            or leg.sync != "in sync"
            or name not in self.sync
            or name in self.fenced
            or target.rotten
            or self.direct
        ):
            return
        mark = reader.resolve("latest")
        image = reader.image(mark)
        self.pledges_checked += 1
        for ordinal in set(reader.members_at(mark)) & set(self.members.values()):
            volume, device = image.volume(ordinal), self.devices[ordinal]
            found = volume.read(0, volume.size_bytes).ljust(device.size_bytes, b"\0")
            device.check_flushed(found, f"volume {ordinal} in {mark.id}, the latest at {name}, a sync leg")

    def _check_mark(self, name: str, target: Target, reader: RepositoryReader, mark: Mark) -> None:
        try:
            image = reader.image(mark)
            there = set(reader.members_at(mark))
            self._check_others(name, mark, image, there - set(self.devices))
            for ordinal in sorted(there & set(self.devices)):
                volume = image.volume(ordinal)
                found = volume.read(0, volume.size_bytes)
                device = self.devices[ordinal]
                if volume.size_bytes not in device.sizes:
                    raise Wrong(
                        f"volume {ordinal} in {mark.id} at {name} has {volume.size_bytes} bytes, not one of {device.sizes}"
                    )
                found = found.ljust(device.size_bytes, b"\0")
                behind = reader.require_state().cursor.get(SHARD, 0) < mark.lsn
                if not (behind and device.was(found, mark.lsn)):
                    difference(device.at(mark.lsn), found, f"volume {ordinal} in {mark.id} at {name}")
        except DpacError as error:
            if not target.rotten:
                raise Wrong(f"{mark.id} at {name}: {error.message}") from error

    def _check_others(self, name: str, mark: Mark, image: Image, ordinals: set[int]) -> None:
        """Wrong if a member that is no volume is not what it was."""
        if ordinals:
            raise Wrong(f"{mark.id} at {name} has the members {ordinals}")

    def _check_fence(self, name: str, reader: RepositoryReader) -> None:
        state = reader.require_state()
        if state.last.seq != self.fenced[name]:
            raise Wrong(
                f"manifest {state.last.seq} came to {name} after another primary had taken it over with {self.fenced[name]}"
            )

    # ------------------------------------------------------------------ what the engine is given

    def _reader(self, target: Target) -> RepositoryReader:
        reader = RepositoryReader(target.content, UID, lambda _: KEY)
        reader.refresh()
        return reader

    def _open_writer(self, assignment: WorkerAssignment, _: LegSpec, target: Any) -> RepositoryWriter:
        return RepositoryWriter(self.targets[target.path[1:]], UID, KEY_ID, b"wrapped", lambda _: KEY, world.Clock())

    def _deps(self) -> GroupDeps:
        return GroupDeps(
            clock=world.Clock(),
            executor=world.Executor(),
            open_writer=self._open_writer,
            compactor=lambda assignment, leg: Compaction(assignment.spec.journal, leg),
            directory=_no_directory,
            open_tails=lambda _, target: Tails(self.world, self.targets[target.path[1:]]),
            open_reader=lambda _, target: self._reader(self.targets[target.path[1:]]),
        )

    def _assignment(self) -> WorkerAssignment:
        made = WorkerAssignment.model_validate(self._declared())
        limits = {"spool_max": Size(f"{SPOOL_BYTES // 1024}KiB"), "history": Duration("20s")}
        return made.model_copy(
            update={"spec": made.spec.model_copy(update={"journal": made.spec.journal.model_copy(update=limits)})}
        )

    def _declared(self) -> dict[str, Any]:
        """What is assigned."""
        spec = {
            "members": {
                name: {
                    "kind": "volume",
                    "path": path_of(ordinal),
                    "size": f"{self.devices[ordinal].size_bytes // 1024}KiB",
                }
                for name, ordinal in self.members.items()
            },
            "replication": {name: {"target": name, "rpo": "3s"} | self.sync.get(name, {}) for name in self.legs},
        }
        return {
                "group_uid": UID, "name": "shop", "site_uid": "5" * 32, "shard_uid": SHARD, "worker": 0,
                "generation": self.generation, "epoch": 1, "membership_version": len(self.devices), "key_id": KEY_ID, "spec": spec,
                "members": {name: MemberAssignment(ordinal=at, uid=f"{at:032x}") for name, at in self.members.items()},
                "targets": {name: {"kind": "filesystem", "path": f"/{name}"} for name in self.targets},
            }  # fmt: skip


def path_of(ordinal: int) -> str:
    """Where a volume's file lies."""
    return f"/host/disk{ordinal}.raw"


def _no_directory(*_: object) -> Any:
    raise AssertionError("no member is a directory")


def replay_command(kind: str, seed: int) -> str:
    """Plays one history again."""
    return f"DPAC_SIM_KIND={kind} DPAC_SIM_SEED={seed} pytest tests/sim/test_simulation.py -k one_history"
