"""A shard's checkpoints: the marks in its journal, and what changed between them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dpac_engine.core.checkpoints import CutBody, Mark, MarkBody
from dpac_engine.core.records import Kind
from dpac_engine.core.shared_mark import Order
from dpac_engine.io.spool import Entry

if TYPE_CHECKING:
    from dpac_engine.control.group import Group

log = logging.getLogger(__name__)

MARK_SECONDS = 1.0
IDLE_DURABLE_SECONDS = 60.0
"""Marks of a group that does not change are made durable so seldom."""
SHARED_WAIT_SECONDS = 3 * MARK_SECONDS
"""How long a leg of one shard of several waits for the next checkpoint before it ships what there is without one."""


@dataclass
class _Change:
    """Changes between two marks: everything before `end_lsn`, none older than `stamp`."""

    end_lsn: int
    stamp: int


class Marking:
    """Appends the marks of one group, or of one of its shards."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._loop = asyncio.get_running_loop()
        self._changes: deque[_Change] = deque()
        self._marked_lsn = 0
        self._changed_since_ns = 0
        self._idle_durable_at = 0.0
        self._next = asyncio.Event()
        """Set, and replaced, with every mark."""

    def began(self, head_lsn: int) -> None:
        """The journal begins, or begins anew, at an LSN."""
        self._marked_lsn, self._changed_since_ns = head_lsn, self._group.stamp()
        self._changes.clear()

    def found(self, end_lsn: int, stamp: int) -> None:
        """Changes that an earlier process journalled."""
        self._changes.append(_Change(end_lsn, stamp))

    def forget(self, lsn: int) -> None:
        """Nobody needs to know what changed before an LSN."""
        while self._changes and self._changes[0].end_lsn <= lsn:
            self._changes.popleft()

    def oldest_change_ns(self, since_lsn: int) -> int | None:
        """See `shipper.GroupView.oldest_change_ns`."""
        for change in self._changes:
            if change.end_lsn > since_lsn:
                return change.stamp
        return self._changed_since_ns if self._group.spool.head_lsn > max(self._marked_lsn, since_lsn) else None

    @property
    def news(self) -> bool:
        """Something changed since the newest mark, or a leg waits for one."""
        return self._group.spool.head_lsn > self._marked_lsn or self._awaited

    @property
    def _awaited(self) -> bool:
        return any(leg.awaits_mark for leg in self._group.legs.values())

    def mark(
        self,
        *,
        tags: tuple[str, ...] = (),
        app: bool = False,
        cuts: Mapping[int, CutBody] | None = None,
        order: Order | None = None,
    ) -> Mark | None:
        """Append a checkpoint; None while the journal cannot take one (`journal_error`).

        `order`: it is one of several shards. Without it a shard of several makes none: no other would have it.
        """
        group = self._group
        shards = group.assignment.shards
        if group.journal_error or (shards > 1 and order is None):
            return None
        now_cuts = {ordinal: member.cut() for ordinal, member in group.members.items()} | dict(cuts or {})
        body = MarkBody(
            sequence=order.sequence if order else group.state.sequence + 1,
            membership_version=group.membership_version,
            cuts={str(ordinal): _over(shards, cut) for ordinal, cut in now_cuts.items() if cut is not None},
            app=app,
            tags=list(tags),
            epoch=group.epochs[-1][0],
            shards=shards if order else 0,
            stamp_ns=order.stamp_ns if order else 0,
            void_from=order.void[0] if order and order.void[0] < order.void[1] else 0,
            void_to=order.void[1] if order and order.void[0] < order.void[1] else 0,
        )
        before_lsn = group.spool.head_lsn
        changed = before_lsn > self._marked_lsn or (order is not None and order.news)
        stamp = group.stamp()
        try:
            (lsn,) = group.spool.append([Entry(Kind.MARK, 0, 0, 0, 0, body.encode())])
        except OSError as error:
            group.journal_failed(error)
            return None
        head_lsn = group.spool.head_lsn
        if changed:
            # A change is not recoverable before a mark: a shard of several may ship it long before it gets one.
            self._changes.append(_Change(head_lsn if order else before_lsn, self._changed_since_ns))
        group.state.sequence, group.state.void_from = body.sequence, body.void_from
        self._marked_lsn, self._changed_since_ns = head_lsn, stamp
        wanted = tags or app or self._awaited
        if changed or wanted or self._loop.time() >= self._idle_durable_at:
            self._idle_durable_at = self._loop.time() + IDLE_DURABLE_SECONDS
            group.spool.when_durable(head_lsn, lambda _: None)
        self._next.set()
        self._next = asyncio.Event()
        return Mark(group.epochs[-1][0], lsn, body.stamp_ns or stamp, body)

    async def mark_changes(self, *, always: bool) -> None:
        """See `shipper.GroupView.mark_changes`, but for durability."""
        if not always and self._group.spool.head_lsn <= self._marked_lsn:
            return
        if self._group.assignment.shards == 1:
            self.mark()
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._next.wait(), SHARED_WAIT_SECONDS)

    async def run(self) -> None:
        """Mark every second, for ever."""
        group, due = self._group, self._loop.time()
        while True:
            due = await next_due(due)
            try:
                self.mark()
                group.clock_watch.look()
            except Exception:
                log.exception("group %s could not be marked", group.assignment.name)
            for sync in group.sync_legs.values():
                sync.nudge()
            group.nudge_legs()


async def next_due(last: float) -> float:
    """Wait until the next mark is due, and return that moment of the loop's clock; what was missed is not made up for."""
    now = asyncio.get_running_loop().time
    due = max(last + MARK_SECONDS, now())
    await asyncio.sleep(due - now())
    return due


def _over(shards: int, cut: CutBody) -> CutBody:
    """A member's cut in a checkpoint of so many shards: what one shard has exactly, several have because they were held."""
    return CutBody("barrier") if shards > 1 and cut.kind == "exact" else cut
