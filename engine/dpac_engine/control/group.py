"""A group at work in a worker: its spool, members, checkpoints and legs (a `runtime.Runtime`)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Executor
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from dpac_api.errors import DpacError, Invalid, Unreachable, Unrecoverable
from dpac_api.models import (
    Checkpoint,
    CheckpointRequest,
    FilesystemTargetSpec,
    GroupStatus,
    LegSpec,
    SyncLegSpec,
    TargetSpec,
    TargetTraffic,
)
from dpac_engine.control import group_state, group_status, journal_damage, journal_failures, leg_orders
from dpac_engine.control.assignment import WorkerAssignment
from dpac_engine.control.clock_watch import ClockWatch
from dpac_engine.control.coordinator import Coordinator, ShardWorker
from dpac_engine.control.gate import Gate
from dpac_engine.control.group_state import GroupState, LegMemory
from dpac_engine.control.group_view import MemberInfo, UnseenChanges
from dpac_engine.control.holding import Holding
from dpac_engine.control.journal_return import JournalReturn
from dpac_engine.control.leg_orders import LegOrder
from dpac_engine.control.marking import Marking
from dpac_engine.control.member import DirectoryFactory, Member
from dpac_engine.control.merging import Compactor
from dpac_engine.control.quiescing import Quiescing
from dpac_engine.control.rewind import Rewinds
from dpac_engine.control.shipper import Shipper
from dpac_engine.control.spool_quota import SpoolQuota
from dpac_engine.control.sync_leg import SyncLeg
from dpac_engine.control.tracking import Tracking
from dpac_engine.control.worker_api import HoldChange, HoldOutcome
from dpac_engine.core.checkpoints import CutBody, Mark, decode_mark
from dpac_engine.core.ports import Clock, TailStore
from dpac_engine.core.records import Flags, Header, Kind
from dpac_engine.core.stamps import Stamps
from dpac_engine.io import durable_note
from dpac_engine.io import spool as spool_module
from dpac_engine.io.nbd.export import Export
from dpac_engine.io.overlay_blocks import boot_id
from dpac_engine.io.repository import RepositoryReader, RepositoryWriter, SpecObject
from dpac_engine.io.reserved_file import ReservedFile
from dpac_engine.io.spool import Identity, Spool

log = logging.getLogger(__name__)

ATTACH_RETRY_SECONDS = 5.0
STORE_SECONDS = 10.0
STORE_BYTES = 2**20
"""State is stored once so much time has passed, or so much journal, since: an idle group leaves its disk alone."""


def _no_peers(worker: int) -> ShardWorker:
    raise Unreachable(f"Worker {worker} is not to be reached from here.")


class GroupDeps(NamedTuple):
    """What wiring gives a group."""

    clock: Clock
    executor: Executor
    open_writer: Callable[[WorkerAssignment, LegSpec, TargetSpec], RepositoryWriter]
    compactor: Callable[[WorkerAssignment, LegSpec], Compactor]
    directory: DirectoryFactory
    open_tails: Callable[[WorkerAssignment, TargetSpec], TailStore]
    open_reader: Callable[[str, TargetSpec], RepositoryReader]
    peers: Callable[[int], ShardWorker] = _no_peers
    """The worker of an index: a group of several shards is served by several."""
    traffic: Callable[[str, TargetSpec], TargetTraffic | None] = lambda _group_uid, _target: None
    """What this process asked of a group's part of a target."""


class Group:
    """One group. Everything but file work runs on the event loop it was started on."""

    def __init__(self, assignment: WorkerAssignment, folder: Path, deps: GroupDeps) -> None:
        self.assignment = assignment
        self.folder = folder
        self._deps = deps
        self.state = GroupState()
        self.members: dict[int, Member] = {}
        self.legs: dict[str, Shipper] = {}
        self.sync_legs: dict[str, SyncLeg] = {}
        self.journal_error: str = ""
        self.store_error: str = ""
        self.journal_damage: str = ""
        """What was found of it at the start; until every target has everything anew."""
        self.quota = SpoolQuota(self)
        self.tracking = Tracking(folder / "dirty")
        self._return = JournalReturn(self)
        self._since: dict[str, datetime] = {}
        self.marking = Marking(self)
        self._opened_lsn = 0
        self._stored_at = 0.0
        self._told = b""
        self._tasks: list[asyncio.Task[None]] = []
        self.holding = Holding(self)
        self.quiescing = Quiescing(self.members)
        self.coordinator = Coordinator(self, deps.peers) if assignment.shards > 1 and not assignment.shard else None
        self.rewinds = Rewinds(self, deps.open_reader)
        self.applying = asyncio.Lock()
        self._state_file = ReservedFile(folder / "state.json")
        self._loop = asyncio.get_running_loop()
        self._stamps = Stamps()
        self.clock_watch = ClockWatch(deps.clock, self._stamps)
        self.spool: Spool
        self.gate: Gate

    # ------------------------------------------------------------------ what legs see (group_view.GroupView)

    @property
    def shard_uid(self) -> str:
        """The shard."""
        return self.assignment.shard_uid

    @property
    def shard_tag(self) -> int:
        """The shard, as records name it."""
        return int.from_bytes(bytes.fromhex(self.shard_uid)[:4], "little")

    @property
    def epochs(self) -> list[tuple[int, int]]:
        """(epoch, LSN at which it began)."""
        return self.state.epochs

    @property
    def membership_version(self) -> int:
        """Of the newest record."""
        return self.assignment.membership_version

    @property
    def incarnation(self) -> int:
        """Of the shard, since it was opened."""
        return self.state.incarnation

    @property
    def opened_lsn(self) -> int:
        """Where that began."""
        return self._opened_lsn

    @property
    def spec_number(self) -> int:
        """Which declaration is in force: its generation."""
        return self.assignment.generation

    @property
    def escrow_keys(self) -> list[str]:
        """Public keys to which the data key is sealed at every target."""
        return self.assignment.spec.encryption.escrow

    def traffic(self, target: str) -> TargetTraffic | None:
        """What this process asked of the group's part of a target."""
        spec = self.assignment.targets.get(target)
        return None if spec is None else self._deps.traffic(self.assignment.key, spec)

    def spec_object(self) -> SpecObject:
        """The declaration, for the repository."""
        made = self.assignment
        return SpecObject(made.name, made.site_uid, made.generation, made.spec.model_dump(mode="json"), made.identity())

    def member_infos(self) -> Mapping[int, MemberInfo]:
        """Ordinal -> member."""
        return {ordinal: member.info() for ordinal, member in self.members.items()}

    def unseen_changes(self) -> Mapping[int, UnseenChanges]:
        """See `group_view.GroupView.unseen_changes`."""
        return {at: UnseenChanges(memory.content, memory.content_lsns) for at, memory in self.state.members.items()}

    def oldest_change_ns(self, since_lsn: int) -> int | None:
        """See `group_view.GroupView.oldest_change_ns`."""
        return self.marking.oldest_change_ns(since_lsn)

    def stamp(self) -> int:
        """Hybrid time."""
        return self._stamps.next(self._deps.clock.now_ns(), self._deps.clock.monotonic_ns())

    async def record(self) -> None:
        """See `sync_leg.SyncView`; the bitmaps before the state: records before its `scan_lsn` are not looked at again."""
        await self.tracking.store()
        await asyncio.to_thread(self._store_state)

    def poke(self) -> None:
        """See `sync_leg.SyncView`."""
        self.gate.poke()

    def aging_ns(self) -> int | None:
        """See `group_view.GroupView.aging_ns`."""
        return self.clock_watch.aging_ns()

    # ------------------------------------------------------------------ start and end

    async def start(self) -> None:
        """See `runtime.Runtime.start`."""
        recovered = await self._loop.run_in_executor(self._deps.executor, self._recover)
        for record in recovered:
            if record[0].member in self.members:
                self.members[record[0].member].found(*record)
        self._set_members()
        self._set_legs()  # first, so that nothing is acknowledged without them
        for member in self.members.values():
            await member.attach()
        self.mark()
        self.nudge_legs()  # they looked when nothing was attached yet
        self._tasks = [
            asyncio.create_task(self.marking.run(), name="mark"),
            asyncio.create_task(self._maintain_forever(), name="maintain"),
        ]
        if self.coordinator is not None:
            self._tasks.append(asyncio.create_task(self.coordinator.run(), name="coordinate"))

    def _recover(self) -> list[tuple[Header, memoryview]]:
        """Read state and spool; returns the records that members may not have applied. Blocks."""
        loaded = group_state.load(self.folder / "state.json")
        self.state = loaded or GroupState(
            epochs=[(self.assignment.epoch, 0)],
            legs={name: LegMemory(0) for name in self.assignment.spec.replication},
        )
        journal_failures.take_up_all(self.state)
        for name in group_state.withdraw(self.state, self.assignment.spec.replication):
            self.tracking.drop(name)
        if self.assignment.epoch != self.state.epochs[-1][0]:
            raise Invalid(f"Epoch {self.assignment.epoch} was assigned, but this host has {self.state.epochs[-1][0]}.")
        tag = self.shard_tag
        self.state.durable_lsn = max(self.state.durable_lsn, durable_note.read(self.folder / "spool"))
        records = list(spool_module.scan(self.folder / "spool", self.state.scan_lsn, tag, self.state.scan_incarnation))
        end = records[-1][0].next_lsn if records else self.state.scan_lsn
        boot = boot_id()
        damage = journal_damage.look(self.folder / "spool", self.state, end, tag, boot)
        while records and records[-1][0].flags & Flags.RUN_CONTINUES:
            records.pop()  # its run was cut short by the crash: none of it counts
        head = records[-1][0].next_lsn if records else self.state.scan_lsn
        whole = [*records, *(damage.records if damage else ())]
        for header, payload in whole:
            if header.kind == Kind.MARK:
                mark = decode_mark(header.epoch, header.lsn, header.stamp, payload)
                if mark.sequence > self.state.sequence:
                    self.state.sequence, self.state.void_from = mark.sequence, mark.body.void_from
        self._stamps = Stamps(max([self.state.stamp, *(header.stamp for header, _ in whole)]))
        self.clock_watch = ClockWatch(self._deps.clock, self._stamps)
        self._state_file.reserve()  # before the first append can fill the disk
        self.state.incarnation, self.state.boot_id = self.state.incarnation + 1, boot
        if damage is not None:
            self.journal_damage, records = damage.message, []
            specs = self.assignment.spec.members
            volumes = [each.uid for name, each in self.assignment.own_members.items() if specs[name].kind == "volume"]
            head = journal_damage.begin_anew(damage, self.folder, self.state, volumes, whole)
        for name, leg in self.state.legs.items():
            if leg.tracked:
                self.tracking.load(name, leg.lost, records)
        self._store_state()
        journal_failures.forget_all(self.state)
        released = min([self.state.scan_lsn, *(leg.cursor for leg in self.state.legs.values() if not leg.lost)])
        self.spool = Spool(
            self.folder / "spool",
            Identity(tag, self.assignment.epoch, self.state.incarnation),
            head,
            released,
            self._loop.call_soon_threadsafe,
            self.stamp,
            self.journal_failed,
        )
        self.spool.turned = self.quota.turned
        self.gate = Gate(self.spool, self.sync_legs)
        self._opened_lsn = head
        self.marking.began(head)
        if records:
            self.marking.found(head, records[0][0].stamp)
        self._set_members()
        return records

    async def stop(self) -> None:
        """See `runtime.Runtime.stop`."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.rewinds.stop()
        await self._stop_legs()
        self.mark()
        for member in self.members.values():
            await member.detach()
        with contextlib.suppress(DpacError):
            await self._wait_durable()  # so that the next start has nothing to replay
        await self._keep(self._store)  # else the next start replays more
        await asyncio.to_thread(self.spool.stop)

    async def _stop_legs(self) -> None:
        for sync in self.sync_legs.values():
            await sync.stop()
        for leg in self.legs.values():
            await leg.stop()

    async def drop(self) -> None:
        """See `runtime.Runtime.drop`."""
        await self.stop()
        await asyncio.to_thread(shutil.rmtree, self.folder, True)

    async def apply(self, assignment: WorkerAssignment) -> None:
        """See `runtime.Runtime.apply`."""
        async with self.applying:
            before, self.assignment = self.assignment, assignment
            await self._drop_members()
            self._set_members()
            for member in self.members.values():
                await member.attach()
            await self._drop_legs()
            await self._keep(self.record)  # else a later life acts on what was withdrawn
            for leg in self.legs.values():
                if before.targets.get(leg.spec.target) != assignment.targets.get(leg.spec.target):
                    leg.reopen()  # the same place, reached in another way: other credentials, another proxy
            self._set_legs()
            self.mark()
            self.nudge_legs()

    # ------------------------------------------------------------------ members and legs

    def _set_members(self) -> None:
        for name, identity in self.assignment.own_members.items():
            spec = self.assignment.spec.members[name]
            if identity.ordinal in self.members:
                self.members[identity.ordinal].respecify(name, spec)
                continue
            self.members[identity.ordinal] = Member(
                name, identity, spec, self.state, self.folder / "members" / identity.uid, self.spool, self._deps.executor,
                self._deps.directory, self.assignment.journal.spool_max.bytes // 4, self._remember, self.gate, self.tracking.note,
                self.nudge_legs,
            )  # fmt: skip

    async def _drop_members(self) -> None:
        kept = {identity.ordinal for identity in self.assignment.own_members.values()}
        for ordinal in [ordinal for ordinal in self.members if ordinal not in kept]:
            await self.members.pop(ordinal).detach()
            if not self.state.members[ordinal].content:
                del self.state.members[ordinal]  # else a target may not know yet that its content changed unseen

    def _set_legs(self) -> None:
        for name, spec in self.assignment.spec.replication.items():
            leg = self.legs.get(name)
            if leg is not None:
                if leg.spec.retention.immutable_for != spec.retention.immutable_for:
                    leg.reopen()  # what is written from now on is locked for another time
                leg.spec, leg.compactor = spec, self._deps.compactor(self.assignment, spec)
                leg.nudge()
            else:
                # A leg added to a group at work takes the log from now on, and seeds what came before. While the journal is
                # broken there is no log: it begins with the next one.
                broken = bool(self.journal_error)
                begun = LegMemory(self.spool.durable_lsn, lost=broken)
                memory = self.state.legs.setdefault(name, begun)
                memory.target = spec.target
                compactor = self._deps.compactor(self.assignment, spec)
                near = isinstance(self.assignment.targets[spec.target], FilesystemTargetSpec)
                leg = self.legs[name] = Shipper(name, spec, self, self._writer_of(name), compactor, memory, near=near)
                if not broken:
                    leg.start()
            if isinstance(spec, SyncLegSpec):
                self._set_sync_leg(leg, spec)
        self.gate.poke()

    def _set_sync_leg(self, leg: Shipper, spec: SyncLegSpec) -> None:
        sync = self.sync_legs.get(leg.name)
        if sync is not None:
            sync.respecify(spec)
            return

        def open_tails() -> TailStore:
            return self._deps.open_tails(self.assignment, self.assignment.targets[spec.target])

        sync = self.sync_legs[leg.name] = SyncLeg(leg.name, spec, self, leg, open_tails, leg.memory)
        leg.tail_in_use = lambda: sync.tail
        sync.start()

    def _writer_of(self, leg: str) -> Callable[[], RepositoryWriter]:
        def open_writer() -> RepositoryWriter:
            spec = self.assignment.spec.replication[leg]
            return self._deps.open_writer(self.assignment, spec, self.assignment.targets[spec.target])

        return open_writer

    def nudge_legs(self) -> None:
        """Have every leg look whether something is due."""
        for leg in self.legs.values():
            leg.nudge()

    async def _drop_legs(self) -> None:
        wanted = self.assignment.spec.replication
        for name, leg in list(self.legs.items()):
            goes = name not in wanted or wanted[name].target != leg.spec.target
            if name in self.sync_legs and (goes or wanted[name].mode != "sync"):
                await self.sync_legs.pop(name).stop()
                leg.tail_in_use = lambda: None
            if goes:
                await self.legs.pop(name).stop()
                await self.tracking.end(name)
        group_state.withdraw(self.state, wanted)

    # ------------------------------------------------------------------ checkpoints

    def mark(
        self, *, tags: tuple[str, ...] = (), app: bool = False, cuts: Mapping[int, CutBody] | None = None
    ) -> Mark | None:
        """See `Marking.mark`."""
        return self.marking.mark(tags=tags, app=app, cuts=cuts)

    async def checkpoint(self, request: CheckpointRequest) -> Checkpoint:
        """See `runtime.Runtime.checkpoint`."""
        if self.coordinator is not None:
            return await self.coordinator.checkpoint(request)
        tags = (request.tag,) if request.tag else ()
        if request.app:
            async with self.quiescing.at_rest(self.assignment.name) as cuts:
                mark = self.mark(tags=tags, app=True, cuts=cuts)
        else:
            mark = self.mark(tags=tags)
        if mark is None:
            raise DpacError(f"No checkpoint can be taken: {self.journal_error}")
        await self.secure()
        return group_status.checkpoint_of(mark, self.shard_uid, self.member_names())

    async def secure(self) -> None:
        """See `runtime.Runtime.secure`."""
        await self._wait_durable()
        for leg in self.legs.values():
            leg.hurry()  # somebody asked for a checkpoint: it does not wait for the legs' cadence

    async def _wait_durable(self) -> None:
        done: asyncio.Future[None] = self._loop.create_future()

        def settle(error: OSError | None) -> None:
            if done.done():
                return
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(DpacError(f"The journal failed: {error}. The group goes on without checkpoints."))

        self.spool.when_durable(self.spool.head_lsn, settle)
        await done

    def member_names(self) -> dict[int, str]:
        """Ordinal -> name."""
        return {ordinal: member.name for ordinal, member in self.members.items()}

    async def mark_changes(self, *, always: bool = False) -> None:
        """See `group_view.GroupView.mark_changes`."""
        await self.marking.mark_changes(always=always)
        with contextlib.suppress(DpacError):
            await self._wait_durable()

    async def ship(self) -> None:
        """See `runtime.Runtime.ship`."""
        await self._wait_durable()
        await asyncio.gather(*(leg.ship_now() for leg in self.legs.values()))

    async def change_hold(self, change: HoldChange) -> HoldOutcome:
        """See `runtime.Runtime.change_hold`."""
        legs = list(self.legs.values())
        answers = await asyncio.gather(*(leg.change_hold(change) for leg in legs), return_exceptions=True)
        done, lacking, failed = [], [], {}
        for leg, answer in zip(legs, answers, strict=True):
            if isinstance(answer, Unrecoverable):
                lacking.append(leg.spec.target)
            elif isinstance(answer, DpacError):
                failed[leg.spec.target] = answer.message
            elif isinstance(answer, BaseException):
                raise answer
            else:
                done.append(leg.spec.target)
        return HoldOutcome(done=done, lacking=lacking, failed=failed)

    async def order(self, order: LegOrder) -> None:
        """See `runtime.Runtime.order`."""
        await leg_orders.carry_out(self, order)

    # ------------------------------------------------------------------ upkeep

    async def _maintain_forever(self) -> None:
        attach_at = 0.0
        while True:
            await self.quota.upkeep_due()
            try:
                if self._loop.time() >= attach_at:
                    attach_at = self._loop.time() + ATTACH_RETRY_SECONDS
                    for member in list(self.members.values()):
                        await member.attach()
                        await member.look_at_file()
                await self.quota.sync()
                for member in list(self.members.values()):
                    await member.give_up_failed()
                await self._return.attempt(self._loop.time())
                await self.quota.keep()
                if self._has_news():
                    await self._store()
            except OSError as error:
                self._not_stored(error)
            except Exception:
                log.exception("upkeep of group %s failed", self.assignment.name)

    def _has_news(self) -> bool:
        """Storing the state would tell something new, or free space of the spool."""
        low_lsn = min([self.spool.durable_lsn, *(m.applied_lsn for m in self.members.values()), *self._cursors()])
        return (
            low_lsn - self.spool.released_lsn > STORE_BYTES
            or self._loop.time() > self._stored_at + STORE_SECONDS
            or bool(self.store_error)
            or group_state.told(self.state) != self._told
        )

    async def _store(self) -> None:
        """Remember how far everything is, durably; then the spool may recycle what is needed no more."""
        head = self.spool.durable_lsn
        scan_lsn = max(self.state.scan_lsn, min([head, *(m.applied_lsn for m in self.members.values())]))
        await self.tracking.store()  # whoever stores the state from here on may store this LSN
        self.state.scan_lsn, self.state.durable_lsn = scan_lsn, max(self.state.durable_lsn, head)
        if self.state.scan_lsn >= self._opened_lsn:
            self.state.scan_incarnation = self.state.incarnation
        self.state.stamp = self.stamp()
        cursors, told, now = self._cursors(), group_state.told(self.state), self._loop.time()
        await self.record()
        await asyncio.to_thread(self._state_file.reserve)
        self._told, self._stored_at = told, now
        cursors += self._cursors()  # a leg that was lost may have come back meanwhile
        self.store_error = ""
        sending = [lsn for leg in self.sync_legs.values() if (lsn := leg.holds_lsn) is not None]
        keep = min([self.state.scan_lsn, *cursors, *sending])
        self.marking.forget(keep)
        self.spool.release(keep)

    def _cursors(self) -> list[int]:
        wanted = (leg.resync_lsn if leg.memory.lost else leg.memory.cursor for leg in self.legs.values())
        return [lsn for lsn in wanted if lsn is not None]

    async def _keep(self, store: Callable[[], Awaitable[None]]) -> None:
        try:
            await store()
        except OSError as error:
            self._not_stored(error)

    def _not_stored(self, error: OSError) -> None:
        """Without its state stored nothing of the spool can be recycled: the disk is full, most likely."""
        message = f"{self.folder} cannot be written: {error.strerror or error}"
        if message != self.store_error:
            log.error("group %s: %s", self.assignment.name, message)
        self.store_error = message

    def began_anew(self, head_lsn: int) -> None:
        """The journal begins anew at `head_lsn` (`journal_return.py`)."""
        self._opened_lsn = head_lsn
        self.marking.began(head_lsn)
        self.gate.journal_broken = False
        for leg in self.sync_legs.values():
            leg.journal_broken = False

    def _store_state(self) -> None:
        self._state_file.replace(lambda: group_state.encode(self.state))

    def _remember(self) -> bool:
        # Called when the journal has just failed: its disk may be this one, and full.
        try:
            self._store_state()
        except OSError as error:
            log.error("group %s cannot store its state: %s", self.assignment.name, error)
            return False
        return True

    def journal_failed(self, error: OSError) -> None:
        """The law: the application goes on, without checkpoints, visibly."""
        if self.journal_error:
            return
        self.journal_error = f"the spool {self.folder / 'spool'} failed: {error.strerror}"
        log.error("group %s: %s", self.assignment.name, self.journal_error)
        self._return.failed(self._loop.time())
        self.gate.journal_broken = True
        for member in self.members.values():
            member.write_through()
        for leg in self.sync_legs.values():
            leg.journal_failed()

    # ------------------------------------------------------------------ faces

    def since(self, condition: str, now: datetime) -> datetime:
        """Since when a condition has held, if it held at the last look too."""
        return self._since.setdefault(condition, now)

    def status(self) -> GroupStatus:
        """See `runtime.Runtime.status`."""
        status = group_status.of(self)
        holding = {group_status.key(condition) for condition in status.conditions}
        self._since = {name: since for name, since in self._since.items() if name in holding}
        return status

    def exports(self) -> Mapping[str, Export]:
        """See `runtime.Runtime.exports`."""
        return {
            f"{self.assignment.name}/{member.name}": member.volume
            for member in self.members.values()
            if member.volume is not None and not member.holder
        }
