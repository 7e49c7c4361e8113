"""Members with a blueprint brought to rest for an application-consistent checkpoint, until its mark is there."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from dpac_api.errors import Conflict, Invalid
from dpac_engine.control.worker_api import ShardQuiet
from dpac_engine.core.checkpoints import CutBody

if TYPE_CHECKING:
    from dpac_engine.control.member import Member


def check_any(group: str, members: Sequence[str]) -> None:
    """Invalid if no member was quiesced."""
    if not members:
        raise Invalid(
            f"Group {group} has no attached member with a blueprint, so there is nothing to quiesce. "
            "Give a member a `blueprint`, or ask for a plain checkpoint."
        )


class Quiescing:
    """Of one group, or of one of its shards. Belongs to its event loop.

    A member goes on by itself after its bound, whatever becomes of who asked; its cut is then what it is without a blueprint.
    """

    def __init__(self, members: Mapping[int, Member]) -> None:
        self._members = members
        self._token = ""
        self._at_rest: dict[int, CutBody] = {}
        self.turn = asyncio.Lock()
        """Of whoever takes the group's checkpoints: one application-consistent one at a time."""

    async def begin(self) -> ShardQuiet:
        """Quiesce and capture, all at once; whoever did so before is superseded. Raises what one of them raised."""
        self.end(self._token)
        self._token = token = secrets.token_hex(8)
        members = [member for member in self._members.values() if member.has_blueprint]
        cuts = await asyncio.gather(*(member.barrier() for member in members), return_exceptions=True)
        failed = next((cut for cut in cuts if isinstance(cut, BaseException)), None)
        if failed is None and token != self._token:
            failed = Conflict("Another checkpoint quiesces the members. Try again.")
        if failed is not None:
            for member in members:
                member.release()
            raise failed
        self._at_rest = {
            member.ordinal: cut for member, cut in zip(members, cuts, strict=True) if not isinstance(cut, BaseException)
        }
        return ShardQuiet(token=token, members=[member.name for member in members])

    def cuts(self, token: str) -> dict[int, CutBody]:
        """Ordinal -> how exact it is in a mark made now; only of those that are still at rest. Conflict if the token is not the newest."""
        if token != self._token:
            raise Conflict("Its members are at rest for another checkpoint, or no more.")
        return {ordinal: cut for ordinal, cut in self._at_rest.items() if self._rests(ordinal)}

    def _rests(self, ordinal: int) -> bool:
        member = self._members.get(ordinal)
        return member is not None and member.at_rest

    def end(self, token: str) -> None:
        """Let them go on; no error if they do, or rest for another."""
        if not token or token != self._token:
            return
        self._token, ordinals, self._at_rest = "", list(self._at_rest), {}
        for ordinal in ordinals:
            if ordinal in self._members:
                self._members[ordinal].release()

    @asynccontextmanager
    async def at_rest(self, group: str) -> AsyncIterator[dict[int, CutBody]]:
        """The cuts of a group that has no other shard. Invalid if it has nothing to quiesce."""
        async with self.turn:
            quiet = await self.begin()
            try:
                check_any(group, quiet.members)
                yield self.cuts(quiet.token)
            finally:
                self.end(quiet.token)
