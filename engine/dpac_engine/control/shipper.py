"""A leg at work: it seals what its target does not have yet, and commits it by manifests.

One task a leg. It alternates between the log (when due, `core/sealing.py`), seeds of members that the target does not
have (`control/seeding.py`) and compaction; every step ends in a commit, so that a crash loses at most one step's work.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

import msgspec

from dpac_api.errors import Conflict, Corruption, DpacError, NotFound, Temporary, Unrecoverable
from dpac_api.models import DataState, LegSpec
from dpac_engine.control.comparing import HeldContent, HeldHashes
from dpac_engine.control.group_state import LegMemory
from dpac_engine.control.group_view import GroupView, MemberInfo
from dpac_engine.control.log_slice import LogSlice, read_slice
from dpac_engine.control.merging import Compactor
from dpac_engine.control.seeding import Piece, Seeding, SeedStream
from dpac_engine.control.worker_api import HoldChange
from dpac_engine.core import sealing, tail
from dpac_engine.core.checkpoints import Mark
from dpac_engine.core.manifest import Hold, Manifest, MemberState, RepositoryState, SegmentRef
from dpac_engine.core.segment import SegmentKind, SegmentWriter
from dpac_engine.core.tail import TailHeader
from dpac_engine.io.daemon_thread import DaemonThread
from dpac_engine.io.repository import RepositoryWriter

log = logging.getLogger(__name__)

RETRY_SECONDS = (0.5, 1.0, 2.0, 5.0, 10.0)
REFUSED_RETRY_SECONDS = 10.0
COMPACT_EVERY_SECONDS = 60.0
WATCH_SECONDS = 1.0
PROBE_SECONDS = 15.0
"""How often an idle leg sees that its target is there: one small read."""


def hold_or_release(writer: RepositoryWriter, change: HoldChange) -> None:
    """Commit a changed hold. Blocks."""
    if not change.held:
        writer.release(change.checkpoint)
        return
    writer.hold(Hold(change.checkpoint, change.lsn, change.since_ns, change.until_ns, change.reason))


class _Said(TypedDict):
    """What a manifest says of tails."""

    incarnation: int
    tails: bool
    sync_lost: int


def _said(last: Manifest) -> _Said:
    return _Said(incarnation=last.incarnation, tails=last.tails, sync_lost=last.sync_lost)


@dataclass
class Shipper:
    """One leg of one group."""

    name: str
    spec: LegSpec
    group: GroupView
    open_writer: Callable[[], RepositoryWriter]
    compactor: Compactor
    memory: LegMemory
    data_state: DataState = DataState.INITIAL_SYNC
    error: DpacError | None = None
    """Why it does not ship; None while it does."""
    last_mark: Mark | None = None
    escrow: list[str] = field(default_factory=list)
    """Fingerprints of the escrow keys that open what lies at the target."""
    damage: str = ""
    """What hides the newest checkpoint that was at the target when it was opened."""
    fenced: bool = False
    """Another primary writes at the target, or it is ahead of this one."""
    tail_ends: dict[str, int] = field(default_factory=dict)
    """Tails at the target -> the LSN that each may hold at most; deleted once a manifest has passed it."""
    resync_lsn: int | None = None
    """The spool holds the log from here on for a leg that is about to come back."""
    tail_in_use: Callable[[], str | None] = lambda: None
    """The one that a sync leg is writing."""
    near: bool = False
    """Reading what the target holds is cheap: a volume that it had whole once is compared with its bytes, else with hashes."""
    _compared_from: dict[tuple[int, int], int] = field(default_factory=dict)
    """(Ordinal, content) -> an LSN behind where it changed unseen."""
    _thread: DaemonThread = field(init=False)
    _writer: RepositoryWriter | None = None
    _reopens: bool = False
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _forced_to_lsn: int = 0
    _settled: asyncio.Event = field(default_factory=asyncio.Event)
    _log_from: int = 0
    _spec_stored: int = -1
    _committed_seq: int | None = None
    _writers: set[str] = field(default_factory=set)
    _compact_at: float = 0.0
    _probe_at: float = 0.0
    _seed: SeedStream | None = None
    _task: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        self._thread = DaemonThread(f"leg-{self.name}")  # of its own: a target that hangs must not use up others

    def start(self) -> None:
        """Begin to ship."""
        self._task = asyncio.create_task(self._run(), name=f"leg-{self.name}")

    async def stop(self) -> None:
        """Stop; a step that was under way is done again or found done by the next start."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        self._thread.stop()
        if self._seed is not None:
            self._seed.close()
        self._settled.set()

    def nudge(self) -> None:
        """Something was appended: look whether it is due."""
        self._wake.set()

    def hurry(self) -> None:
        """Ship all that is durable now without waiting until it is due."""
        self._forced_to_lsn = self.group.spool.durable_lsn
        self._settled.clear()
        self._wake.set()

    def reopen(self) -> None:
        """Open the target anew before the next step, at once: how it is reached was changed."""
        self._reopens = True
        self.hurry()

    async def ship_now(self) -> None:
        """`hurry`, and return once done, or once the target proves to be away."""
        self.hurry()
        await self._settled.wait()

    async def change_hold(self, change: HoldChange) -> None:
        """Hold or release a checkpoint at the target. Unrecoverable if it is not there; Temporary while the target is away."""
        if self._writer is None:
            raise Temporary(self.error.message if self.error else "The target is being opened. Try again in a moment.")
        try:
            # On the thread that merges: a merge that is under way ends before it, and the next one sees it.
            await self._thread.run(hold_or_release, self._writer, change)
        except Unrecoverable:
            raise
        except DpacError:
            self.reopen()
            raise

    @property
    def repository(self) -> RepositoryState | None:
        """What the target has, as far as this leg knows."""
        return self._writer.state if self._writer else None

    @property
    def members(self) -> dict[int, MemberState]:
        """The members at the target, by ordinal, with what is known here already: one that changed unseen is not ready."""
        return self._members()

    @property
    def seeded_fraction(self) -> float:
        """How much of the members' seeds is at the target, 0 to 1."""
        infos, members = self.group.member_infos(), self._members()
        done = sum(
            1.0 if members[ordinal].is_ready else self._seed_fraction(ordinal)
            for ordinal in infos
            if ordinal in members
        )
        return done / len(infos) if infos else 1.0

    def _seed_fraction(self, ordinal: int) -> float:
        seeding = self._seed.seeding if self._seed else None
        if seeding is None or seeding.ordinal != ordinal:
            return 0.0
        size = getattr(seeding.source, "size_bytes", 0)
        return min(seeding.position / size, 1.0) if size else 0.0

    # ------------------------------------------------------------------ the loop

    async def _run(self) -> None:
        failures = 0
        while True:
            try:
                if self._reopens:
                    self._reopens, self._writer = False, None
                if self._writer is None:
                    await self._open()
                await (self._step() if self.memory.paused is None else self._stand_still())
                failures = 0
            except Temporary as error:
                self._failed(DataState.DISCONNECTED, error)
                await self._rest(RETRY_SECONDS[min(failures, len(RETRY_SECONDS) - 1)])
                failures += 1
            except Conflict as error:
                self.fenced = True
                self._failed(DataState.STALLED, error)
                await self._rest(REFUSED_RETRY_SECONDS)
            except DpacError as error:
                self._failed(DataState.DISCONNECTED, error)
                await self._rest(REFUSED_RETRY_SECONDS)
            except Exception:
                log.exception("leg %s failed", self.name)
                self._failed(
                    DataState.STALLED, DpacError("The leg failed by a defect in dpac; its log has the details.")
                )
                await self._rest(REFUSED_RETRY_SECONDS)

    def _failed(self, state: DataState, error: DpacError) -> None:
        if self.error is None or self.error.message != error.message:
            log.warning("leg %s: %s", self.name, error.message)
        self.data_state, self.error = self._idle_state(state), error
        self._writer = self.resync_lsn = None
        self._settled.set()

    def _idle_state(self, otherwise: DataState) -> DataState:
        if self.memory.lost and self.memory.tracked:
            return DataState.BITMAP_TRACKING
        return otherwise if self.memory.paused is None else DataState.PAUSED

    async def _stand_still(self) -> None:
        """While the leg is paused: a seed under way goes on where its last commit left it."""
        await self._abandon_seed()
        self.data_state = self._idle_state(DataState.PAUSED)
        self._settled.set()
        await self._rest(WATCH_SECONDS)

    async def _rest(self, seconds: float) -> None:
        """Wait, but no longer than until somebody wants something shipped."""
        self._wake.clear()
        deadline = asyncio.get_running_loop().time() + seconds
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                while self._settled.is_set():
                    await self._wake.wait()
                    self._wake.clear()

    async def _open(self) -> None:
        await self._abandon_seed()
        writer = await self._thread.run(self._open_blocking)
        state, memory = writer.state, self.memory
        self._log_from = memory.cursor
        if state is not None:
            self._check_fence(state)
            cursor = state.cursor.get(self.group.shard_uid, memory.cursor)
            if cursor > self.group.spool.head_lsn:
                raise Conflict(
                    f"The target is ahead of this journal (LSN {cursor} against {self.group.spool.head_lsn}): this host's "
                    "spool was lost or is an old copy. Recover the group from the target, or use a new target."
                )
            self._log_from = state.last.log_from
            if not memory.lost and cursor < self.group.spool.released_lsn:
                self._lose()
            memory.cursor = memory.cursor if memory.lost else cursor
        self._spec_stored = state.last.spec if state else -1
        self.last_mark = await self._thread.run(self._newest_mark, writer)
        self._writer, self.fenced = writer, False
        self.error = None

    def _newest_mark(self, writer: RepositoryWriter) -> Mark | None:
        """The newest checkpoint at the target; None if there is none, or damage hides it. Blocks."""
        self.damage = ""
        try:
            return next(writer.reader.marks(), None)
        except (Corruption, NotFound) as error:
            self.damage = error.message  # what comes from now on is shipped all the same: the sooner it is there
            log.error("leg %s: %s", self.name, error.message)
            return None

    def _lose(self) -> None:
        """The log goes on behind what the target has, and no bitmap tells what was between."""
        self.memory.lost, self.memory.tracked, self.memory.delta = True, False, []

    def _check_fence(self, state: RepositoryState) -> None:
        """Conflict if another primary has written: one of a later epoch, or any since this leg's last commit."""
        last, epoch = state.last, self.group.epochs[-1][0]
        overtaken = self._committed_seq is not None and last.seq > self._committed_seq
        if last.epoch > epoch or (overtaken and last.writer not in self._writers):
            raise Conflict(
                f"Manifest {last.seq} was written by another primary (epoch {last.epoch}, ours {epoch}). "
                "This site stops shipping to the target: fail over explicitly, or remove the other writer."
            )

    def _open_blocking(self) -> RepositoryWriter:
        writer = self.open_writer()
        self._writers.add(writer.uid)
        state = writer.open(self.memory.repository_uid)
        self.memory.repository_uid = writer.repository_uid
        if state is not None and state.last.tails:
            for name in writer.store.list(tail.PREFIX):
                # An earlier life's: nothing in it behind where this one began was ever acknowledged.
                self.tail_ends.setdefault(name, self.group.opened_lsn)
        self.escrow = writer.put_escrow(self.group.escrow_keys)
        return writer

    async def _step(self) -> None:
        """One piece of work, or a wait for some."""
        self._wake.clear()  # first: what happens while this step works is looked at by the next, at once
        if self.memory.lost:
            await self._begin_resync()
        elif self.memory.resync is not None:
            await self._begin_ordered_resync()
        elif self.repository is not None and self._says(self.memory.cursor) != _said(self.repository.last):
            await self._thread.run(self._commit)
        if self.memory.cursor >= self.group.spool.durable_lsn and self._unmarked():
            await self.group.mark_changes(
                always=True
            )  # a member has just come whole: the first checkpoint that holds it
        due = self._due_in_seconds()
        if due is not None and due <= 0:
            await self._ship_log()
        seeded = await self._seed_piece()
        self._judge()
        if seeded or (due is not None and due <= 0):
            return
        self._settled.set()
        if await self._compact():
            return
        await self._probe()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WATCH_SECONDS if due is None else min(due, WATCH_SECONDS)):
                await self._wake.wait()

    async def _probe(self) -> None:
        """While nothing is due, see now and then that the target is still there: nobody wants to learn it from a loss."""
        now = asyncio.get_running_loop().time()
        if self._writer is not None and now >= self._probe_at:
            self._probe_at = now + PROBE_SECONDS
            await asyncio.to_thread(self._writer.probe)

    def _due_in_seconds(self) -> float | None:
        durable, cursor = self.group.spool.durable_lsn, self.memory.cursor
        if cursor >= durable:
            return None
        # A new declaration does not wait for an application's next write: its escrow keys count from now on.
        redeclared = self.group.spec_number != self._spec_stored
        if cursor < self._forced_to_lsn or self.repository is None or redeclared or self._unmarked():
            return 0.0
        unshipped = max(0, self.group.stamp() - self.last_mark.stamp_ns) / 1e9 if self.last_mark else None
        return sealing.due_in_seconds(durable - cursor, self._oldest_age_seconds(), unshipped, self.spec.rpo.seconds)

    def _oldest_age_seconds(self, since_lsn: int | None = None) -> float | None:
        oldest = self.group.oldest_change_ns(self.memory.cursor if since_lsn is None else since_lsn)
        return None if oldest is None else max(0, self.group.stamp() - oldest) / 1e9

    def age_seconds(self, lsn: int) -> float:
        """Age of the oldest change from an LSN on; 0 if there is none."""
        return self._oldest_age_seconds(lsn) or 0.0

    @property
    def lag_seconds(self) -> float:
        """Age of the oldest change that is not at the target; 0 if there is none."""
        return self._oldest_age_seconds() or 0.0

    @property
    def awaits_mark(self) -> bool:
        """The next mark is to be shipped even if nothing changed."""
        ships = self._writer is not None and self.memory.paused is None
        return ships and (self._unmarked() or self._spec_stored != self.group.spec_number)

    def _unmarked(self) -> bool:
        """A member is whole at the target, or would be with what is here now, but no checkpoint there holds it yet."""
        infos, members = self.group.member_infos(), self._members()
        begins = [members[ordinal].ready[-1][0] for ordinal in infos if members[ordinal].is_ready]
        if begins and (self.last_mark is None or self.last_mark.lsn < max(begins)):
            return True
        return any(info.log_ready_lsn is not None and self._by_log(members[at], info) for at, info in infos.items())

    def _judge(self) -> None:
        """Name the leg's state for people."""
        members = self._members()
        infos = self.group.member_infos()
        waiting = [members[ordinal] for ordinal in infos if not members[ordinal].is_ready]
        if waiting:
            again = any(member.was_whole for member in waiting)
            self.data_state = DataState.FULL_RESYNC if again else DataState.INITIAL_SYNC
            if self.memory.delta and all(
                ordinal in self.memory.delta for ordinal in infos if not members[ordinal].is_ready
            ):
                self.data_state = DataState.DELTA_RESYNC
        elif self.lag_seconds > self.spec.rpo.seconds:
            self.data_state = DataState.BACKLOG
        else:
            self.data_state = DataState.CONTINUOUS

    # ------------------------------------------------------------------ log

    async def _ship_log(self) -> None:
        # A change that no mark follows is at the target and in no checkpoint there; nor is a member that just came whole.
        await self.group.mark_changes(always=self._unmarked())
        try:
            piece = await self._thread.run(
                read_slice, self.group.spool, self.memory.cursor, self.group.spool.durable_lsn
            )
        except Corruption as error:
            log.error("leg %s: %s The target is seeded anew", self.name, error.message)
            piece = None
        except KeyError:
            if self.memory.cursor >= self.group.spool.released_lsn:
                raise
            piece = None
        if piece is None or self.memory.cursor < self.group.spool.released_lsn:
            self._lose()  # the spool could not wait: what was read may have been overwritten meanwhile
            return
        members = self._members()
        for ordinal, info in self.group.member_infos().items():
            ready = info.log_ready_lsn
            if ready is not None and ready <= piece.to_lsn and self._by_log(members[ordinal], info):
                members[ordinal] = members[ordinal].seeded(ready)
        await self._thread.run(self._store_slice, piece, members)
        self.memory.cursor = piece.to_lsn
        if piece.marks:
            self.last_mark = piece.marks[-1]

    def _store_slice(self, piece: LogSlice, members: dict[int, MemberState]) -> None:
        rows, at = piece.rows, self.memory.cursor
        add = [self._put(rows, piece.marks, SegmentKind.LOG, at, piece.to_lsn, piece.stamps)] if len(rows) else []
        self._commit(members=members, cursor=piece.to_lsn, add=add)

    def _put(
        self,
        rows: SegmentWriter,
        marks: Sequence[Mark],
        kind: SegmentKind,
        from_lsn: int,
        to_lsn: int,
        stamps: tuple[int, int],
    ) -> SegmentRef:
        assert self._writer is not None
        return self._writer.put_segment(
            rows,
            marks,
            kind=kind,
            shard_uid=self.group.shard_uid,
            epoch=self.group.epochs[-1][0],
            lsn_from=from_lsn,
            lsn_to=to_lsn,
            stamps=stamps,
            membership_version=self.group.membership_version,
            compression_level=self.spec.compression_level,
        )

    def _commit(
        self,
        *,
        members: dict[int, MemberState] | None = None,
        cursor: int | None = None,
        add: Sequence[SegmentRef] = (),
        drop: Sequence[str] = (),
    ) -> RepositoryState:
        """Create the next manifest, with a new spec object before it if the declaration changed. Blocks."""
        writer, group = self._writer, self.group
        assert writer is not None
        number = group.spec_number
        if number != self._spec_stored:
            self.escrow = writer.put_escrow(group.escrow_keys)
            writer.put_spec(number, group.spec_object())
        at = self.memory.cursor if cursor is None else cursor
        group.spool.note_durable()
        state = writer.commit(
            epoch=group.epochs[-1][0],
            epochs=group.epochs,
            cursor={group.shard_uid: at},
            members=self._members() if members is None else members,
            membership_version=group.membership_version,
            spec=number,
            log_from=self._log_from,
            add=add,
            drop=drop,
            **self._says(at),
        )
        self._spec_stored, self._committed_seq = number, state.last.seq
        self._drop_tails(writer, at)
        return state

    # ------------------------------------------------------------------ tails

    def _says(self, cursor: int) -> _Said:
        """What the next manifest shall say of tails."""
        last = self.repository.last if self.repository else None
        tails = self.spec.mode == "sync" or bool(self.tail_ends)
        begun = tails and cursor >= self.group.opened_lsn
        return _Said(
            incarnation=self.group.incarnation if begun else last.incarnation if last else 0,
            tails=tails,
            sync_lost=self.memory.sync_lost if self.spec.mode == "sync" and self.memory.sync == "lost" else 0,
        )

    def _drop_tails(self, writer: RepositoryWriter, cursor: int) -> None:
        for name, end_lsn in list(self.tail_ends.items()):
            if end_lsn <= cursor and cursor >= self.group.opened_lsn and name != self.tail_in_use():
                writer.store.delete(name)
                del self.tail_ends[name]

    @property
    def takes_tails(self) -> bool:
        """The target has all but the end of the log, and says that there may be tails."""
        state, infos, members = self.repository, self.group.member_infos(), self._members()
        return (
            state is not None
            and self.memory.paused is None
            and not self.memory.lost
            and state.last.tails
            and state.last.epoch == self.group.epochs[-1][0]
            and self.last_mark is not None
            and bool(infos)
            and all(members[ordinal].is_ready for ordinal in infos)
        )

    def begin_tail(self, lsn: int) -> tuple[TailHeader, bytes]:
        """See `RepositoryWriter.begin_tail`; blocks."""
        writer, group = self._writer, self.group
        if writer is None:
            raise Temporary(self.error.message if self.error else "The target has just failed.")
        return writer.begin_tail(group.shard_uid, group.epochs[-1][0], lsn, group.incarnation, group.opened_lsn)

    # ------------------------------------------------------------------ members and seeds

    def _members(self) -> dict[int, MemberState]:
        """The members as the next manifest shall say: those of the last one, and those that joined since."""
        state = self.repository
        members, infos = dict(state.members) if state else {}, self.group.member_infos()
        for ordinal, member in members.items():
            if ordinal not in infos and member.founding and not member.was_whole:
                # It left before it was ever whole here: nobody waits for it any more.
                members[ordinal] = msgspec.structs.replace(member, founding=False)
        for ordinal, info in infos.items():
            if ordinal not in members:
                members[ordinal] = MemberState(info.uid, info.kind, info.name, info.content, founding=state is None)
        for ordinal, unseen in self.group.unseen_changes().items():
            known = members.get(ordinal)
            if known is not None and known.is_ready and known.content != unseen.content:
                # What changed unseen is not in the log: no checkpoint from there on holds it until it is seeded anew, nor ever
                # if it left meanwhile. It may have done so more than once: the first time counts that the target was not told of.
                members[ordinal] = known.reseeding(unseen.content_lsns.get(known.content + 1, 0), known.content)
        return members

    def _by_log(self, member: MemberState, info: MemberInfo) -> bool:
        """The log alone brings the member to this target: it was not there before the log began."""
        return (
            info.log_from_lsn is not None
            and self._log_from <= info.log_from_lsn
            and not member.ready
            and member.seed_position is None
            and member.content == info.content
        )

    async def _next_seed(self) -> Seeding | None:
        members = self._members()
        for ordinal, info in sorted(self.group.member_infos().items()):
            member = members[ordinal]
            current = member.content == info.content
            if info.source is None or (current and member.is_ready) or self._by_log(member, info):
                continue
            dirty = self.group.tracking.dirty(self.name, ordinal) if ordinal in self.memory.delta and current else None
            if ordinal in self.memory.delta and dirty is None:
                self.memory.delta.remove(ordinal)  # it changed unseen, or its bitmap is gone: all of it is sent
                current = False
            held = None
            if info.kind == "volume" and member.ready and dirty is None and ordinal not in self.memory.anew:
                if not self._has_log_for(ordinal, info.content):
                    continue
                held = await self._held_volume(ordinal, info)
                current = current and held is not None  # else what it held is not reset by a seed that only goes on
            resumes = current and info.kind == "volume" and member.seed_position is not None
            position = member.seed_position or 0 if resumes else 0
            head_lsn = lambda: self.group.spool.head_lsn  # noqa: E731
            return Seeding(ordinal, info.source, position, info.content, head_lsn, self.group.stamp, dirty, held)
        return None

    def _has_log_for(self, ordinal: int, content: int) -> bool:
        """The target has the log to behind all that its present state is made of, and behind where the content changed; if
        not, it is shipped now. A block that is found equal to that state is then told by it and the log that follows.
        """
        assert self._writer is not None
        changed = self._compared_from.setdefault((ordinal, content), self.group.spool.head_lsn)
        ends = (ref.lsn_to - 1 for ref in self._writer.reader.refs())
        needed = max(changed, self._log_from, *ends)
        self._forced_to_lsn = max(self._forced_to_lsn, needed)
        if self.group.spool.durable_lsn < needed:  # marks of an idle group are made durable once a minute
            self.group.spool.when_durable(needed, lambda error: None if error else self.nudge())
        return self.memory.cursor >= needed

    async def _held_volume(self, ordinal: int, info: MemberInfo) -> HeldContent | HeldHashes | None:
        """What the target holds of a volume; None if that cannot be read."""
        assert self._writer is not None
        try:
            image = await self._thread.run(self._writer.held_volume, ordinal, self.memory.cursor)
        except (NotFound, Corruption) as error:
            log.warning("leg %s: all of member %s is sent: %s", self.name, info.name, error.message)
            return None
        if image.size_bytes > getattr(info.source, "size_bytes", 0):
            return None  # volumes only grow: it is another one
        return HeldContent(image, self._thread) if self.near else HeldHashes(image, self._thread)

    async def _seed_piece(self) -> bool:
        """Send some of a seed and commit what has arrived; False if every member is here or comes by the log."""
        if self._seed is None or not self._is_current(self._seed.seeding):
            await self._abandon_seed()
            seeding = await self._next_seed()
            self._seed = SeedStream(f"leg-{self.name}-seed", seeding, self._put_seed) if seeding else None
        if self._seed is None:
            return False
        stream, seeding = self._seed, self._seed.seeding
        try:
            await stream.read_on()
        except OSError as error:
            if self._is_current(seeding):
                name = self.group.member_infos()[seeding.ordinal].name
                raise DpacError(
                    f"Member {name} cannot be read for its seed: {error}. Check what it lies on."
                ) from error
            return True
        arrived = await stream.arrived()
        if not arrived:
            return True  # it is being compared
        if not await self._is_durable(arrived[-1][0].to_lsn - 1):
            await self._abandon_seed()
            return False
        if not self._is_current(seeding):
            return True  # it was detached, or changed unseen, meanwhile
        members = self._members()
        member = members[seeding.ordinal]
        for piece, _ in arrived:
            if piece.begins:
                member = member.reseeding(piece.from_lsn, seeding.content)
            ready = piece.ready_lsn
            member = member.at_seed_position(piece.position) if ready is None else member.seeded(ready)
        members[seeding.ordinal] = member
        await self._thread.run(self._commit, members=members, add=[ref for _, refs in arrived for ref in refs])
        if arrived[-1][0].ready_lsn is not None:
            if held := seeding.held:
                text = "leg %s: of %d bytes compared with the target's, %d were equal and not sent"
                log.info(text, self.name, held.compared_bytes, held.equal_bytes)
            await self._abandon_seed()
            await self._delta_done(seeding.ordinal)
        return True

    async def _is_durable(self, lsn: int) -> bool:
        """Wait until the journal before `lsn` is; False if it never will be. What a loss of power may still take back must not
        be at a target: other records would get its LSNs."""
        outcome: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def settle(error: OSError | None) -> None:
            if not outcome.done():
                outcome.set_result(error is None)

        self.group.spool.when_durable(lsn, settle)
        return await outcome

    async def _delta_done(self, ordinal: int) -> None:
        """A member is whole at the target, so what was dirty of it is not any more."""
        if ordinal in self.memory.anew:
            self.memory.anew.remove(ordinal)
        if ordinal in self.memory.delta:
            self.memory.delta.remove(ordinal)
            await self.group.tracking.done(self.name, ordinal)
        if self.memory.tracked and not self.memory.lost and not self.memory.delta:
            self.memory.tracked = False
            await self.group.tracking.end(self.name)

    async def _abandon_seed(self) -> None:
        """End a seed; one that is not whole begins again later, or resumes where the last commit left it."""
        stream, self._seed = self._seed, None
        if stream is not None:
            await stream.abandon()

    def _is_current(self, seeding: Seeding) -> bool:
        info = self.group.member_infos().get(seeding.ordinal)
        return info is not None and info.source is seeding.source and info.content == seeding.content

    def _put_seed(self, piece: Piece) -> Sequence[SegmentRef]:
        if not len(piece.rows):
            return ()
        stamp = self.group.stamp()
        return (self._put(piece.rows, [], SegmentKind.FILL, piece.from_lsn, piece.to_lsn, (stamp, stamp)),)

    async def _begin_resync(self) -> None:
        """The log between the target's cursor and now is gone: it goes on from now. Of members that the target has whole
        but for what their bitmaps tell, that is sent; every other one is seeded anew."""
        await self._abandon_seed()
        self._log_from = self.resync_lsn = head = self.group.spool.durable_lsn
        before = self._members()
        self.memory.delta = [ordinal for ordinal in before if self._lacks_little(ordinal, before[ordinal])]
        await self.group.record()
        members = {
            ordinal: member.reseeding(head, member.content)
            if member.ready or member.seed_position is not None
            else member
            for ordinal, member in before.items()
        }
        await self._thread.run(self._commit, members=members, cursor=head)
        self.memory.cursor, self.memory.lost, self.resync_lsn = head, False, None
        self.group.tracking.pause(self.name)
        self._judge()

    async def _begin_ordered_resync(self) -> None:
        """Somebody doubts what the target holds: every member is compared with it, or sent anew. The log goes on without a gap."""
        await self._abandon_seed()
        members = {
            ordinal: member.reseeding(self.memory.cursor, member.content)
            if member.ready or member.seed_position is not None
            else member
            for ordinal, member in self._members().items()
        }
        if self.repository is not None:
            await self._thread.run(self._commit, members=members)
        # Stored with the next state: a crash before that begins once more.
        self.memory.delta, self.memory.anew = [], list(members) if self.memory.resync == "anew" else []
        self.memory.resync = None

    def _lacks_little(self, ordinal: int, member: MemberState) -> bool:
        """The target had it whole at its cursor, or all but what an earlier resync had not brought yet."""
        info = self.group.member_infos().get(ordinal)
        return (
            info is not None
            and self.memory.tracked
            and (member.is_ready or ordinal in self.memory.delta)
            and member.content == info.content
            and self.group.tracking.dirty(self.name, ordinal) is not None
        )

    async def _compact(self) -> bool:
        writer, loop = self._writer, asyncio.get_running_loop()
        aging_ns = self.group.aging_ns()
        if loop.time() < self._compact_at or writer is None or writer.state is None or aging_ns is None:
            return False

        def commit(add: Sequence[SegmentRef], drop: Sequence[str]) -> None:
            if self._writer is not writer:  # what it decided by is older than what the target has
                raise Temporary("The target was opened anew meanwhile. Wait.")
            self._commit(add=add, drop=drop)

        more = await self._thread.run(self.compactor.step, writer, commit, aging_ns)
        if not more:
            self._compact_at = loop.time() + COMPACT_EVERY_SECONDS
        return more
