"""What was measured last of the space that groups take, so that a status or a scrape asks no target for it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta

from dpac_api.errors import DpacError
from dpac_api.models import GroupStatus, SpaceTotals, TargetSpace
from dpac_engine.control.timeline import GroupView

log = logging.getLogger(__name__)

LOOK_EVERY_SECONDS = 60.0
"""One group at most is measured as often."""
MEASURED_FOR = timedelta(hours=1)
"""Then a group is measured again."""


class SpaceLedger:
    """Measures groups, one after the other, and remembers the totals; a restart measures again."""

    def __init__(self, measure: Callable[[GroupView], list[TargetSpace]], now: Callable[[], datetime]) -> None:
        self._measure = measure
        self._now = now
        self._totals: dict[str, dict[str, SpaceTotals]] = {}
        self._asked: dict[str, datetime] = {}

    def measure(self, group: GroupView) -> list[TargetSpace]:
        """What the group takes at each target that answers. Blocks."""
        self._asked[group.uid] = self._now()
        found = self._measure(group)
        totals = {
            space.target: SpaceTotals(
                unique_bytes=space.unique_bytes,
                shared_bytes=space.shared_bytes,
                reclaimable_bytes=space.reclaimable_bytes,
                measured_at=self._now(),
            )
            for space in found
        }
        self._totals[group.uid] = {**self._totals.get(group.uid, {}), **totals}
        return found

    def told(self, group: GroupView, status: GroupStatus) -> GroupStatus:
        """The status, with what is known."""
        totals = self._totals.get(group.uid, {})
        legs = {
            name: leg.model_copy(update={"space": totals[leg.target]}) if leg.target in totals else leg
            for name, leg in status.legs.items()
        }
        return status.model_copy(update={"legs": legs})

    async def keep(self, groups: Callable[[], Awaitable[Sequence[GroupView]]]) -> None:
        """Measure the group that was measured longest ago, every now and then, for ever."""
        while True:
            await asyncio.sleep(LOOK_EVERY_SECONDS)
            await self.look(await groups())

    async def look(self, groups: Sequence[GroupView]) -> None:
        """Measure one group whose totals are old, if there is one."""
        uids = {group.uid for group in groups}
        self._totals = {uid: totals for uid, totals in self._totals.items() if uid in uids}
        self._asked = {uid: asked for uid, asked in self._asked.items() if uid in uids}
        stale = [group for group in groups if self._age(group) >= MEASURED_FOR]
        if stale:
            oldest = max(stale, key=self._age)
            try:
                await asyncio.to_thread(self.measure, oldest)
            except DpacError as cause:
                log.info("the space of group %s was not measured: %s", oldest.name, cause.message)

    def _age(self, group: GroupView) -> timedelta:
        asked = self._asked.get(group.uid)
        return self._now() - asked if asked is not None else timedelta.max
