"""The quota of a group's spool: clients are slowed to what the volumes' files take, and legs that are too far behind let go,
before it is passed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

from dpac_engine.control.shipper import Shipper
from dpac_engine.io.spool import FILE_BYTES

if TYPE_CHECKING:
    from dpac_engine.control.group import Group

log = logging.getLogger(__name__)

UPKEEP_SECONDS = 1.0
PRESSED_SECONDS = 0.05
"""While more than half of the quota is used, upkeep comes with every file of the spool, but not more often than this."""
SYNC_SECONDS = 5.0
"""So long what volumes' files were given may wait to be synced,"""
SYNC_SHARE = 8
"""and no longer than until this share of the quota waits: a restart brings all of that to the files again."""


class SpoolQuota:
    """Of one group. Everything belongs to its event loop."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._due = asyncio.Event()
        self._synced_at = 0.0
        self.held = False
        """Clients are held back: the spool is full."""

    @property
    def limit_bytes(self) -> int:
        """What the declaration allows."""
        return self._group.assignment.journal.spool_max.bytes

    @property
    def used_bytes(self) -> int:
        """From the oldest record that is needed to the newest."""
        return self._group.spool.head_lsn - self._group.spool.released_lsn

    def turned(self) -> None:
        """The spool began a file, which may be full before the next upkeep: hold clients back now if need be. Lets nobody on:
        the records are being appended still."""
        if self._is_full or self.used_bytes > self.limit_bytes:
            self._hold(True)
        if self.used_bytes > self.limit_bytes // 2:
            self._due.set()

    @property
    def _is_full(self) -> bool:
        """What the volumes' files lack fills it: no leg that is let go makes room."""
        return self._unapplied_bytes > self.limit_bytes - 2 * FILE_BYTES

    @property
    def _unapplied_bytes(self) -> int:
        head_lsn = self._group.spool.head_lsn
        return head_lsn - min([head_lsn, *(member.applied_lsn for member in self._group.members.values())])

    def _hold(self, held: bool) -> None:
        self.held = held
        for member in list(self._group.members.values()):
            member.press(self.used_bytes > self.limit_bytes // 2, held)

    async def upkeep_due(self) -> None:
        """Returns when the group shall look after its files again: what was synced and shipped makes room."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(UPKEEP_SECONDS):
                await asyncio.sleep(PRESSED_SECONDS)
                await self._due.wait()
        self._due.clear()

    async def sync(self) -> None:
        """Make what the members' files have durable, if it is time: a block that clients write again and again goes to the
        disk once then, not once at each upkeep."""
        now = asyncio.get_running_loop().time()
        has_room = self._unapplied_bytes < self.limit_bytes // SYNC_SHARE and self.used_bytes <= self.limit_bytes // 2
        if has_room and now < self._synced_at + SYNC_SECONDS:
            return
        self._synced_at = now
        for member in list(self._group.members.values()):
            await member.sync()

    async def keep(self) -> None:
        """Hurry the volumes, hold their clients back or let them on, set aside what is kept for volumes that are away; at the
        limit let the slowest leg go."""
        self._hold(self._is_full)
        if self.used_bytes > self.limit_bytes // 2:
            for member in list(self._group.members.values()):
                await member.let_spool_go()
        if self.used_bytes <= self.limit_bytes - self._reserve_bytes:
            return
        for leg in list(self._group.legs.values()):
            if not leg.memory.lost and self._is_too_far_behind(leg):
                await self._let_go(leg)

    @property
    def _reserve_bytes(self) -> int:
        """For what clients write while a leg is let go: its bitmaps begin with what the spool holds, which is read for that."""
        return max(2 * FILE_BYTES, self.limit_bytes // 8)

    def _is_too_far_behind(self, leg: Shipper) -> bool:
        return self._group.spool.head_lsn - leg.memory.cursor > self.limit_bytes - self._reserve_bytes - FILE_BYTES

    async def _let_go(self, leg: Shipper) -> None:
        """The spool waits for the leg no longer; bitmaps tell from now on what it lacks."""
        group = self._group
        sizes = {at: member.volume.size_bytes for at, member in group.members.items() if member.volume is not None}
        tracked = await group.tracking.begin(leg.name, group.spool, leg.memory.cursor, sizes)
        if not self._is_too_far_behind(leg):
            if not leg.memory.tracked:  # it has just shipped a good deal: what was noted would be sent for nothing
                await group.tracking.end(leg.name)
            return
        log.warning("leg %s of %s fell out of the spool at LSN %d", leg.name, group.assignment.name, leg.memory.cursor)
        leg.memory.tracked, leg.memory.lost = tracked, True
        leg.nudge()
