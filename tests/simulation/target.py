"""A target as a network shows it: slow, away, done without an answer, asked without being done, and rotting."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from dpac_api.errors import Temporary
from dpac_engine.io.stores.memory import MemoryStore
from tests.simulation.world import World

T = TypeVar("T")
LATENCY_NS = 80_000_000


class Target:
    """A `core.ports.Store` with faults, in front of objects that outlive every process."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.content = MemoryStore()
        self.away = False
        self.slow = 1
        """How many times as long as usual a request takes."""
        self.loss = 0.0
        """The share of requests, and of answers, that never arrive."""
        self.rotten: set[str] = set()
        """Objects that are not as they were stored."""

    def _request(self, ask: Callable[[], T]) -> T:
        world = self._world
        world.pause(LATENCY_NS * self.slow)
        if self.away or (self.loss and world.chance.random() < self.loss):
            raise Temporary("The target does not answer. Wait.")
        answer = ask()
        world.pause(LATENCY_NS * self.slow)
        if self.loss and world.chance.random() < self.loss:
            raise Temporary("The target's answer was lost. Wait.")
        return answer

    def put(self, key: str, data: bytes | memoryview) -> None:
        """See `core.ports.Store.put`."""
        self._request(lambda: self._put(key, data))

    def _put(self, key: str, data: bytes | memoryview) -> None:
        self.content.put(key, data)
        self.rotten.discard(key)

    def create(self, key: str, data: bytes | memoryview) -> None:
        """See `core.ports.Store.create`."""
        self._request(lambda: self.content.create(key, data))

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """See `core.ports.Store.get`."""
        return self._request(lambda: self.content.get(key, offset, length))

    def size(self, key: str) -> int:
        """See `core.ports.Store.size`."""
        return self._request(lambda: self.content.size(key))

    def list(self, prefix: str, start_after: str = "") -> Iterator[str]:
        """See `core.ports.Store.list`."""
        return iter(self._request(lambda: [*self.content.list(prefix, start_after)]))

    def delete(self, key: str) -> None:
        """See `core.ports.Store.delete`."""
        self._request(lambda: self.content.delete(key))

    def rot(self) -> None:
        """A bit of a stored segment is another one."""
        chance = self._world.chance
        names = sorted(key for key in self.content.objects if key.startswith("s/"))
        if names:
            name = chance.choice(names)
            data = bytearray(self.content.objects[name])
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            self.content.objects[name] = bytes(data)
            self.rotten.add(name)
            self._world.note(f"rot in {name}")
