"""A given sequence of operations on a group of two volumes, an end of the process or the host, and what is there after it.

As CrashMonkey does with file systems: nearly every crash bug shows in a few operations on small, overlapping ranges. Here they are those of two
clients of one group, whose devices must be of one moment afterwards, and a person's who makes a volume larger.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from dpac_engine.io.nbd.export import Change, ChangeKind
from tests.simulation import stage, world
from tests.simulation.history import History
from tests.simulation.oracle import Device

SIZE_BYTES = 48 * 1024
GROWN_BYTES = 16 * 1024
FIRST, SECOND = 1, 2


class Sequenced(History):
    """The history of one sequence: a life that does it and ends so, and one that takes up what is left."""

    def __init__(self, defects: stage.Defects, names: Sequence[str], end: str) -> None:
        super().__init__(1, defects)
        self._names, self._end = names, end
        self.devices = {ordinal: Device(SIZE_BYTES) for ordinal in (FIRST, SECOND)}
        self.members = {f"disk{ordinal}": ordinal for ordinal in self.devices}
        self.sync = {}

    def run(self) -> None:
        """Wrong, or another AssertionError, if a promise was broken."""
        self._live(last=False)
        self._check_targets()
        self._live(last=True)
        self._check_targets()

    def _arm_life(self, last: bool) -> None:
        pass

    def _power_cut_seed(self) -> int | None:
        return ENDS[self._end]

    async def _happen(self) -> None:
        if not self._last:
            for number, name in enumerate(self._names):
                await OPERATIONS[name](self, number)
            raise world.Ended

    def change(self, ordinal: int, kind: ChangeKind, offset: int, length: int, number: int) -> None:
        """One change by a client; a write has bytes that no other one has."""
        data = memoryview(bytes([number + 1]) * length) if kind == ChangeKind.WRITE else None
        self._submit(ordinal, self.devices[ordinal], self._volume(ordinal), [Change(kind, offset, length, data)])

    async def flushed(self, ordinal: int) -> None:
        """A FLUSH, answered."""
        await self._flush_volume(ordinal, self.devices[ordinal], self._volume(ordinal))

    async def grow(self, ordinal: int) -> None:
        """The volume is declared larger."""
        self.devices[ordinal].grow(self.devices[ordinal].size_bytes + GROWN_BYTES)
        self.generation += 1
        await self.group.apply(self._assignment())


Operation = Callable[[Sequenced, int], Awaitable[Any]]


def _change(ordinal: int, kind: ChangeKind, offset: int, length: int) -> Operation:
    async def operation(history: Sequenced, number: int) -> None:
        history.change(ordinal, kind, offset, length, number)

    return operation


async def _forced(history: Sequenced, number: int) -> None:
    history.change(SECOND, ChangeKind.WRITE, 4096, 4096, number)
    await history.flushed(SECOND)


async def _at_the_end(history: Sequenced, number: int) -> None:
    history.change(FIRST, ChangeKind.WRITE, history.devices[FIRST].size_bytes - 4096, 4096, number)


async def _mark(history: Sequenced, _: int) -> None:
    history.group.mark()


OPERATIONS: dict[str, Operation] = {
    "write a block of the first": _change(FIRST, ChangeKind.WRITE, 0, 4096),
    "write over its edge": _change(FIRST, ChangeKind.WRITE, 2048, 8192),
    "zero a part of it": _change(FIRST, ChangeKind.ZERO, 1024, 4096),
    "write its last block": _at_the_end,
    "make it larger": lambda history, _: history.grow(FIRST),
    "flush it": lambda history, _: history.flushed(FIRST),
    "write a block of the second": _change(SECOND, ChangeKind.WRITE, 0, 4096),
    "trim much of it": _change(SECOND, ChangeKind.TRIM, 0, 32768),
    "write to it with FUA": _forced,
    "mark": _mark,
    "write behind": lambda _history, _number: asyncio.sleep(0.4),
    "upkeep": lambda _history, _number: asyncio.sleep(1.2),
}
ENDS: dict[str, int | None] = {"kill": None, "power, nothing kept": 0, "power, some kept": 5, "power, much kept": 8}
"""What `PowerCutDisk.after_power_cut` takes; None: the process was killed."""
