"""A sync leg at work, beside its shipper: it appends to a tail at the target what the application waits for.

`core/sync.py` decides; this does its effects. Appends run on a thread of the leg's own, and the timeout is judged here: a
target that hangs holds that thread and nothing else. What it does when it wakes up does no harm: it adds to a tail what
the journal holds.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal, Protocol

from dpac_api.errors import Conflict, Corruption, DpacError, Temporary
from dpac_api.models import SyncLegSpec, SyncStatus
from dpac_engine.control.group_state import LegMemory
from dpac_engine.control.group_view import GroupView
from dpac_engine.control.shipper import Shipper
from dpac_engine.core import sync
from dpac_engine.core.ports import TailStore
from dpac_engine.core.sync import Effect, Event, OnLoss, Phase
from dpac_engine.io.daemon_thread import DaemonThread
from dpac_engine.io.tails import TailWriter

log = logging.getLogger(__name__)

CLOSE_BYTES = 2**20
"""The application begins to wait for the target once the tail is so near to the journal's head."""
RETRY_SECONDS = 0.5
RECORD_RETRY_SECONDS = 1.0


class SyncView(GroupView, Protocol):
    """What a sync leg asks of its group."""

    async def record(self) -> None:
        """Make what the group remembers durable, here. OSError if it cannot be."""

    def poke(self) -> None:
        """Look again what may be acknowledged."""


class SyncLeg:
    """One sync leg of one group (a `gate.Pledge`). Everything belongs to the group's event loop."""

    def __init__(
        self,
        name: str,
        spec: SyncLegSpec,
        group: SyncView,
        shipper: Shipper,
        open_tails: Callable[[], TailStore],
        memory: LegMemory,
    ) -> None:
        self.name = name
        self.spec = spec
        self.confirmed_lsn = 0
        self.falls = 0
        self.reason = ""
        self.journal_broken = False
        """Nothing is sent until it begins anew."""
        self._group = group
        self._shipper = shipper
        self._open_tails = open_tails
        self._memory = memory
        self._state, self._first_effects = sync.first(memory.sync, _on_loss(spec))
        self.since = datetime.now(UTC)
        self._tails: TailStore | None = None
        self._thread = DaemonThread(f"tail-{name}")
        self._writer: TailWriter | None = None
        self._attempt: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._wanted_lsn = 0
        self._asked = False
        self._wake = asyncio.Event()
        self._recording = asyncio.Lock()
        self._records = 0
        self._tasks: set[asyncio.Task[None]] = set()

    # ------------------------------------------------------------------ faces

    @property
    def phase(self) -> Phase:
        """Where it is."""
        return self._state.phase

    @property
    def gating(self) -> bool:
        """See `gate.Pledge`."""
        return self._state.gating

    @property
    def in_sync(self) -> bool:
        """Nothing is acknowledged that the target does not have, and that is on record."""
        return self._state.phase is Phase.IN_SYNC

    @property
    def holds_lsn(self) -> int | None:
        """The spool from here on is being sent; None: it need not wait."""
        return self._writer.lsn if self._writer is not None and self._counts else None

    @property
    def tail(self) -> str | None:
        """The name of the tail that is being written."""
        return self._writer.name if self._writer is not None else None

    @property
    def durable_acks(self) -> bool:
        """Every change waits, not only those that ask for it."""
        return self.spec.acknowledge == "write" and self.gating

    def status(self) -> SyncStatus:
        """What people see."""
        return SyncStatus(
            phase=self.phase,
            since=self.since,
            confirmed_lsn=self.confirmed_lsn,
            falls=self.falls,
            reason="" if self.in_sync else self.reason,
        )

    # ------------------------------------------------------------------ start and end

    def start(self) -> None:
        """Begin: what is on record says how."""
        self._do(self._first_effects)
        if self._memory.paused is not None:
            self.pause()
        self._spawn(self._run())

    async def stop(self) -> None:
        """Stop; whatever waits stays unanswered."""
        self._abandon()
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._tails is not None:
            self._thread.post(self._tails.close)
        self._thread.stop()

    def respecify(self, spec: SyncLegSpec) -> None:
        """Take a changed declaration."""
        self.spec = spec
        self._on(Event.POLICY_STOP if _on_loss(spec) == "stop" else Event.POLICY_ASYNC)

    def pause(self) -> None:
        """Somebody paused the leg: `on_loss` says what that means for the application. It attaches again once it is resumed."""
        self.reason = "it was paused"
        self._on(Event.PAUSED)
        self._abandon()

    def journal_failed(self) -> None:
        """There is no journal any more to send."""
        self.reason, self.journal_broken = "the journal failed", True
        self._on(Event.JOURNAL_FAILED)
        self._abandon()

    # ------------------------------------------------------------------ acknowledgements

    def want(self, lsn: int) -> None:
        """See `gate.Pledge`."""
        self._wanted_lsn = max(self._wanted_lsn, min(lsn, self._group.spool.head_lsn))
        if self._wanted_lsn > self.confirmed_lsn:
            if not self._asked and self._counts:
                self._asked = True
                self._on(Event.ASKED)
            self._wake.set()

    def nudge(self) -> None:
        """A second has passed: bring over what nobody has asked for, so that it neither piles up nor is missing."""
        if self._counts and self._memory.lost:
            self.reason = "the spool could not wait for the leg's segments; the target is seeded anew"
            self._on(Event.FAILED)
        if self._counts and self._group.oldest_change_ns(self.confirmed_lsn) is not None:
            self.want(self._group.spool.head_lsn)

    @property
    def _counts(self) -> bool:
        return self.phase in (Phase.ENTERING, Phase.IN_SYNC)

    # ------------------------------------------------------------------ the machine

    def _on(self, event: Event) -> None:
        before = self._state
        self._state, effects = sync.step(before, event)
        if self._state.phase is not before.phase:
            counted = before.phase in (Phase.ENTERING, Phase.IN_SYNC)
            self.since = datetime.now(UTC)
            self.falls += counted and not self._counts
            level = logging.INFO if self._counts else logging.WARNING
            log.log(level, "sync leg %s: %s after %s (%s)", self.name, self.phase, event.value, self.reason)
        self._do(effects)

    def _do(self, effects: tuple[Effect, ...]) -> None:
        for effect in effects:
            match effect:
                case Effect.START_TIMER:
                    if self._timer is None:
                        loop = asyncio.get_running_loop()
                        self._timer = loop.call_later(self.spec.timeout.seconds, self._timed_out)
                case Effect.STOP_TIMER:
                    self._stop_timer()
                case Effect.ABANDON:
                    self._abandon()
                case Effect.RECORD_IN_SYNC:
                    self._spawn(self._record("in sync", Event.IN_SYNC_RECORDED))
                case Effect.RECORD_LOSS:
                    self._spawn(self._record("lost", Event.LOSS_RECORDED))
                case Effect.RELEASE:
                    self._group.poke()

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _timed_out(self) -> None:
        self._timer = None
        if self._counts or not self.reason:
            self.reason = f"the target did not answer within {self.spec.timeout}"
        self._on(Event.TIMED_OUT)

    def _abandon(self) -> None:
        self._asked, self.confirmed_lsn = False, 0
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.abandoned.set()
            self._thread.post(writer.close)
        if self._attempt is not None:
            self._attempt.cancel()

    async def _record(self, what: Literal["in sync", "lost"], event: Event) -> None:
        self._records += 1
        number = self._records
        async with self._recording:
            if number == self._records:
                if what == "lost" and self._memory.sync != "lost":
                    self._memory.sync_lost = self._group.stamp()
                self._memory.sync = what
            while number == self._records:  # else a later one stands: this one may neither be written nor be told of
                try:
                    await self._group.record()
                    break
                except OSError as error:
                    log.error("sync leg %s cannot record that it is %s: %s", self.name, what, error)
                    if what == "lost" and self.journal_broken:
                        self._on(Event.LOSS_UNRECORDABLE)
                    await asyncio.sleep(RECORD_RETRY_SECONDS)
        if number == self._records:
            self._on(event)
        self._shipper.nudge()  # the target is told too, as soon as it can be

    def _spawn(self, work: object) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work, name=f"sync-{self.name}")  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ------------------------------------------------------------------ bringing it over

    async def _run(self) -> None:
        while self.phase is not Phase.FENCED:
            self._attempt = asyncio.create_task(self._serve(), name=f"tail-{self.name}")
            try:
                await asyncio.wait([self._attempt])
            except asyncio.CancelledError:
                self._attempt.cancel()
                raise
            self._failed(None if self._attempt.cancelled() else self._attempt.exception())
            await asyncio.sleep(RETRY_SECONDS)

    def _failed(self, error: BaseException | None) -> None:
        if isinstance(error, Conflict):
            self.reason = error.message
            self._on(Event.FENCED)
        elif isinstance(error, DpacError):
            self.reason = error.message
            self._on(Event.FAILED)
        elif error is not None:
            log.error("sync leg %s failed", self.name, exc_info=error)
            self.reason = "it failed by a defect in dpac; its log has the details"
            self._on(Event.FAILED)
        self._abandon()

    async def _serve(self) -> None:
        """Catch up, then append whatever is wanted, until the target fails."""
        spool = self._group.spool
        while self._thread.busy or self.journal_broken or not self._shipper.takes_tails:
            if self._shipper.fenced:
                raise Conflict(
                    self._shipper.error.message if self._shipper.error else "Another primary writes at the target."
                )
            await asyncio.sleep(RETRY_SECONDS)
        store = await self._thread.run(self._store)
        self._writer = TailWriter(
            store, spool, self._shipper.begin_tail, self._shipper.memory.cursor, self._shipper.tail_ends
        )
        while spool.head_lsn - self._writer.lsn > CLOSE_BYTES:
            await self._append(spool.head_lsn)
        self._on(Event.CLOSE)
        await self._append(spool.head_lsn)
        self._on(Event.ATTACHED)
        while True:
            while self._wanted_lsn <= self.confirmed_lsn:
                self._wake.clear()
                await self._wake.wait()
            self.want(self._wanted_lsn)
            await self._append(spool.head_lsn)

    def _store(self) -> TailStore:
        if self._tails is None:
            self._tails = self._open_tails()
        return self._tails

    async def _append(self, to_lsn: int) -> None:
        """Bring everything before `to_lsn` over, and answer who waited for it."""
        writer = self._writer
        assert writer is not None
        try:
            await self._thread.run(writer.append, to_lsn)
        except (KeyError, Corruption) as error:
            if writer.lsn >= self._group.spool.released_lsn:
                raise
            raise Temporary("The spool went on meanwhile; the tail begins anew.") from error
        self.confirmed_lsn = max(self.confirmed_lsn, writer.lsn)
        if self._asked:
            self._asked = False
            self._on(Event.ANSWERED)
        self._group.poke()


def _on_loss(spec: SyncLegSpec) -> OnLoss:
    return spec.on_loss or "async"
