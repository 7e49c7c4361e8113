"""Tails at a simulated target: files that a sync leg appends to."""

from __future__ import annotations

from dpac_api.errors import Conflict, NotFound, Temporary
from tests.powercut.disk import SECTOR_BYTES
from tests.simulation.target import Target
from tests.simulation.world import World


class Tails:
    """A `core.ports.TailStore` with the target's faults; what is being written may be there in part."""

    def __init__(self, world: World, target: Target) -> None:
        self._world = world
        self._target = target

    def open_tail(self, key: str, size_bytes: int) -> Tail:
        """See `TailStore.open_tail`."""
        self._target.request(lambda: self._make(key, size_bytes))
        return Tail(self._world, self._target, key)

    def _make(self, key: str, size_bytes: int) -> None:
        if key in self._target.content.objects:
            raise Conflict(f"Object {key} exists already.")
        self._target.content.objects[key] = bytes(size_bytes)

    def prepare(self, size_bytes: int) -> None:
        """See `TailStore.prepare`."""

    def close(self) -> None:
        """See `TailStore.close`."""


class Tail:
    """One of them (a `core.ports.TailFile`)."""

    def __init__(self, world: World, target: Target, key: str) -> None:
        self._world = world
        self._target = target
        self._key = key

    def write(self, offset: int, data: bytes) -> None:
        """See `TailFile.write`; one sector after the other, until the target is away or the process ends."""
        if self._target.loss and self._world.chance.random() < self._target.loss:
            whole = (offset + self._world.chance.randrange(len(data) + 1)) // SECTOR_BYTES * SECTOR_BYTES
            self._store(offset, data[: max(whole - offset, 0)])
            raise Temporary("The target does not answer. Wait.")
        self._target.request(lambda: self._store(offset, data))

    def _store(self, offset: int, data: bytes) -> None:
        content = self._target.content.objects.get(self._key)
        if content is None:
            raise NotFound(f"{self._key} is gone.")
        self._target.content.objects[self._key] = content[:offset] + data + content[offset + len(data) :]

    def close(self) -> None:
        """See `TailFile.close`."""
