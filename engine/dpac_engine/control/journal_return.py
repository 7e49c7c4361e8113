"""How a group comes back to journalling after its journal failed.

While the journal is broken, writes go straight to the volumes. Once its disk takes files again, the journal begins anew:
what the legs have not shipped yet they ship first, for a while; what only the old journal holds of members that are away is
set aside; then every target is seeded anew, because nobody recorded what was written meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from dpac_engine.control import journal_failures
from dpac_engine.io import spool as spool_module
from dpac_engine.io.spool import Identity

if TYPE_CHECKING:
    from dpac_engine.control.group import Group

log = logging.getLogger(__name__)

PAUSE_SECONDS = 5.0
"""From a failure to the first attempt; doubled with each failure up to `PAUSE_SECONDS_MAX`, so that a disk that comes and
goes does not have everything seeded again and again."""
PAUSE_SECONDS_MAX = 300.0
LEGS_WAIT_SECONDS = 60.0
"""How long the legs may take to ship what the broken journal still holds."""


class JournalReturn:
    """Brings one group's journal back."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._failed_at = 0.0
        self._due_at = 0.0
        self._pause_seconds = PAUSE_SECONDS

    def failed(self, now: float) -> None:
        """The journal has failed just now (by the loop's clock)."""
        if now - self._due_at > PAUSE_SECONDS_MAX:
            self._pause_seconds = PAUSE_SECONDS  # it had worked for long
        self._failed_at = now
        self._put_off(now)

    def _put_off(self, now: float) -> None:
        self._due_at = now + self._pause_seconds
        self._pause_seconds = min(2 * self._pause_seconds, PAUSE_SECONDS_MAX)

    async def attempt(self, now: float) -> None:
        """Come back if it is time and the disk allows it; else nothing changes but `journal_error`."""
        group = self._group
        if not group.journal_error or now < self._due_at:
            return
        behind = any(leg.memory.cursor < group.spool.durable_lsn for leg in group.legs.values() if not leg.memory.lost)
        if behind and now - self._failed_at < LEGS_WAIT_SECONDS:
            return
        self._put_off(now)
        async with group.applying:  # a leg that came meanwhile would wait for a log that goes
            await self._return()

    async def _return(self) -> None:
        group = self._group
        try:
            await self._begin_anew()
        except OSError as error:
            group.journal_error = f"the spool {group.folder / 'spool'} failed: {error.strerror or error}"
            return
        group.journal_error = ""
        log.warning("group %s journals again; its targets are seeded anew", group.assignment.name)
        for member in group.members.values():
            member.journalled_again()
            await member.attach()
        for leg in group.legs.values():
            leg.reopen()  # a step of it may have been cut off
            leg.start()
        group.mark()

    async def _begin_anew(self) -> None:
        """A new journal, in the order in which a crash at any point leaves either the old one or the new one."""
        group, state = self._group, self._group.state
        for leg in group.legs.values():
            await leg.stop()
        for member in group.members.values():
            await member.leave_journal()
        head_lsn = (group.spool.head_lsn // spool_module.FILE_BYTES + 1) * spool_module.FILE_BYTES
        state.incarnation += 1
        state.scan_lsn = state.durable_lsn = head_lsn
        state.scan_incarnation = state.incarnation
        for leg in group.legs.values():
            leg.memory.lost, leg.memory.tracked = True, False
        await group.record()
        await asyncio.to_thread(journal_failures.forget_all, state)
        identity = Identity(group.shard_tag, group.epochs[-1][0], state.incarnation)
        await asyncio.to_thread(group.spool.begin_anew, identity, head_lsn)
        group.began_anew(head_lsn)
