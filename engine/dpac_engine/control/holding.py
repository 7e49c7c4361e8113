"""One shard of several at a checkpoint: its members let no change in until the mark is there, or their bound has passed."""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING

from dpac_api.errors import Conflict, Temporary
from dpac_api.models import Checkpoint
from dpac_engine.control import group_status
from dpac_engine.control.waits import Waits
from dpac_engine.core.shared_mark import Held, Order, ShardHold

if TYPE_CHECKING:
    from dpac_engine.control.group import Group


class Holding:
    """The hold of one shard. Belongs to its event loop: nothing is between a message and what it does."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._loop = asyncio.get_running_loop()
        self._hold = ShardHold()
        self._began = 0.0
        self._bound: asyncio.TimerHandle | None = None
        self.waits = Waits()
        """How long writers were held."""
        self.expired = 0
        """Holds that ended by their bound."""

    def take(self, seconds_max: float) -> Held:
        """Hold every member's new changes for so long at most; those taken before are in front of the mark.

        Temporary if the shard holds already, or its journal takes no marks.
        """
        group, token = self._group, secrets.token_hex(8)
        if group.journal_error:
            raise Temporary(group.journal_error)
        if not self._hold.take(token, self._loop.time(), seconds_max):
            raise Temporary("It holds for another checkpoint.")
        self._began = self._loop.time()
        self._bound = self._loop.call_later(seconds_max, self._expire, token)
        self._hold_members(True)
        state = group.state
        return Held(token, state.sequence, state.void_from or state.sequence, group.stamp(), group.marking.news)

    def mark(self, token: str, order: Order, tag: str, quiet: str = "") -> Checkpoint:
        """The mark, and the end of the hold. Conflict if the shard has let a writer go since it gave the token, or its members do
        not rest for this checkpoint any more (`quiet`, if it is application-consistent)."""
        group = self._group
        unbroken = all(member.holds for member in group.members.values())
        if not self._hold.admits(token, self._loop.time()) or not unbroken or order.sequence <= group.state.sequence:
            self.release(token)
            raise Conflict("It had let its writers go before its mark came.")
        try:
            cuts = group.quiescing.cuts(quiet) if quiet else {}
            mark = group.marking.mark(tags=(tag,) if tag else (), app=bool(quiet), cuts=cuts, order=order)
        finally:
            self.release(token)
        if mark is None:
            raise Temporary(group.journal_error)
        group.nudge_legs()
        return group_status.checkpoint_of(mark, group.shard_uid, group.member_names())

    def release(self, token: str) -> None:
        """Hold no longer; no error if the shard does not, or for another."""
        if not self._hold.end(token):
            return
        self.waits.add(self._loop.time() - self._began)
        if self._bound is not None:
            self._bound.cancel()
        self._hold_members(False)

    def _expire(self, token: str) -> None:
        self.expired += 1
        self.release(token)

    def _hold_members(self, on: bool) -> None:
        for member in self._group.members.values():
            member.hold(on)
