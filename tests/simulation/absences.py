"""Histories of a target that is away for longer than the spool can wait, again and again, with deaths in between.

Fault model: as in `history.py`, but most of what happens is that the near target goes, clients write until its leg falls out of the
spool, and the target comes back, slow or losing messages; the process or the host dies at any call that changes a file, while bitmaps
are noted, stored, loaded or coarsened, and while a delta resync is under way. What must be true is the same.
"""

from __future__ import annotations

import asyncio
from collections import Counter

from tests.simulation.history import History
from tests.simulation.stage import Defects

WRITES_MAX = 2000
"""With so many the spool is full several times over."""
WRITE_SECONDS = 0.05
"""Between two of them: the spool's quota is looked at once a second, and clients write on meanwhile."""


class Absences(History):
    """One such history. `seen` counts what came about, so that a test can tell that it tests anything."""

    def __init__(self, seed: int, defects: Defects) -> None:
        super().__init__(seed, defects, steps=8)
        self.seen: Counter[str] = Counter()

    async def _step(self) -> None:
        steps = [
            (self._absence, 5),
            (self._come_back, 2),
            (self._burst, 2),
            (self._wait_for_flush, 2),
            (self._grow, 1),
        ]
        step = self.chance.choices([step for step, _ in steps], [weight for _, weight in steps])[0]
        self.world.note(step.__name__)
        await step()

    async def _absence(self) -> None:
        await self._fall_out()
        if self.chance.random() < 0.8:
            await self._come_back()

    async def _fall_out(self) -> None:
        self.targets["near"].away = True
        leg = self.group.legs["near"]
        for _ in range(WRITES_MAX):
            if leg.memory.lost or self.group.journal_error:
                break
            await self._write()
            await asyncio.sleep(WRITE_SECONDS)
        self.seen["fell out"] += leg.memory.lost
        self.seen["tracked"] += leg.memory.lost and leg.memory.tracked

    async def _come_back(self) -> None:
        target = self.targets["near"]
        target.away = False
        target.slow, target.loss = self.chance.choice([1, 10, 100]), self.chance.choice([0.0, 0.0, 0.05])
        if not self._last and self.chance.random() < 0.3:
            self.host.crash_in = self.chance.randint(1, 60)
        leg, patience = self.group.legs["near"], self.chance.choice([0, 3, 100, 100])
        for _ in range(patience):
            await self._pause()
            self.seen["seen in a delta resync"] += bool(leg.memory.delta)
            if leg.memory.delta and not self._last and self.chance.random() < 0.5:
                self.host.crash_in = self.chance.randint(1, 12)
            if not leg.memory.lost and all(leg.members[ordinal].is_ready for ordinal in self.members.values()):
                break

    async def _grow(self) -> None:
        """The volumes' bitmaps may have to coarsen while they are in use."""
        for ordinal in self.members.values():
            self.devices[ordinal].grow(self.devices[ordinal].size_bytes + 64 * 1024)
        self.generation += 1
        await self.group.apply(self._assignment())

    def _live(self, *, last: bool) -> bool:
        whole = super()._live(last=last)
        memory = self.group.state.legs.get("near") if hasattr(self, "group") else None
        if not whole and memory is not None:
            self.seen["died while tracking"] += memory.lost and memory.tracked
            self.seen["died in a delta resync"] += bool(memory.delta)
        return whole
